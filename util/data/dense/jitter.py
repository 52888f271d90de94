"""Large-scale jitter [Ghiasi et al., 2021] of images with objects, and the evaluation's view.

A pixel's centre is what moves: that of a new pixel is looked up in the old image, where a polygon
holds it or not, and an RLE's pixel is on or off. Boxes are those of the masks that come out.
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
            scale, corner = np.array(scales[::-1]), (self.left, self.top)
            polygons = [np.reshape(p, (-1, 2)) * scale - corner for p in segmentation]
            mask = fill_polygons(polygons, *self.size)
        else:
            places = [
                ((np.arange(side) + start + 0.5) / scale).astype(int)
                for side, start, scale in zip(self.size, (self.top, self.left), scales, strict=True)
            ]
            mask = decode_rle(segmentation)[np.ix_(*places)]
        return mask[:, ::-1] if self.flipped else mask

    def target(self, objects: list[Object]) -> Target:
        """What a detector is trained on; objects of which nothing is left are left out."""
        labels, boxes, masks, has_mask = [], [], [], []
        for label, segmentation, is_mask in objects:
            mask = self.mask(segmentation)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            if len(rows):
                labels.append(label)
                boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
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
        top, left = (
            int(torch.randint(new - side + 1, ())) for new, side in zip(resized, size, strict=True)
        )
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
