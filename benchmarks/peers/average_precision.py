"""COCO's evaluation: our AP beside pycocotools', and our masks in the image beside torchvision's.

On objects and predictions that are drawn at random: ovals, as polygons of the truth and as run
lengths of what is predicted, of which a share lies on an object.
"""

import argparse
import contextlib
import io
import math
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.peers.pairs import Entry, Pair, importing, repeated

HEIGHT, WIDTH = 480, 640
FULL = dict(images=100, objects=7, predictions=100, classes=80)
TINY = dict(images=4, objects=3, predictions=6, classes=3)


def pairs(args: argparse.Namespace) -> list[Pair]:
    work = SimpleNamespace(threads=args.threads, **(TINY if args.tiny else FULL))
    needs = ("pycocotools", "faster_coco_eval")
    count = f"{work.predictions} predictions an image"
    scored = Pair(f"COCO's AP of boxes and masks, {work.images} images, {count}", "evaluation", [
        Entry("ours", ours, (work,), None, "computed by faster-coco-eval", needs),
        Entry("pycocotools", original, (work,), 3.0, needs=needs),
    ])  # fmt: skip
    pasted = Pair(f"{work.predictions} masks of 28 x 28 as COCO's run lengths", "image", [
        Entry("ours", our_masks, (work,), needs=needs),
        Entry("torchvision and pycocotools", their_masks, (work,), 5.0,
              "its masks are not at pixel centres, so some pixels at the edges differ", needs),
    ])  # fmt: skip
    return [scored, pasted]


def oval(x: float, y: float, width: float, height: float) -> list[float]:
    """A polygon x0 y0 x1 y1 … in a box."""
    angles = np.linspace(0, 2 * math.pi, 16, endpoint=False)
    points = np.stack([x + width * (1 + np.cos(angles)) / 2, y + height * (1 + np.sin(angles)) / 2])
    return points.T.round(2).flatten().tolist()


def run_lengths(polygon: list[float]) -> dict:
    from pycocotools import mask

    rle = mask.frPyObjects([polygon], HEIGHT, WIDTH)[0]
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def drawn(work: SimpleNamespace) -> tuple[dict, list[dict]]:
    """A set's truth and predictions in COCO's formats."""
    rng = np.random.default_rng(0)
    known, predictions = [], []
    for image in range(1, work.images + 1):
        boxes, labels = [], []
        for _ in range(work.objects):
            width, height = rng.uniform(10, 200, 2)
            boxes.append((rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height),
                          width, height))  # fmt: skip
            labels.append(int(rng.integers(1, work.classes + 1)))
            known.append(dict(
                id=len(known) + 1, image_id=image, category_id=labels[-1], iscrowd=0,
                bbox=[round(side, 2) for side in boxes[-1]], segmentation=[oval(*boxes[-1])],
                area=round(math.pi / 4 * width * height, 2),
            ))  # fmt: skip
        for number in range(work.predictions):
            near = number % work.objects
            spread = rng.choice([0.03, 0.1, 0.5])
            x, y, width, height = (
                side + spread * rng.normal() * size
                for side, size in zip(boxes[near], boxes[near][2:] * 2, strict=True)
            )
            box = (float(x), float(y), max(float(width), 4.0), max(float(height), 4.0))
            label = labels[near] if rng.random() < 0.7 else int(rng.integers(1, work.classes + 1))
            predictions.append(dict(
                image_id=image, category_id=label, bbox=[round(side, 2) for side in box],
                score=round(float(rng.random() * (1 - spread)), 5),
                segmentation=run_lengths(oval(*box)),
            ))  # fmt: skip
    images = [dict(id=i, height=HEIGHT, width=WIDTH) for i in range(1, work.images + 1)]
    categories = [dict(id=i, name=f"class {i}") for i in range(1, work.classes + 1)]
    return dict(images=images, categories=categories, annotations=known), predictions


def ours(work: SimpleNamespace):
    """What main_detection makes of truth and predictions."""
    with importing() as libraries:
        from faster_coco_eval import COCO  # noqa: F401

        from util.evaluation.dense.coco_ap import average_precisions

    truth, predictions = drawn(work)
    found = average_precisions(truth, predictions)
    run = repeated(lambda: average_precisions(truth, predictions))
    return run, libraries | in_words(found["box_AP"], found["mask_AP"])


def in_words(box: float, mask: float) -> dict[str, str]:
    return {"box AP": f"{box:.6f}", "mask AP": f"{mask:.6f}"}


def original(work: SimpleNamespace):
    """COCO's own evaluator; for masks a prediction's size is its mask's, so its box is left out."""
    with importing() as libraries:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    truth, predictions = drawn(work)

    def evaluated(kind: str) -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            known = COCO()
            known.dataset = truth | {"annotations": [dict(a) for a in truth["annotations"]]}
            known.createIndex()
            left = ("bbox",) if kind == "segm" else ()
            entries = [{k: v for k, v in p.items() if k not in left} for p in predictions]
            evaluation = COCOeval(known, known.loadRes(entries), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return 100 * float(evaluation.stats[0])

    found = in_words(evaluated("bbox"), evaluated("segm"))
    return repeated(lambda: (evaluated("bbox"), evaluated("segm"))), libraries | found


# ---------------------------------------------------------------------- masks in the image


def soft_masks(work: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks [n, 1, 28, 28], probabilities of an oval, and their boxes [n, 4] in pixels."""
    draw = torch.Generator().manual_seed(0)
    place = (torch.arange(28) + 0.5) / 14 - 1
    distance = (place[:, None].square() + place.square()).sqrt()
    sharp = 5 + 10 * torch.rand(work.predictions, 1, 1, 1, generator=draw)
    corners = torch.rand(work.predictions, 2, generator=draw) * torch.tensor([WIDTH, HEIGHT]) * 0.6
    sides = 10 + 240 * torch.rand(work.predictions, 2, generator=draw)
    boxes = torch.cat([corners, (corners + sides).clamp(max=torch.tensor([WIDTH, HEIGHT]))], 1)
    return ((0.8 - distance) * sharp).sigmoid(), boxes


def our_masks(work: SimpleNamespace):
    with importing() as libraries:
        from util.evaluation.dense.coco_ap import on_original

    torch.set_num_threads(work.threads)
    masks, boxes = soft_masks(work)
    labels = torch.ones(len(masks), dtype=torch.long)
    detection = dict(boxes=boxes, masks=masks, labels=labels, scores=labels.float())

    def encoded() -> list[dict]:
        return on_original(detection, (HEIGHT, WIDTH), (HEIGHT, WIDTH))["masks"]

    return repeated(encoded), libraries | _pixels(encoded())


def their_masks(work: SimpleNamespace):
    """As torchvision's reference evaluation does it."""
    with importing() as libraries:
        from pycocotools import mask
        from torchvision.models.detection.roi_heads import paste_masks_in_image

    torch.set_num_threads(work.threads)
    masks, boxes = soft_masks(work)

    def encoded() -> list[dict]:
        pasted = paste_masks_in_image(masks, boxes, (HEIGHT, WIDTH)).numpy() > 0.5
        rles = [
            mask.encode(np.array(one[0, :, :, None], dtype=np.uint8, order="F"))[0]
            for one in pasted
        ]
        return [rle | {"counts": rle["counts"].decode("utf-8")} for rle in rles]

    return repeated(encoded), libraries | _pixels(encoded())


def _pixels(found: list[dict]) -> dict[str, str]:
    from pycocotools import mask

    return {"pixels": f"{mask.area(found).sum() / 1e6:.3f} M"}
