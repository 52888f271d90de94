"""COCO's average precision of boxes and masks, from predictions that can be scored elsewhere too.

The numbers are those of COCO's own evaluator, in percent, computed by faster-coco-eval.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from util.cluster import agreement, distributed
from util.errors import UsageError
from util.evaluation.dense.pasting import encode_mask

# COCO's twelve, in its order: over IoUs of 0.5 to 0.95; at 0.5 and 0.75; of small, medium and large
# objects; recall with 1, 10 and 100 predictions an image; recall by size.
NUMBERS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100", "AR_small",
    "AR_medium", "AR_large",
)  # fmt: skip
KINDS = {"bbox": "box", "segm": "mask"}
PREDICTIONS = "predictions.json"


def require_evaluator() -> None:
    """Raises: UsageError: faster-coco-eval is not installed."""
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError:
        raise UsageError(
            "COCO's AP is computed by faster-coco-eval: pip install faster-coco-eval"
        ) from None


Detected = dict[str, Any]  # boxes [n, 4], labels [n], scores [n], masks: n compressed RLEs


def on_original(
    detection: Mapping[str, Tensor], resized: tuple[int, int], original: tuple[int, int]
) -> Detected:
    """A detection on a resized image -> on the original one, its masks as RLEs.

    Args:
        detection: on the CPU; `boxes` [n, 4], `labels`, `scores` and `masks` [n, 1, m, m],
            probabilities inside the box. resized, original: (height, width) in pixels.
    """
    (new_height, new_width), (height, width) = resized, original
    scale = torch.tensor([width / new_width, height / new_height] * 2)
    boxes = detection["boxes"].float() * scale
    masks = zip(detection["masks"][:, 0].float().numpy(), boxes.tolist(), strict=True)
    rles = [encode_mask(mask, box, original) for mask, box in masks]
    found = {name: detection[name] for name in ("labels", "scores")}
    return found | {"boxes": boxes, "masks": rles}


def as_coco(detection: Detected, image_id: int | str, category_ids: Sequence[int]) -> list[dict]:
    """A detection on the original image as entries of COCO's format of results."""
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
            "score": round(score, 5),
            "segmentation": rle,
        }
        for (x0, y0, x1, y1), label, score, rle in zip(
            detection["boxes"].double().numpy().round(2).tolist(), detection["labels"].tolist(),
            detection["scores"].tolist(), detection["masks"], strict=True,
        )
    ]  # fmt: skip


def gather_predictions(own: list[dict]) -> list[dict] | None:
    """All ranks' predictions by image id, on rank 0; None on the others."""
    if not distributed.is_distributed():
        return own
    parts = [None] * distributed.world_size() if distributed.is_main() else None
    dist.gather_object(own, parts, group=distributed.cpu_group())
    if parts is None:
        return None
    return sorted((p for part in parts for p in part), key=lambda p: p["image_id"])


def score(truth: dict, own: list[dict], output_dir: str) -> dict[str, float]:
    """COCO's twelve numbers of boxes and of masks over all ranks' predictions, in percent.

    Rank 0 computes them and keeps the predictions in `output_dir`; NaN stands for what there is
    no object for. All ranks call this, and get the numbers.

    Args:
        truth: in COCO's format; an annotation's `segmentation` may be None. own: this rank's
            entries, no image on two ranks.
    """
    predictions = gather_predictions(own)

    def evaluate() -> dict[str, float]:
        write_predictions(predictions, os.path.join(output_dir, PREDICTIONS))
        return average_precisions(truth, predictions)

    return agreement.main_does(evaluate)


def write_predictions(predictions: list[dict], path: str) -> None:
    """Write COCO's format of results, whole or not at all."""
    with open(f"{path}.tmp", "w") as file:
        json.dump(predictions, file, separators=(",", ":"))
    os.replace(f"{path}.tmp", path)


def average_precisions(truth: dict, predictions: list[dict]) -> dict[str, float]:
    """`box_AP`, `box_AP50`, … `mask_AR_large`, in percent; NaN for masks of which none is known.

    Predictions of a category that the truth's file does not list count for nothing, as in COCO's
    own.
    """
    listed = {category["id"] for category in truth["categories"]}
    predictions = [entry for entry in predictions if entry["category_id"] in listed]
    truth, predictions = _renumbered(truth, predictions)
    return {
        f"{name}_{number}": value
        for kind, name in KINDS.items()
        for number, value in _twelve(truth, predictions, kind).items()
    }


def _renumbered(truth: dict, predictions: list[dict]) -> tuple[dict, list[dict]]:
    """With ids from 1 on: evaluators take 0 for none, and no number beyond 64 bits."""
    images, categories = (
        {entry["id"]: number for number, entry in enumerate(truth[part], 1)}
        for part in ("images", "categories")
    )

    def renumbered(entries: list[dict]) -> list[dict]:
        return [
            entry | {
                "id": number, "image_id": images[entry["image_id"]],
                "category_id": categories[entry["category_id"]],
            }
            for number, entry in enumerate(entries, 1)
        ]  # fmt: skip

    known = {
        "images": [image | {"id": images[image["id"]]} for image in truth["images"]],
        "categories": [c | {"id": categories[c["id"]]} for c in truth["categories"]],
        "annotations": renumbered(truth["annotations"]),
    }
    return known, renumbered(predictions)


def _twelve(truth: dict, predictions: list[dict], kind: str) -> dict[str, float]:
    """COCO's twelve numbers of one kind, in percent."""
    from faster_coco_eval import COCO, COCOeval_faster

    objects, entries = truth["annotations"], [dict(entry) for entry in predictions]
    if kind == "segm":
        if objects and all(about["segmentation"] is None for about in objects):
            return dict.fromkeys(NUMBERS, float("nan"))
        objects = [_with_mask(about) for about in objects]
        for entry in entries:  # as COCO's own: an object's size is that of its mask
            del entry["bbox"]
    known = COCO(truth | {"annotations": objects})
    evaluation = COCOeval_faster(known, known.loadRes(entries), kind, print_function=_quiet)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats = np.asarray(evaluation.stats[: len(NUMBERS)], dtype=np.float64)
    stats = np.where(stats < 0, np.nan, 100 * stats)
    return dict(zip(NUMBERS, stats.tolist(), strict=True))


def _with_mask(about: dict) -> dict:
    """An object without a mask is ignored where it is hit, as a crowd that fills its box."""
    if about["segmentation"] is not None:
        return about
    x, y, width, height = about["bbox"]
    box = [x, y, x + width, y, x + width, y + height, x, y + height]
    return about | {"segmentation": [box], "iscrowd": 1}


def _quiet(*_) -> None:
    pass
