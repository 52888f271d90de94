"""The objects that scenes are pasted from, as RGBA: digits, clothes and cut-out photographs."""

import colorsys
import functools
import os
from collections import Counter

import numpy as np
from PIL import Image
from scipy import ndimage

from util.data.datasets import DATASETS
from util.data.file_index import find_images
from util.data.scenes.grounds import split_files
from util.errors import UsageError

SPLITS = ("training", "validation")
DEBIAN_STAMPS = "/usr/share/tuxpaint/stamps"
MIN_STAMPS = 9  # a class of fewer could not be learnt
DRAWINGS = {"cartoon", "symbols"}  # folders of stamps that are no photographs
ENLARGED = 8  # digits are drawn from 8 x 8 pixels at 64 x 64


class Stickers:
    """Objects with an exact outline, in classes, of two splits that share none.

    `targets[split]` [n] are their classes, numbered from 0; `draw` gives one as RGBA; turns of up
    to `max_turn` degrees, and flips if `may_flip`, do not change its class.
    """

    classes: tuple[str, ...]
    targets: dict[str, np.ndarray]
    max_turn: float = 20.0
    may_flip: bool = True

    def draw(self, split: str, number: int, ink: np.ndarray) -> Image.Image:
        """One object as RGBA; `ink` [3] in 0..255 colours those that have no colour."""
        raise NotImplementedError

    def name(self, split: str, number: int) -> str:
        """A name of what the object was made from."""
        raise NotImplementedError


class _GreyStickers(Stickers):
    """Grey images of a data set of this project, whose train and val splits are kept apart."""

    dataset: str

    def __init__(self, data_path: str, download: bool):
        load = DATASETS[self.dataset].load
        self.sets = {
            split: load(part, data_path, 1, download)
            for split, part in zip(SPLITS, ("train", "val"), strict=True)
        }
        self.targets = {split: images.targets for split, images in self.sets.items()}

    def name(self, split: str, number: int) -> str:
        return self.sets[split].name(number)


class Digits(_GreyStickers):
    """scikit-learn's digits, each stroke in one ink: the holes of 0, 6, 8 and 9 stay open."""

    dataset = "digits"
    classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    may_flip = False

    def draw(self, split: str, number: int, ink: np.ndarray) -> Image.Image:
        grey = Image.fromarray(np.pad(self.sets[split].images[number], 1))
        side = ENLARGED * grey.width
        stroke = np.asarray(grey.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
        # Half-way up the blurred stroke is its edge; a short ramp there is a smooth outline.
        alpha = ((stroke - 128) / 60 + 0.5).clip(0, 1) * 255
        shade = 0.8 + 0.2 * (stroke / 255).clip(0, 1)
        return _rgba(ink * shade[..., None], alpha)


class FashionMnist(_GreyStickers):
    """Fashion-MNIST's clothes, tinted."""

    dataset = "fashion_mnist"
    classes = (
        "T-shirt", "trousers", "pullover", "dress", "coat",
        "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip

    def draw(self, split: str, number: int, ink: np.ndarray) -> Image.Image:
        grey = np.pad(self.sets[split].images[number], 1)
        side = 3 * len(grey)
        outline = Image.fromarray(np.float32(_outline(grey > 16)))
        alpha = np.asarray(outline.resize((side, side), Image.Resampling.BICUBIC))
        cloth = Image.fromarray(grey).resize((side, side), Image.Resampling.BICUBIC)
        shade = 0.35 + 0.65 * np.asarray(cloth, dtype=np.float32)[..., None] / 255
        return _rgba(ink * shade, ((alpha - 0.5) * 3 + 0.5).clip(0, 1) * 255)


def _outline(is_bright: np.ndarray) -> np.ndarray:
    """A garment's pixels: with its dark prints, without loose specks and the hole of a handle."""
    holes, count = ndimage.label(~is_bright)
    sizes = np.bincount(holes.ravel(), minlength=count + 1)
    is_small = sizes < 12
    is_small[0] = False
    filled = is_bright | is_small[holes]
    parts, count = ndimage.label(filled)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    is_large = sizes > 0.05 * filled.sum()
    is_large[0] = False
    return is_large[parts]


def _rgba(colour: np.ndarray, alpha: np.ndarray) -> Image.Image:
    """From [H, W, 3] and [H, W], both in 0..255."""
    pixels = np.concatenate([colour, alpha[..., None]], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8), "RGBA")


class Stamps(Stickers):
    """Cut-out photographs of Debian's tuxpaint-stamps-default: a folder is a class.

    Folders of two levels (animals/birds) where they hold MIN_STAMPS photographs; what is left in
    smaller ones is a class by the name of the upper folder, if there are enough of that.
    """

    def __init__(self, data_path: str, download: bool):
        self.folder = data_path or DEBIAN_STAMPS
        paths = find_images(self.folder, is_told=False) if os.path.isdir(self.folder) else []
        found = self._by_class([p for p in paths if p.endswith(".png")])
        if not found:
            raise UsageError(
                f"--source stamps: {self.folder} holds no stamps: install Debian's "
                "tuxpaint-stamps-default, or name with --data_path the folder that has them"
            )
        if len(found) > 255:
            raise UsageError(
                f"--data_path {self.folder} has {len(found)} folders of stamps: a label map of 8 "
                "bits holds 255 classes; take some away"
            )
        self.classes = tuple(sorted(found))
        self.paths, self.targets = {}, {}
        for split in SPLITS:
            parts = [split_files(sorted(found[name]), split) for name in self.classes]
            self.paths[split] = [path for part in parts for path in part]
            self.targets[split] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])

    @staticmethod
    def _by_class(paths: list[str]) -> dict[str, list[str]]:
        folders = {path: path.split("/")[:-1] for path in paths}
        folders = {p: f for p, f in folders.items() if f and not DRAWINGS & set(f)}
        # Pictures that mirror one another would show the validation's objects to the training.
        folders = {p: f for p, f in folders.items() if not p.endswith("_mirror.png")}
        count = Counter("/".join(f[:2]) for f in folders.values())
        classes: dict[str, list[str]] = {}
        for path, f in folders.items():
            name = "/".join(f[:2])
            classes.setdefault(name if count[name] >= MIN_STAMPS else f[0], []).append(path)
        return {name: of for name, of in classes.items() if len(of) >= MIN_STAMPS}

    def draw(self, split: str, number: int, ink: np.ndarray) -> Image.Image:
        return _read_stamp(os.path.join(self.folder, self.paths[split][number]))

    def name(self, split: str, number: int) -> str:
        return self.paths[split][number]


@functools.lru_cache(maxsize=1000)
def _read_stamp(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            stamp = image.convert("RGBA")
    except (OSError, ValueError) as error:
        raise UsageError(f"--source stamps: {path} cannot be read ({error})") from None
    stamp.thumbnail((512, 512))  # a few have 2000 pixels
    return stamp


def vivid_ink(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """A colour [3] in 0..255 that stands out from a ground [H, W, 3]: dark on bright or reverse."""
    is_bright = ground.mean() > 127
    lightness = rng.uniform(0.15, 0.4) if is_bright else rng.uniform(0.6, 0.9)
    colour = colorsys.hls_to_rgb(rng.random(), lightness, rng.uniform(0.5, 1))
    return np.array(colour, dtype=np.float32) * 255


SOURCES = {"digits": Digits, "fashion_mnist": FashionMnist, "stamps": Stamps}
