"""Sheets of pictures in named columns: of what a masked autoencoder does, and of any others."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from util.evaluation.charts import shortened

MARGIN, HEADER, BACKGROUND, INK = 6, 20, (255, 255, 255), (20, 20, 20)
FRAME = (225, 225, 225)  # around a picture
MASKED = (0.36, 0.47, 0.66)  # a colour that no grey image has
# Matplotlib's viridis at equal steps: as bright as large, also for colour-blind readers.
HEAT = (
    (68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140), (40, 174, 128),
    (94, 201, 98), (173, 220, 48), (253, 231, 37),
)  # fmt: skip


def reconstruction_sheet(
    originals: Tensor, is_masked: Tensor, predicted: Tensor, caption: str, min_cell: int = 112
) -> Image.Image:
    """One row an image: the original, then for each mask what it sees and what is predicted.

    Args:
        originals: [B, C, H, W] in 0..1. predicted: [B, N, C, H, W] in 0..1.
        is_masked: [B, N, H, W], True where a mask hides a pixel.
        caption: what the predictions show, written above them.
    """
    columns = {"original": [to_image(image) for image in originals]}
    columns |= reconstruction_columns(originals, is_masked, predicted)
    return picture_sheet(columns, min_cell, caption)


def reconstruction_columns(
    originals: Tensor, is_masked: Tensor, predicted: Tensor
) -> dict[str, list[Image.Image]]:
    """For each mask a column of what it sees and one of what is predicted from it; arguments as
    above."""
    columns = {}
    for mask in range(predicted.shape[1]):
        views = zip(originals, is_masked[:, mask], strict=True)
        columns[f"mask {mask + 1}"] = [_hide(to_image(image), hidden) for image, hidden in views]
        columns[f"predicted {mask + 1}"] = [to_image(image) for image in predicted[:, mask]]
    return columns


def picture_sheet(
    columns: Mapping[str, Sequence[Image.Image]], min_cell: int = 160, caption: str = "",
    max_cell: int | None = None,
) -> Image.Image:  # fmt: skip
    """Named columns of pictures, a row each. Small pictures are enlarged by a whole factor, pixel
    by pixel, and a column is as wide as its name.

    Args:
        min_cell: pixels that the first picture's shorter side has at least, and all of its size.
        max_cell: pixels that a longer side has at most; None: any.
        caption: written above.
    """
    rows = len(next(iter(columns.values())))
    sides = next(iter(columns.values()))[0].size
    scale = max(1, -(-min_cell // min(sides)))
    if max_cell and max(sides) * scale > max_cell:
        scale = max_cell / max(sides)
    cell_w, cell_h = (max(1, round(side * scale)) for side in sides)
    font = ImageFont.load_default(size=max(12, min(cell_w, cell_h) // 18))
    header = HEADER + font.size - 12
    widths = [max(cell_w, int(font.getlength(name)) + MARGIN) + MARGIN for name in columns]
    top = header * (1 + bool(caption))
    size = (max(sum(widths), int(font.getlength(caption)) + MARGIN) + MARGIN,
            top + rows * (cell_h + MARGIN) + MARGIN)  # fmt: skip
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 4), caption, INK, font)
    left, how = MARGIN, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    for (name, pictures), width in zip(columns.items(), widths, strict=True):
        draw.text((left, top - header + 2), name, INK, font)
        for row, picture in enumerate(pictures):
            place = (left, top + row * (cell_h + MARGIN))
            sheet.paste(picture.resize((cell_w, cell_h), how), place)
        left += width
    return sheet


def captioned_sheet(
    title: str, rows: Sequence[Sequence[tuple[Image.Image, Sequence[str]]]], cell: int = 160
) -> Image.Image:
    """Rows of pictures of any sizes, each with lines of text below it.

    A small picture is shown larger by a whole factor, as it is, and a large one smaller.
    """
    font = ImageFont.load_default(size=12)
    lines = max(len(texts) for row in rows for _, texts in row)
    step_x, step_y = cell + 2 * MARGIN, cell + 15 * lines + 3 * MARGIN
    width = max(max(map(len, rows)) * step_x, int(font.getlength(title))) + 2 * MARGIN
    sheet = Image.new("RGB", (width, HEADER + MARGIN + len(rows) * step_y), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((2 * MARGIN, MARGIN), title, INK, font)
    for number, row in enumerate(rows):
        for column, (picture, texts) in enumerate(row):
            left, top = 2 * MARGIN + column * step_x, HEADER + MARGIN + number * step_y
            draw.rectangle((left - 1, top - 1, left + cell, top + cell), outline=FRAME)
            shown = _fitted(picture, cell)
            sheet.paste(shown, (left + (cell - shown.width) // 2, top + (cell - shown.height) // 2))
            for line, text in enumerate(texts):
                place = (left, top + cell + MARGIN // 2 + 15 * line)
                draw.text(place, shortened(text, cell, font), INK, font)
    return sheet


def _fitted(picture: Image.Image, cell: int) -> Image.Image:
    """A picture as large as a square holds it: pixels as squares where it is small."""
    longer = max(picture.size)
    factor = cell // longer if longer <= cell else cell / longer
    size = tuple(max(1, round(side * factor)) for side in picture.size)
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return picture.resize(size, how)


def _hide(image: Image.Image, is_masked: Tensor) -> Image.Image:
    """Paint over what a mask hides; is_masked [H, W]."""
    stencil = Image.fromarray(is_masked.cpu().numpy().astype("uint8") * 255)
    colour = tuple(round(255 * c) for c in MASKED)
    return Image.composite(Image.new("RGB", image.size, colour), image, stencil)


def to_image(x: Tensor) -> Image.Image:
    """[C, H, W] in 0..1 -> RGB; one channel is grey, of more than three the first three show."""
    x = x.detach().float().cpu().clamp(0, 1)
    x = x[:3] if x.shape[0] >= 3 else x[:1].expand(3, -1, -1)
    return Image.fromarray((x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def heat_map(values: Tensor, size: tuple[int, int]) -> Image.Image:
    """Values [h, w] as colours from dark (their least) to bright (their greatest), one block each.

    Args:
        size: (width, height) of the picture, pixels.
    """
    values = values.detach().float().cpu()
    span = (values.max() - values.min()).clamp_min(1e-12)
    places = ((values - values.min()) / span).numpy() * (len(HEAT) - 1)
    steps = np.arange(len(HEAT))
    channels = [np.interp(places, steps, [colour[c] for colour in HEAT]) for c in range(3)]
    picture = Image.fromarray(np.stack(channels, -1).round().astype("uint8"))
    return picture.resize(size, Image.Resampling.NEAREST)


def principal_colours(features: Tensor) -> Tensor:
    """The first three principal components of features [n, h, w, D], over all n, as red, green and
    blue: [n, 3, h, w] in 0..1.

    From the 1st to the 99th percentile each, so that single patches do not decide the scale. The
    sign of a component is that of its largest weight, and so always the same.
    """
    rows = features.detach().float().cpu().flatten(0, 2)
    centred = (rows - rows.mean(0)).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # [D, D], the largest last
    chosen = vectors[:, -3:].flip(1)
    chosen = chosen * chosen.gather(0, chosen.abs().argmax(0, keepdim=True)).sign()
    scores = centred @ chosen  # [n·h·w, at most 3]
    low, high = (np.quantile(scores.numpy(), q, axis=0) for q in (0.01, 0.99))
    scores = (scores - torch.from_numpy(low)) / torch.from_numpy(high - low).clamp_min(1e-12)
    colours = scores.clamp(0, 1).float().unflatten(0, features.shape[:3])
    missing = 3 - colours.shape[-1]
    if missing:  # features of one or two dimensions
        colours = torch.cat([colours, colours.new_zeros(*colours.shape[:3], missing)], -1)
    return colours.permute(0, 3, 1, 2)
