"""Small files in COCO's format, and what is read from them."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image

from util.data.dense.coco import load_coco

BOX = [[2, 1, 8, 1, 8, 6, 2, 6]]
NOTHING = object()  # a key that is not there


def annotation(number: int, image_id: int = 1, category_id: int = 7, **changes) -> dict:
    about = {
        "id": number, "image_id": image_id, "category_id": category_id, "bbox": [2, 1, 6, 5],
        "area": 30, "iscrowd": 0, "segmentation": BOX,
    }  # fmt: skip
    return {key: value for key, value in (about | changes).items() if value is not NOTHING}


def content(annotations: list[dict], **changes) -> dict:
    images = [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 12} for i in (5, 1)]
    categories = [{"id": 90, "name": "bear"}, {"id": 7, "name": "ant"}]
    return {"images": images, "categories": categories, "annotations": annotations} | changes


def write_images(folder: Path) -> None:
    """1.png and 5.png, 8 x 12 pixels of that value."""
    for i in (1, 5):
        Image.fromarray(np.full((8, 12, 3), i, dtype=np.uint8)).save(folder / f"{i}.png")


def load(folder: Path, data: dict | str | bytes, split="train", categories=None, empty=True):
    text = json.dumps(data) if isinstance(data, dict) else data
    (folder / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    args = Namespace(data_path=str(folder), in_chans=3, empty_images=empty)
    for name in ("train", "val"):
        setattr(args, f"{name}_json", "a.json")
        setattr(args, f"{name}_images", ".")
    return load_coco(args, split, categories)


def lines_with(caplog, words: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if words in r.getMessage()]
