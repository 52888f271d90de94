"""One image file as a person sees it, whatever its mode, depth, palette or orientation."""

import functools
import importlib.util
import io
import logging
import tokenize
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from util.data.deep_pixels import Range, packing, read_deep, scaled
from util.data.metadata import ORIENTATION, UPRIGHT, exif_orientation, without_metadata

log = logging.getLogger(__name__)


ARRAY_START = b"\x93NUMPY"
DAMAGED_ARRAY = (EOFError, tokenize.TokenError)  # what a damaged header leads to
# How a stored picture [C, H, W] is turned: dimensions that swap, and those that are flipped then.
TURNS = {
    2: (False, (2,)), 3: (False, (1, 2)), 4: (False, (1,)), 5: (True, ()),
    6: (True, (2,)), 7: (True, (1, 2)), 8: (True, (1,)),
}  # fmt: skip


class NamedBytes(io.BytesIO):
    """The bytes of a file, which Pillow's errors call by its name."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.called = name

    def __repr__(self) -> str:
        return repr(self.called)


def read_image(path: str, in_chans: int = 3, value_range: Range | None = None) -> Tensor:
    """Read an image: [C, H, W], uint8, or float32 where the file has more than 8 bits a value.

    1, 3 and 4 channels are grey, RGB and RGBA; a `.npy` array [H, W] or [H, W, C] may have any C.
    Unsigned 16 bits become 0..1, floats and other integers stay as they are. Of a file with
    several frames it is the first one. Metadata that cannot be parsed are passed over.

    Args:
        value_range: the numbers of files of more than 8 bits that become 0 and 1.

    Raises:
        OSError, ValueError: the file cannot be read so; the message names it.
    """
    with open(path, "rb") as file:
        return decode_image(file, path, in_chans, value_range)


def decode_image(
    file: BinaryIO, name: str, in_chans: int = 3, value_range: Range | None = None
) -> Tensor:
    """`read_image` of an open file, or of bytes in memory, which errors call `name`."""
    is_array = file.read(len(ARRAY_START)) == ARRAY_START
    file.seek(0)
    if is_array or name.lower().endswith(".npy"):
        return _read_array(file, in_chans, name, value_range)
    if in_chans not in (1, 3, 4):
        raise ValueError(f"{name}: {in_chans} channels need .npy arrays, not pictures")
    try:
        return _read_picture(file, in_chans, name, value_range)
    except Exception as error:  # of its pixels, or of what stands beside them?
        file.seek(0)
        bare = without_metadata(file.read())
        if bare is None:
            raise
        failed = error
    try:
        return _read_picture(io.BytesIO(bare.data), in_chans, name, value_range, bare.orientation)
    except Exception:
        raise failed from None


def _read_picture(
    file: BinaryIO, in_chans: int, name: str, value_range: Range | None,
    orientation: int | None = None,
) -> Tensor:  # fmt: skip
    """Args: orientation: by EXIF; None: as the file says."""
    with Image.open(file) as image:
        pixels = _decode_jpeg(file, image, in_chans, orientation)
        if pixels is not None:
            return pixels
        deep = read_deep(file, image, in_chans, value_range, name)
        pixels = to_tensor(convert(image, in_chans, name)) if deep is None else to_tensor(deep)
        # Pillow turns a TIFF while it reads it, and says so by taking the tag out.
        return _turned(pixels, exif_orientation_of(image) if orientation is None else orientation)


def exif_orientation_of(image: Image.Image) -> object:
    """What an open file's EXIF says, upright where it says nothing."""
    found = image.getexif().get(ORIENTATION)
    if found is None:  # before version 13 Pillow gives up at a tag that it cannot read
        found = exif_orientation(image.info.get("exif") or b"")
    return found


def open_picture(content: bytes, name: str) -> Image.Image:
    """A picture as Pillow has it, loaded; metadata that cannot be parsed are passed over.

    Args:
        content: of its file, which errors call `name`.
    """
    try:
        image = Image.open(NamedBytes(content, name))
        image.load()
        return image
    except Exception as error:
        failed = error
    bare = without_metadata(content)
    if bare is None:
        raise failed
    try:
        image = Image.open(io.BytesIO(bare.data))
        image.load()
        return image
    except Exception:
        raise failed from None


def stored_orientation(file: BinaryIO) -> object:
    """The EXIF orientation of an image file, whatever else stands in its metadata."""
    try:
        with Image.open(file) as image:
            return exif_orientation_of(image)
    except Exception:  # a tag that Pillow cannot parse
        file.seek(0)
        bare = without_metadata(file.read())
        return bare.orientation if bare else UPRIGHT


def _turned(pixels: Tensor, orientation: object) -> Tensor:
    swaps, flips = TURNS.get(orientation, (False, ()))
    pixels = pixels.transpose(1, 2) if swaps else pixels
    return pixels.flip(flips) if flips else pixels


@functools.cache
def jpeg_decoder() -> Callable[..., Tensor] | None:
    """torchcodec's JPEG decoder: PIL's pixels, but sooner; None where it is not installed."""
    if importlib.util.find_spec("torchcodec") is None:
        return None
    try:
        from torchcodec.decoders import decode_jpeg
    except Exception as error:  # whatever a library for another torch, or an old one, comes to
        reason = str(error).strip().splitlines()
        log.warning("torchcodec is installed but of no use (%s)", reason[0] if reason else error)
        return None
    return decode_jpeg


def _decode_jpeg(
    file: BinaryIO, header: Image.Image, in_chans: int, orientation: int | None
) -> Tensor | None:
    """Pixels of a plain JPEG; None where PIL must see to it, damaged files among them."""
    plain = (header.mode, in_chans) in (("RGB", 3), ("L", 3), ("L", 1))
    if not plain or header.format != "JPEG" or jpeg_decoder() is None:
        return None
    if (exif_orientation_of(header) if orientation is None else orientation) != UPRIGHT:
        return None
    file.seek(0)
    data = file.read()
    if not data.endswith(b"\xff\xd9"):  # cut short: torchcodec would show the rest grey
        return None
    try:
        return jpeg_decoder()(data, mode="GRAY" if in_chans == 1 else "RGB")
    except RuntimeError:
        return None


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """A grey, RGB or RGBA image of 8 bits, or an array [H, W, C], as [C, H, W]."""
    pixels = np.array(image)
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)


def to_float(imgs: Tensor) -> Tensor:
    """Images as uint8, or as floats in 0..1 -> float32 in 0..1."""
    return imgs.float() / 255 if imgs.dtype == torch.uint8 else imgs.float()


def of_one_type(images: Sequence[Tensor]) -> list[Tensor]:
    """Images of a batch: where 8 bits and arrays of other types meet, all are floats in 0..1."""
    if len({image.dtype for image in images}) > 1:
        return [to_float(image) for image in images]
    return list(images)


def to_bytes(image: Tensor) -> Tensor:
    """An image as uint8, floats in 0..1 rounded to 255 levels, for what works on bytes alone.

    Raises:
        ValueError: floats of another scale.
    """
    if image.dtype == torch.uint8:
        return image
    if is_off_scale(image):
        raise ValueError("holds pixels of another scale than 0 to 1")
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


OFF_SCALE = 0.1  # a share of the pixels: single ones decide nothing


def is_off_scale(image: Tensor) -> bool:
    """Whether more than a tenth of an image's floats lie outside 0..1."""
    if image.dtype == torch.uint8:
        return False
    return ((image < 0) | (image > 1)).float().mean().item() > OFF_SCALE


def convert(image: Image.Image, in_chans: int, name: str = "image") -> Image.Image:
    """Convert any PIL mode of 8 bits to grey, RGB or RGBA; transparency is laid on white."""
    if in_chans not in (1, 3, 4):
        raise ValueError(f"{name}: {in_chans} channels need .npy arrays, not {image.mode} images")
    _scale_transparent_value(image)
    transparent = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if in_chans == 4:
        return image.convert("RGBA")
    if transparent:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if in_chans == 1:
        # PIL makes some modes grey by way of RGB only (LAB), or wrongly (CMYK).
        return (image if image.mode in ("1", "L", "P") else image.convert("RGB")).convert("L")
    return image.convert("RGB")


def _scale_transparent_value(image: Image.Image) -> None:
    """Pillow stretches greys of 2 and 4 bits to 8, but not the one that a PNG calls transparent."""
    factor = {"L;2": 85, "L;4": 17}.get(packing(image))
    if factor and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= factor


def _read_array(file: BinaryIO, in_chans: int, name: str, value_range: Range | None) -> Tensor:
    try:
        array = np.load(file, allow_pickle=False)
    except DAMAGED_ARRAY as error:
        raise ValueError(f"{name}: {error}") from None
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] != in_chans:
        raise ValueError(f"{name}: an array of {array.shape}, not [height, width, {in_chans}]")
    if array.size == 0 or array.dtype.kind not in "buif":
        raise ValueError(f"{name}: an array of {array.shape} {array.dtype}, not of pixels")
    if array.dtype != np.uint8:
        is_16_bits = array.dtype.kind == "u" and array.dtype.itemsize == 2  # of either byte order
        array = scaled(array, 65535 if is_16_bits else None, value_range, name)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
