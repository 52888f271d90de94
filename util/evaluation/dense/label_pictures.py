"""Predicted label maps, as files and as something to look at."""

import argparse
import os
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from util.data.dense.ade20k import Labels
from util.data.images import to_float
from util.evaluation.dense.folder import for_each_image
from util.evaluation.pictures import BACKGROUND, HEADER, INK, MARGIN, picture_sheet, to_image

LEAST_SIDE = 384  # pixels of an overlay's longer side, about: smaller images are enlarged
MOST_NAMES = 12  # in an overlay's legend


def overlay(image: Tensor, classes: Tensor, labels: Labels, opacity: float = 0.6) -> Image.Image:
    """An image [C, H, W] under the colours of its classes [H, W]; what is nothing stays clear."""
    colours = labels.colours()[classes.cpu().numpy()]
    shown = np.asarray(to_image(to_float(image)))
    mixed = opacity * colours + (1 - opacity) * shown
    is_nothing = (classes < 0).cpu().numpy()[..., None]
    return Image.fromarray(np.where(is_nothing, shown, mixed.round()).astype(np.uint8))


def overlay_with_legend(image: Tensor, classes: Tensor, labels: Labels) -> Image.Image:
    """An `overlay`, a small one enlarged, above the names of the classes in it and their shares of
    the pixels, the largest first."""
    picture = overlay(image, classes, labels)
    scale = max(1, round(LEAST_SIDE / max(picture.size)))
    picture = picture.resize([scale * side for side in picture.size], Image.Resampling.NEAREST)
    counts = Counter(classes[classes >= 0].flatten().tolist()).most_common(MOST_NAMES)
    names = [f"{labels.classes[k]} {100 * count / classes.numel():.2g} %" for k, count in counts]
    key = legend(names, labels.colours()[[k for k, _ in counts]], max(picture.width, LEAST_SIDE))
    sheet = Image.new("RGB", (key.width, picture.height + key.height), BACKGROUND)
    sheet.paste(picture)
    sheet.paste(key, (0, picture.height))
    return sheet


def legend(names: Sequence[str], colours: np.ndarray, width: int) -> Image.Image:
    """Names beside their colours [K, 3], in rows of at most `width` pixels."""
    font, places = ImageFont.load_default(size=13), []
    x, y = MARGIN, MARGIN
    for name in names:
        wide = 17 + int(font.getlength(name)) + 2 * MARGIN
        if x + wide > width and x > MARGIN:
            x, y = MARGIN, y + HEADER
        places.append((x, y))
        x += wide
    sheet = Image.new("RGB", (width, y + HEADER + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for (x, y), name, colour in zip(places, names, colours.tolist(), strict=True):
        draw.rectangle((x, y + 2, x + 12, y + 14), fill=tuple(colour), outline=INK)
        draw.text((x + 17, y), name, INK, font)
    return sheet


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
        overlay_with_legend(image, classes, labels).save(overlay_path)

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
    key = legend(labels.classes, labels.colours()[:-1], table.width)
    sheet = Image.new("RGB", (table.width, table.height + key.height), BACKGROUND)
    sheet.paste(table)
    sheet.paste(key, (0, table.height))
    return sheet
