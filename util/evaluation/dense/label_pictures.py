"""Predicted label maps, as files and as something to look at."""

import argparse
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from util.data.dense.ade20k import Labels
from util.data.images import to_float
from util.evaluation.dense.folder import for_each_image
from util.evaluation.pictures import BACKGROUND, HEADER, INK, MARGIN, picture_sheet, to_image


def overlay(image: Tensor, classes: Tensor, labels: Labels, opacity: float = 0.6) -> Image.Image:
    """An image [C, H, W] under the colours of its classes [H, W]; what is nothing stays clear."""
    colours = labels.colours()[classes.cpu().numpy()]
    shown = np.asarray(to_image(to_float(image)))
    mixed = opacity * colours + (1 - opacity) * shown
    is_nothing = (classes < 0).cpu().numpy()[..., None]
    return Image.fromarray(np.where(is_nothing, shown, mixed.round()).astype(np.uint8))


@torch.no_grad()
def write_predictions(
    args: argparse.Namespace, labels: Labels, model: nn.Module,
    predict: Callable[[Tensor], Tensor], device: torch.device,
) -> dict[str, int]:  # fmt: skip
    """Write labels/NAME.png and overlays/NAME.png for each image of --predict.

    Args:
        model: put into eval mode. predict: images [1, C, H, W] as they are -> classes [1, H, W].

    Returns:
        What `for_each_image` does.
    """
    model.eval()

    def write(_: str, name: str, image: Tensor) -> None:
        classes = predict(image[None].to(device))[0].cpu()
        label_path, overlay_path = (
            os.path.join(args.output_dir, kind, f"{name}.png") for kind in ("labels", "overlays")
        )
        for path in (label_path, overlay_path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        labels.write(label_path, classes)
        overlay(image, classes, labels).save(overlay_path)

    return for_each_image(args, device, write)


def comparison_sheet(
    images: Sequence[Tensor], columns: dict[str, Sequence[Tensor]], labels: Labels
) -> Image.Image:
    """One row an image [C, H, W]: itself, then its maps [H, W] by the columns' names; a legend."""
    pictures = {"image": [to_image(to_float(image)) for image in images]}
    for name, maps in columns.items():
        pairs = zip(images, maps, strict=True)
        pictures[name] = [overlay(image, classes, labels, 1.0) for image, classes in pairs]
    table = picture_sheet(pictures)
    per_row = max(1, (table.width - MARGIN) // 130)
    legend_rows = -(-len(labels.classes) // per_row)
    height = table.height + legend_rows * HEADER + MARGIN
    sheet = Image.new("RGB", (table.width, height), BACKGROUND)
    sheet.paste(table)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for i, (name, colour) in enumerate(zip(labels.classes, labels.colours(), strict=False)):
        x, y = MARGIN + i % per_row * 130, table.height + i // per_row * HEADER
        draw.rectangle((x, y + 3, x + 12, y + 15), fill=tuple(map(int, colour)))
        draw.text((x + 17, y + 1), name[:16], INK, font)
    return sheet
