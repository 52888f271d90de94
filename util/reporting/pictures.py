"""Pictures inside a page: as they are where they are small, else as smaller JPEGs."""

import base64
import glob
import io
import os
from collections.abc import Sequence
from html import escape

AS_IT_IS = 150_000  # bytes of a file that goes into the page unchanged
WIDEST, QUALITY = 1800, 82  # of those that are made anew: pixels, of JPEG
MOST = 16  # pictures in a page; further ones are named
PATTERNS, BY_EPOCH = ("*.png", "*.jpg"), "pictures/*-*.png"  # the latter are KIND-EPOCH.png


def find(folder: str) -> list[str]:
    """The pictures of a run's folder; of those that were drawn again and again the newest."""
    root = glob.escape(folder)
    found = [path for p in PATTERNS for path in sorted(glob.glob(os.path.join(root, p)))]
    every = sorted(glob.glob(os.path.join(root, BY_EPOCH)))
    return found + list({path.rpartition("-")[0]: path for path in every}.values())


def gallery(paths: Sequence[str], captions: Sequence[str] = ()) -> str:
    """The pictures as HTML; what cannot be read is named."""
    captions = captions or [os.path.basename(path) for path in paths]
    shown = [figure(*pair) for pair in zip(paths[:MOST], captions, strict=False)]
    left = len(paths) - MOST
    more = f"<p>{left} more: {escape(', '.join(captions[MOST:]))}</p>" if left > 0 else ""
    return f'<div class="pictures">{"".join(shown)}</div>{more}' if shown else ""


def figure(path: str, caption: str) -> str:
    """One picture with what stands above it."""
    name = escape(caption)
    try:
        kind, data, width, height = _data(path)
    except Exception as error:  # a damaged picture can raise anything
        return f"<figure><figcaption>{name}: {escape(str(error))}</figcaption></figure>"
    # On a phone a sheet of many columns scrolls, a chart shrinks.
    wide = ' style="min-width:36rem"' if width > 900 else ""
    text = base64.b64encode(data).decode()
    return (
        f'<figure><figcaption>{name}</figcaption><div class="wide"><img '
        f'src="data:image/{kind};base64,{text}" alt="{name}" width="{width}" height="{height}"'
        f"{wide}></div></figure>"
    )


def _data(path: str) -> tuple[str, bytes, int, int]:
    """A picture's kind, bytes, width and height."""
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        if os.path.getsize(path) <= AS_IT_IS and image.format in ("PNG", "JPEG"):
            with open(path, "rb") as file:
                return image.format.lower(), file.read(), width, height
        small = image.convert("RGB")
    if width > WIDEST:
        small = small.resize((WIDEST, max(1, height * WIDEST // width)), Image.Resampling.LANCZOS)
    made = io.BytesIO()
    small.save(made, "JPEG", quality=QUALITY, optimize=True)
    return "jpeg", made.getvalue(), *small.size
