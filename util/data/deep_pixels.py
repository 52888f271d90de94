"""Pictures of more than 8 bits a value, with all of them: Pillow keeps the higher 8 of colours.

A file's numbers become pixels by one rule, which no pixel decides: unsigned 16 bits (12 in a TIFF
of 12) are on a scale of 0 to 1, floats and other integers stay as they are, and where a value range
is given, its ends become 0 and 1 in both.
"""

import io
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image

from util.data.metadata import PNG_START, png_chunk

Range = Sequence[float]  # the numbers, as they stand in a file, that become 0 and 1
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601-2, as Pillow has it
HIGH_LOW = {"16B": "16L", "16L": "16B", "16N": "16B"}  # how to unpack the lower bytes
BITS, PHOTOMETRIC, PLANES = 258, 262, 284  # tags of a TIFF


def read_deep(
    file: BinaryIO, image: Image.Image, in_chans: int, value_range: Range | None = None,
    name: str = "image",
) -> np.ndarray | None:  # fmt: skip
    """The pixels of an open image, float32 [H, W, in_chans]; None where it has 8 bits or fewer.

    Args:
        file: from which `image` was opened. in_chans: 1, 3 or 4; transparency is laid on white.

    Raises:
        ValueError: values that are not finite, or that Pillow cannot read. OSError: a damaged file.
    """
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS, (8,))
    if tags.get(PLANES) == 2 and len(bits) > 1 and max(bits) > 8:  # which Pillow reads as bytes
        raise ValueError(f"{name}: more than 8 bits in separate planes: interleave its channels")
    if image.mode.startswith(("I", "F")):
        return _grey(image, in_chans, value_range, name)
    mode, _, depth = packing(image).partition(";")
    if depth not in HIGH_LOW or mode not in ("RGB", "RGBX", "RGBA", "LA"):
        return None
    if mode == "LA":
        if image.format != "PNG":
            return None
        values = _grey_and_alpha(file)
    else:
        high = np.asarray(image).astype(np.uint16)
        with _opened(file) as lower:
            lower.tile = [_unpacked(part, f"{mode};{HIGH_LOW[depth]}") for part in lower.tile]
            values = high << 8 | np.asarray(lower)
    clear = image.info.get("transparency")
    alpha = None
    if values.shape[2] in (2, 4):
        alpha, values = values[..., -1].astype(np.float32) / 65535, values[..., :-1]
    elif clear is not None:
        alpha = (values != np.array(clear)).any(2).astype(np.float32)
    return to_channels(scaled(values, 65535, value_range, name), alpha, in_chans)


def packing(image: Image.Image) -> str:
    """How the pixels of an open file that has not been loaded are packed, as `RGB;16B`."""
    args = image.tile[0][3] if getattr(image, "tile", None) else ""
    args = args[0] if isinstance(args, tuple | list) and args else args
    return args if isinstance(args, str) else ""


def _unpacked(part: tuple, how: str) -> tuple:
    """A part of a file (codec, place, offset, arguments) that is unpacked in another way."""
    new = how if isinstance(part[3], str) else (how, *part[3][1:])
    return part._replace(args=new) if hasattr(part, "_replace") else (*part[:3], new)


def _opened(file: BinaryIO) -> Image.Image:
    file.seek(0)
    return Image.open(file)


def _grey(image: Image.Image, in_chans: int, value_range: Range | None, name: str) -> np.ndarray:
    clear, full = image.info.get("transparency"), None
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        full = 4095 if tags.get(BITS) == (12,) else 65535
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, in 32
        full = 65535
    largest = _largest_of_pgm(image)
    is_negative = full is not None and tags.get(PHOTOMETRIC) == 0  # zero is white
    values = np.asarray(image)[..., None]
    if largest:  # Pillow has stretched the file's numbers
        values, full = np.rint(values * (largest / full)), largest
    if is_negative:
        values = full - values
    alpha = None if clear is None else (values[..., 0] != clear).astype(np.float32)
    return to_channels(scaled(values, full, value_range, name), alpha, in_chans)


def _largest_of_pgm(image: Image.Image) -> int | None:
    """The number that a PGM of 16 bits, not loaded yet, has for white; None: 65535, or no PGM."""
    args = image.tile[0][3] if image.format == "PPM" and image.tile else ()
    is_told = isinstance(args, tuple) and len(args) == 2 and isinstance(args[1], int)
    return args[1] if is_told and 255 < args[1] < 65535 else None


def _grey_and_alpha(file: BinaryIO) -> np.ndarray:
    """A PNG's grey and alpha, uint16 [H, W, 2], read as if it had the four channels of 8 bits
    that lie at the same places, which Pillow does not cut."""
    file.seek(0)
    data = file.read()
    start, end = len(PNG_START) + 8, len(PNG_START) + 21  # of the header's content
    header = bytearray(data[start:end])
    header[8:10] = 8, 6  # bits, and RGBA
    data = PNG_START + png_chunk(b"IHDR", bytes(header)) + data[end + 4 :]
    with Image.open(io.BytesIO(data)) as image:
        pairs = np.asarray(image).astype(np.uint16)  # [H, W, 4]
    return pairs[..., ::2] << 8 | pairs[..., 1::2]


def scaled(
    values: np.ndarray, full: float | None, value_range: Range | None, name: str = "image"
) -> np.ndarray:
    """A file's numbers as float32 pixels.

    Args:
        full: the largest number of their type; None: they have no scale of their own.

    Raises:
        ValueError: values that are not finite.
    """
    low, high = value_range or (0.0, full or 1.0)
    with np.errstate(over="ignore"):  # float64 beyond float32: not finite, below
        found = values.astype(np.float32)
    if (low, high) != (0.0, 1.0):
        found = ((values.astype(np.float64) - low) / (high - low)).astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError(f"{name}: holds values that are not finite")
    return found


def to_channels(values: np.ndarray, alpha: np.ndarray | None, in_chans: int) -> np.ndarray:
    """Grey [H, W, 1] or RGB [H, W, 3] with or without alpha [H, W] -> [H, W, 1, 3 or 4]."""
    if alpha is not None and in_chans != 4:
        values = values * alpha[..., None] + (1 - alpha[..., None])
    if in_chans == 1:
        return values if values.shape[2] == 1 else (values @ LUMA)[..., None]
    values = np.broadcast_to(values, (*values.shape[:2], 3))
    if in_chans == 3:
        return values
    opacity = np.ones(values.shape[:2], np.float32) if alpha is None else alpha
    return np.concatenate([values, opacity[..., None]], axis=2)
