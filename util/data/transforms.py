"""Augmentation. Every transform takes an image [C, H, W] and gives [C, h, w].

uint8 stays uint8 until `Normalize` makes floats of a whole batch, on the device. torchvision and
timm are imported where they are called: it takes seconds, and a mistyped flag is told at once.
"""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from util.data.images import to_float, to_tensor
from util.data.resample import resized_window
from util.errors import UsageError

ELONGATED = 8  # times as long as the crop: only what is kept of such a picture is resized


def resize(
    image: Tensor, size: Sequence[int], interpolation: str = "bicubic", antialias: bool = True
) -> Tensor:
    """Resize an image [C, H, W] to `size` (height, width); `bilinear` or `bicubic`."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    mode = InterpolationMode(interpolation)
    return functional.resize(image, list(size), interpolation=mode, antialias=antialias)


def covering(height: int, width: int, box: Sequence[int]) -> list[int]:
    """The size of an image that just covers a box, its shape kept."""
    if box[0] * width >= box[1] * height:  # whole numbers: 103 · (256 / 103) is below 256
        return [box[0], box[0] * width // height]
    return [box[1] * height // width, box[1]]


class Normalize(nn.Module):
    """Subtract mean and divide by std per channel: [B, C, H, W], uint8 or in 0..1 -> float32."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, imgs: Tensor) -> Tensor:
        return (to_float(imgs) - self.mean) / self.std

    def inverse(self, imgs: Tensor) -> Tensor:
        """Back to values in 0..1 (not clipped)."""
        return imgs * self.std + self.mean


class ResizeCenterCrop:
    """The evaluation transform: cover size / `crop_share`, then cut out the centre."""

    def __init__(self, size: tuple[int, int], crop_share: float, interpolation: str = "bicubic"):
        self.size, self.crop_share, self.interpolation = size, crop_share, interpolation

    def __str__(self) -> str:
        box, size = (" x ".join(map(str, sides)) for sides in (self._box(), self.size))
        return f"resized ({self.interpolation}) to cover {box} pixels, centre {size} cut out"

    def _box(self) -> list[int]:
        return [int(side / self.crop_share) for side in self.size]

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        box = self._box()
        resized = covering(height, width, box)
        top, left = (round((a - b) / 2) for a, b in zip(resized, self.size, strict=True))
        if resized[0] * resized[1] > ELONGATED * box[0] * box[1]:
            return resized_window(image, tuple(resized), top, left, self.size, self.interpolation)
        if resized != [height, width]:
            image = resize(image, resized, self.interpolation)
        return image[:, top : top + self.size[0], left : left + self.size[1]]


class CropAndFlip:
    """Random resized crop and flip.

    Args:
        size: (height, width) of the result.
        min_area: smallest share of the image's area that a crop takes; 1 resizes the whole image.
        tf_style: one draw as in TensorFlow's pipelines (linear probing), instead of torchvision's
            up to ten draws.
        augment: what follows, RandAugment for instance.
        interpolation: `bicubic`, as MAE has it, or `bilinear`, as SimMIM.
    """

    def __init__(
        self, size: Sequence[int], min_area: float, flip: bool, tf_style: bool = False,
        augment: Callable | None = None, interpolation: str = "bicubic",
    ):  # fmt: skip
        from torchvision.transforms import InterpolationMode

        from util.data.random_crop import RandomResizedCrop, TFRandomResizedCrop

        self.size, self.flip, self.augment = tuple(size), flip, augment
        self.whole, self.interpolation = min_area >= 1, interpolation
        crop = TFRandomResizedCrop if tf_style else RandomResizedCrop
        mode, scale = InterpolationMode(interpolation), (min(min_area, 1.0), 1.0)
        self.crop = crop(size, scale=scale, interpolation=mode)

    @property
    def is_random(self) -> bool:
        """Whether an image is not the same each time."""
        return not self.whole or self.flip or self.augment is not None

    def __call__(self, image: Tensor) -> Tensor:
        if not self.whole:
            image = self.crop(image)
        elif image.shape[1:] != self.size:
            image = resize(image, self.size, self.interpolation)
        if self.flip and torch.rand(()) < 0.5:
            image = image.flip(-1)
        return self.augment(image) if self.augment else image


class AutoAugment:
    """timm's RandAugment or AutoAugment, which works on PIL images; grey ones travel as RGB.

    Args:
        policy: timm's name, `rand-m9-mstd0.5-inc1` for instance.
        mean: per channel in 0..1; the colour that fills what moves in from outside.
    """

    def __init__(self, policy: str, size: tuple[int, int], mean: Sequence[float]):
        from timm.data.auto_augment import auto_augment_transform, posterize, rand_augment_transform

        self.policy = policy
        if len(mean) not in (1, 3):
            raise UsageError(f"--aa {policy} needs 1 or 3 channels, not {len(mean)}: use --aa none")
        fill = tuple(round(255 * m) for m in (mean if len(mean) == 3 else list(mean) * 3))
        hparams = dict(
            translate_const=int(min(size) * 0.45), img_mean=fill, interpolation=Image.BICUBIC
        )
        make = rand_augment_transform if policy.startswith("rand") else auto_augment_transform
        try:
            self.augment = make(policy, hparams)
        except (AssertionError, ValueError, KeyError):
            raise UsageError(f"--aa {policy} is unknown: use rand-m9-mstd0.5-inc1") from None
        sub_policies = getattr(self.augment, "policy", None) or [self.augment.ops]
        for op in (op for ops in sub_policies for op in ops):
            if op.aug_fn is posterize:
                op.aug_fn = _posterize

    def __call__(self, image: Tensor) -> Tensor:
        from torchvision.transforms.v2.functional import to_pil_image

        if image.dtype != torch.uint8:
            raise UsageError(
                f"--aa {self.policy} works on 8 bits a value, and there are images of 16 or of "
                "floats: use --aa none"
            )
        image = to_pil_image(image)
        return to_tensor(self.augment(image.convert("RGB")).convert(image.mode))


def _posterize(image: Image.Image, bits: int, **options) -> Image.Image:
    """timm's; its 0 bits, drawn once in some hundred images, are black and no error of Pillow's."""
    from timm.data.auto_augment import posterize

    return posterize(image, bits, **options) if bits else Image.new(image.mode, image.size)
