"""Large-scale jitter [Ghiasi et al., 2021] of images with objects, and the evaluation's view.

A pixel's centre is what moves: that of a new pixel is looked up in the old image, where a polygon
holds it or not, and an RLE's pixel is on or off. Boxes are those of what is seen of the masks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from util.data.dense.coco import Annotated, Object
from util.data.dense.rle import decode_rle, fill_polygons
from util.data.transforms import resize

# boxes [n, 4] x0 y0 x1 y1, labels [n], masks [n, h, w] uint8, has_mask [n]: else it is the box.
Target = dict[str, Tensor]


@dataclass(frozen=True)
class View:
    """A window of an image that was resized: where a new image's pixels come from.

    resized: (height, width) of the whole. top, left: of the window. size: its (height, width).
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    top: int
    left: int
    size: tuple[int, int]
    flipped: bool

    def image(self, image: Tensor) -> Tensor:
        """[C, H, W] -> [C, *size]."""
        if self.resized != self.original:
            image = resize(image, self.resized, "bilinear")
        image = image[:, self.top : self.top + self.size[0], self.left : self.left + self.size[1]]
        return image.flip(2) if self.flipped else image

    def mask(self, segmentation: dict | list) -> np.ndarray:
        """COCO's segmentation of the original -> a boolean mask of `size`."""
        scales = [new / old for new, old in zip(self.resized, self.original, strict=True)]
        if isinstance(segmentation, list):
            mask = fill_polygons(self._moved(segmentation), *self.size)
        else:
            places = [
                ((np.arange(side) + start + 0.5) / scale).astype(int)
                for side, start, scale in zip(self.size, (self.top, self.left), scales, strict=True)
            ]
            mask = decode_rle(segmentation)[np.ix_(*places)]
        return mask[:, ::-1] if self.flipped else mask

    def _moved(self, polygons: list) -> list[np.ndarray]:
        """[n, 2] each, (x, y) in the window's pixels before it is flipped."""
        scale = np.array(self.resized[::-1]) / self.original[::-1]
        return [np.reshape(p, (-1, 2)) * scale - (self.left, self.top) for p in polygons]

    def box(self, segmentation: dict | list, mask: np.ndarray) -> list[float]:
        """x0, y0, x1, y1 of what is seen of a segmentation, of which `mask` has at least a pixel.

        A polygon's corners tell it more exactly than pixels; where the window cuts it, those that
        lie within a pixel.
        """
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
        if isinstance(segmentation, dict):
            return box.tolist()
        points = np.concatenate(self._moved(segmentation))
        low, high = points.min(0), points.max(0)
        is_whole = (low >= 0).all() and (high <= self.size[::-1]).all()
        low, high = low.clip(0), high.clip(None, self.size[::-1])
        if self.flipped:
            low[0], high[0] = self.size[1] - high[0], self.size[1] - low[0]
        exact = np.concatenate([low, high])
        return np.where(is_whole | (abs(exact - box) < 1), exact, box).tolist()

    def target(self, objects: list[Object]) -> Target:
        """What a detector is trained on; objects of which nothing is left are left out."""
        labels, boxes, masks, has_mask = [], [], [], []
        for label, segmentation, is_mask in objects:
            mask = self.mask(segmentation)
            if mask.any():
                labels.append(label)
                boxes.append(self.box(segmentation, mask))
                masks.append(mask)
                has_mask.append(is_mask)
        stacked = np.stack(masks) if masks else np.zeros((0, *self.size), dtype=bool)
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": torch.from_numpy(stacked.astype(np.uint8)),
            "has_mask": torch.tensor(has_mask, dtype=torch.bool),
        }


def fitted(original: tuple[int, int], box: tuple[float, float]) -> tuple[int, int]:
    """The (height, width) of an image resized, its ratio kept, to just fit into a box."""
    scale = min(new / old for new, old in zip(box, original, strict=True))
    return tuple(max(1, round(old * scale)) for old in original)


class LargeScaleJitter:
    """(image, its objects) -> (image, target): resized by chance, cropped to the canvas, flipped.

    The result is smaller than the canvas where the resized image is.

    Args:
        canvas: (height, width) in pixels.
        scales: the resized image fits into the canvas times a number between these two.
    """

    def __init__(self, canvas: tuple[int, int], scales: tuple[float, float], flip: bool):
        self.canvas, self.scales, self.flip = tuple(canvas), tuple(scales), flip

    def __call__(self, image: Tensor, annotated: Annotated) -> tuple[Tensor, Target]:
        view = self.draw(tuple(image.shape[1:]))
        return view.image(image), view.target(annotated[1])

    def draw(self, original: tuple[int, int]) -> View:
        scale = torch.empty(()).uniform_(*self.scales).item()
        resized = fitted(original, tuple(side * scale for side in self.canvas))
        size = tuple(min(new, side) for new, side in zip(resized, self.canvas, strict=True))
        share = torch.rand(()).item()  # one for both sides, as published: along the diagonal
        top, left = (round(share * (n - side)) for n, side in zip(resized, size, strict=True))
        flipped = self.flip and torch.rand(()).item() < 0.5
        return View(original, resized, top, left, size, flipped)


class FitCanvas:
    """(image, its objects) -> (image, (index, height, width)): as large as the canvas allows.

    What comes with it is which image it is and its original size.
    """

    def __init__(self, canvas: tuple[int, int]):
        self.canvas = tuple(canvas)

    def __call__(self, image: Tensor, annotated: Annotated) -> tuple[Tensor, tuple[int, int, int]]:
        original = tuple(image.shape[1:])
        resized = fitted(original, self.canvas)
        view = View(original, resized, 0, 0, resized, False)
        return view.image(image), (annotated[0], *original)


def collate(items: list[tuple]) -> tuple[list[Tensor], list, Tensor]:
    """Images of different sizes, what comes with them, and which of them could not be read."""
    images, targets, bad = zip(*items, strict=True)
    return list(images), list(targets), torch.tensor(bad)
