"""COCO's average precision of boxes and masks, from predictions that can be scored elsewhere too.

The numbers are those of COCO's own evaluator, in percent, computed by faster-coco-eval.
"""

import json
import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from util.cluster import agreement, distributed
from util.data.dense.rle import compress_counts, encode_rle
from util.errors import UsageError

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


def on_original(
    detection: dict[str, Tensor], resized: tuple[int, int], original: tuple[int, int]
) -> dict[str, Tensor]:
    """A detection on a resized image -> on the original one, its masks boolean [n, H, W].

    Args:
        detection: `boxes` [n, 4], `labels`, `scores` and `masks` [n, 1, m, m], probabilities
            inside the box. resized, original: (height, width) in pixels.
    """
    boxes = detection["boxes"].cpu()
    (new_height, new_width), (height, width) = resized, original
    boxes = boxes * torch.tensor([width / new_width, height / new_height] * 2)
    masks = torch.zeros((len(boxes), height, width), dtype=torch.bool)
    for number, mask in enumerate(detection["masks"].cpu()):  # as numbers, all of them are large
        pasted = paste_masks_in_image(mask[None], boxes[number : number + 1], original)
        masks[number] = pasted[0, 0] > 0.5
    found = {name: detection[name].cpu() for name in ("labels", "scores")}
    return found | {"boxes": boxes, "masks": masks}


def as_coco(
    detection: dict[str, Tensor], image_id: int | str, category_ids: Sequence[int]
) -> list[dict]:
    """A detection on the original image as entries of COCO's format of results."""
    entries = []
    boxes, masks = detection["boxes"].double().numpy(), detection["masks"].numpy()
    for number, (x0, y0, x1, y1) in enumerate(boxes.round(2).tolist()):
        rle = encode_rle(masks[number])
        entries.append({
            "image_id": image_id,
            "category_id": category_ids[int(detection["labels"][number]) - 1],
            "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
            "score": round(float(detection["scores"][number]), 5),
            "segmentation": {"size": rle["size"], "counts": compress_counts(rle["counts"])},
        })  # fmt: skip
    return entries


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
        truth: in COCO's format. own: this rank's entries, no image on two ranks.
    """
    predictions = gather_predictions(own)

    def evaluate() -> dict[str, float]:
        write_predictions(predictions, os.path.join(output_dir, PREDICTIONS))
        return average_precisions(truth, predictions)

    return agreement.main_does(evaluate)


def write_predictions(predictions: list[dict], path: str) -> None:
    with open(f"{path}.tmp", "w") as file:
        json.dump(predictions, file, separators=(",", ":"))
    os.replace(f"{path}.tmp", path)


def average_precisions(truth: dict, predictions: list[dict]) -> dict[str, float]:
    """`box_AP`, `box_AP50`, … `mask_AR_large`, in percent."""
    from faster_coco_eval import COCO, COCOeval_faster

    numbers = {}
    known = COCO(truth)
    for kind, name in KINDS.items():
        entries = [dict(entry) for entry in predictions]  # the library writes into them
        if kind == "segm":  # as COCO's own: an object's size is that of its mask
            for entry in entries:
                del entry["bbox"]
        evaluation = COCOeval_faster(known, known.loadRes(entries), kind, print_function=_quiet)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats = np.asarray(evaluation.stats[: len(NUMBERS)], dtype=np.float64)
        stats = np.where(stats < 0, np.nan, 100 * stats)
        numbers |= {f"{name}_{n}": float(v) for n, v in zip(NUMBERS, stats, strict=True)}
    return numbers


def _quiet(*_) -> None:
    pass
