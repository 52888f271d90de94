"""The images whose features are nearest to a query's, as a picture and as names."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from util.data.datasets import Images
from util.data.images import is_off_scale, read_image, to_float
from util.errors import UsageError, first_line
from util.evaluation.frozen.knn import nearest_neighbours
from util.evaluation.frozen.whole_file import WholeFile, map_whole
from util.evaluation.pictures import captioned_sheet, to_image

ABSENT = (200, 200, 200)  # in place of a picture that cannot be read any more


@dataclass(frozen=True)
class Query:
    """Images to find others for, and how an encoder sees them.

    flags: the encoder's own. view: the transform. encode: images [B, C, H, W] -> [B, D].
    """

    paths: Sequence[str]
    flags: argparse.Namespace
    view: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]

    def read(self) -> list[Tensor]:
        """Raises UsageError where one cannot be read."""
        found = []
        for path in self.paths:
            try:
                found.append(read_image(path, self.flags.in_chans, self.flags.value_range))
            except Exception as error:  # whatever a decoder makes of a damaged file
                raise UsageError(f"--query {path} cannot be read ({first_line(error)})") from None
        return found


def answer(
    query: Query, known: WholeFile, images: Images, count: int, device: torch.device
) -> tuple[Image.Image, list[dict]]:  # fmt: skip
    """A row for each query: it, and its nearest images by cosine, the nearest first.

    Args:
        known: features [n, D] of `images`. count: how many of them, for each query.
    """
    features = map_whole(known.path)
    ids = np.setdiff1d(np.arange(len(images)), known.about()["left_out"])
    pictures = query.read()
    seen = torch.stack([to_float(query.view(picture)) for picture in pictures])
    rows_of = torch.from_numpy(features), torch.arange(len(features))
    cosines, rows = nearest_neighbours(rows_of, query.encode(seen).cpu(), count, device)
    sheet, found = [], []
    for path, picture, near, hits in zip(
        query.paths, pictures, cosines.tolist(), rows.tolist(), strict=True
    ):
        sheet.append([(_shown(picture), ["query", path])])
        found.append({"query": path, "hits": []})
        for cosine, row in zip(near, hits, strict=True):
            name, label = images.relative_name(int(ids[row])), int(images.targets[ids[row]])
            of_class = {"class": images.classes[label]} if label >= 0 else {}
            found[-1]["hits"].append({"row": row, "name": name, "cosine": cosine, **of_class})
            of_class_text = "".join(f"  class {word}" for word in of_class.values())
            texts = [f"{cosine:.3f}{of_class_text}", name]
            sheet[-1].append((_read_again(images, int(ids[row])), texts))
    title = f"the nearest of {len(features)} images, with the cosine of their features"
    return captioned_sheet(title, sheet), found


def _read_again(images: Images, index: int) -> Image.Image:
    try:
        return _shown(images.read(index))
    except Exception:  # removed since its features were computed
        return Image.new("RGB", (8, 8), ABSENT)


def _shown(image: Tensor) -> Image.Image:
    """An image [C, H, W] to look at; numbers of another scale than 0..1 are stretched to it."""
    if is_off_scale(image):
        low, high = image.aminmax()
        image = (image - low) / (high - low)
    return to_image(to_float(image))
