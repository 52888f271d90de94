"""One image file as a person sees it, whatever its mode, depth, palette or orientation."""

import functools
import importlib.util
import logging
import tokenize
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

log = logging.getLogger(__name__)


def read_image(path: str, in_chans: int = 3) -> Tensor:
    """Read an image: [C, H, W], uint8 (or floats of a `.npy` file).

    1, 3 and 4 channels are grey, RGB and RGBA; a `.npy` array [H, W] or [H, W, C] may have any C,
    with uint8 as it is, uint16 scaled to 0..1, floats as they are.

    Raises:
        OSError, ValueError: the file cannot be read so; the message names it.
    """
    if path.lower().endswith(".npy"):
        return _read_array(path, in_chans)
    with open(path, "rb") as file, Image.open(file) as image:
        pixels = _decode_jpeg(file, image, in_chans)
        if pixels is None:
            pixels = to_tensor(convert(ImageOps.exif_transpose(image), in_chans, path))
        return pixels


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


def _decode_jpeg(file: BinaryIO, header: Image.Image, in_chans: int) -> Tensor | None:
    """Pixels of a plain JPEG; None where PIL must see to it, damaged files among them."""
    plain = (header.mode, in_chans) in (("RGB", 3), ("L", 3), ("L", 1))
    if not plain or header.format != "JPEG" or jpeg_decoder() is None:
        return None
    if header.getexif().get(0x0112, 1) != 1:  # turned
        return None
    file.seek(0)
    data = file.read()
    if not data.endswith(b"\xff\xd9"):  # cut short: torchcodec would show the rest grey
        return None
    try:
        return jpeg_decoder()(data, mode="GRAY" if in_chans == 1 else "RGB")
    except RuntimeError:
        return None


def to_tensor(image: Image.Image) -> Tensor:
    """A grey, RGB or RGBA image as uint8 [C, H, W]."""
    pixels = np.array(image)
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)


def to_float(imgs: Tensor) -> Tensor:
    """Images as uint8, or as floats in 0..1 -> float32 in 0..1."""
    return imgs.float() / 255 if imgs.dtype == torch.uint8 else imgs.float()


def convert(image: Image.Image, in_chans: int, name: str = "image") -> Image.Image:
    """Convert any PIL mode to grey, RGB or RGBA; transparency is laid on white."""
    if in_chans not in (1, 3, 4):
        raise ValueError(f"{name}: {in_chans} channels need .npy arrays, not {image.mode} images")
    image = _to_8_bit(image)
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


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and floating-point grey images to 8 bits, which PIL would clip."""
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image).astype(np.float64)
    if image.mode == "F" and pixels.max(initial=0) <= 1:
        pixels = pixels * 255
    elif image.mode != "F" or pixels.max(initial=0) > 255:
        pixels = pixels / 257  # 65535 -> 255
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _read_array(path: str, in_chans: int) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (EOFError, tokenize.TokenError) as error:  # what a damaged header leads to
        raise ValueError(f"{path}: {error}") from None
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] != in_chans:
        raise ValueError(f"{path}: an array of {array.shape}, not [height, width, {in_chans}]")
    if array.size == 0 or array.dtype.kind not in "buif":
        raise ValueError(f"{path}: an array of {array.shape} {array.dtype}, not of pixels")
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        array = array.astype(np.float32) / 65535
    elif array.dtype != np.uint8:
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: holds values that are not finite")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
