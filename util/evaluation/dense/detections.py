"""Detections of any folder's images, as JSON and as pictures."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from util.cluster import distributed
from util.data.dense.coco import Categories
from util.data.dense.jitter import FitCanvas
from util.data.dense.rle import decode_rle
from util.data.images import to_float
from util.evaluation.charts import COLOURS
from util.evaluation.dense.coco_ap import (
    PREDICTIONS,
    as_coco,
    gather_predictions,
    on_original,
    write_predictions,
)
from util.evaluation.dense.folder import for_each_image
from util.evaluation.pictures import to_image

MIN_SIDE = 384  # pixels; smaller images are drawn larger, so that names can be read
OPACITY = 0.45  # of masks


@torch.no_grad()
def write_detections(
    args: argparse.Namespace, categories: Categories, model: nn.Module,
    detect: Callable[[list[Tensor]], list[dict[str, Tensor]]], device: torch.device,
) -> dict[str, int]:  # fmt: skip
    """Write pictures/NAME.png for each image of --predict, and predictions.json of all.

    The JSON has COCO's format of results, with the image's `file_name` as its id.

    Args:
        model: put into eval mode. detect: images that fit the canvas -> detections on them.

    Returns:
        What `for_each_image` does.
    """
    model.eval()
    fit, own = FitCanvas(args.input_size), []

    def write(path: str, name: str, image: Tensor) -> None:
        resized, (_, *original) = fit(image, (0, []))
        (found,) = detect([resized])
        found = {name: values.cpu() for name, values in found.items()}
        found = on_original(found, tuple(resized.shape[1:]), tuple(original))
        own.extend(as_coco(found, path, categories.ids))
        picture = os.path.join(args.output_dir, "pictures", f"{name}.png")
        os.makedirs(os.path.dirname(picture), exist_ok=True)
        draw_detections(image, found, categories.names, args.min_score).save(picture)

    counts = for_each_image(args, device, write)
    predictions = gather_predictions(own)
    if distributed.is_main():
        write_predictions(predictions, os.path.join(args.output_dir, PREDICTIONS))
    return counts


def draw_detections(
    image: Tensor, found: Mapping[str, Any], names: Sequence[str], min_score: float = 0.5
) -> Image.Image:
    """An image with what was found in it, each object in a colour of its own, the surest on top.

    Args:
        image: [C, H, W], uint8 or in 0..1. found: `boxes` [n, 4], `masks` [n, H, W] or n RLEs,
            `labels` [n] from 1 on, and `scores` [n], descending; or none of those for the truth.
        names: of the labels. min_score: what is less sure is not drawn.
    """
    picture = to_image(to_float(image))
    scale = max(1, -(-MIN_SIDE // max(picture.size)))
    scores = found.get("scores")
    shown = [
        number
        for number in reversed(range(len(found["labels"])))
        if scores is None or float(scores[number]) >= min_score
    ]
    pixels = np.asarray(picture).astype(np.float32)
    for number in shown:
        mask = found["masks"][number]
        mask = decode_rle(mask) if isinstance(mask, dict) else mask.numpy().astype(bool)
        colour = np.array(COLOURS[number % len(COLOURS)], dtype=np.float32)
        pixels[mask] += OPACITY * (colour - pixels[mask])
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    picture = picture.resize([side * scale for side in picture.size], Image.NEAREST)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    for number in shown:
        box = [float(x) * scale for x in found["boxes"][number]]
        colour, text = COLOURS[number % len(COLOURS)], names[int(found["labels"][number]) - 1]
        if scores is not None:
            text += f" {float(scores[number]):.2f}"
        draw.rectangle(box, outline=colour, width=2)
        left, top, right, bottom = draw.textbbox((box[0] + 2, max(box[1] - 15, 0)), text, font)
        draw.rectangle((left - 2, top - 1, right + 2, bottom + 1), fill=colour)
        draw.text((left, max(box[1] - 15, 0)), text, "white", font)
    return picture
