"""How good masks of 28 x 28 pixels in perfect boxes can be, and what pasting and encoding cost.

    python benchmarks/mask_ceiling.py
    python benchmarks/mask_ceiling.py --objects 100 --megapixels 12

Round and star-shaped objects on images of 640 x 480, which a detector sees 1.6 times as large: the
head that has learnt its targets perfectly is pasted back into the image. Targets and pasting are
this project's or torchvision's; ViTDet's own targets are the polygon drawn in its box. IoU is with
the object's own mask; AP is COCO's of those masks, the most that a detector can reach. Seconds and
peak memory are of 100 detections on one image.
"""

import argparse
import multiprocessing
import pathlib
import resource
import sys
import time

import numpy as np
import torch
from torchvision.models.detection import roi_heads

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from heads.rois import mask_targets
from util.data.dense.jitter import View
from util.data.dense.rle import compress_counts, encode_rle, fill_polygons, segmentation, to_mask
from util.evaluation.dense.coco_ap import KINDS, average_precisions
from util.evaluation.dense.pasting import encode_mask, paste_mask
from util.flags.args import number

SIZE, SCALE, CELLS = (480, 640), 1.6, 28
RADII = {"small": (5, 15), "medium": (18, 45), "large": (58, 150)}  # pixels
ROUND, STARS = 0.25, 0.45  # how far a radius varies


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--objects", type=number(int, 1), default=300, help="of each size")
    add("--megapixels", type=number(float, 0.1), default=12.0, help="of the large image")
    add("--detections", type=number(int, 1), default=100, help="on it")
    add("--threads", type=number(int, 1), default=1)
    return parser


def outline(rng: np.random.Generator, radii: tuple[float, float]) -> list[float]:
    """A polygon around a random place of the image, its radius a sum of a few waves."""
    radius, corners = rng.uniform(*radii), 60
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    depth = rng.choice([ROUND, STARS]) / np.arange(2, 6)
    waves = [d * np.cos(k * turn + rng.uniform(0, 6.3)) for k, d in enumerate(depth, 2)]
    around = radius * (1 + np.sum(waves, axis=0))
    points = np.stack([around * np.cos(turn), around * np.sin(turn) * rng.uniform(0.6, 1)], axis=1)
    low, high = points.min(0), points.max(0)
    room = np.array(SIZE[::-1]) - (high - low)
    return (points - low + rng.uniform(0, 1, 2) * np.maximum(room, 0)).ravel().tolist()


FIRST = torch.zeros(1, dtype=torch.int64)


def torchvisions_targets(seen: dict, points: np.ndarray) -> torch.Tensor:
    return roi_heads.project_masks_on_boxes(seen["masks"], seen["boxes"], FIRST, CELLS)[0]


def own_targets(seen: dict, points: np.ndarray) -> torch.Tensor:
    return mask_targets(seen["masks"], seen["boxes"], FIRST, CELLS)[0]


def drawn_in_the_box(seen: dict, points: np.ndarray) -> torch.Tensor:
    box = seen["boxes"][0].double().numpy()
    return torch.from_numpy(
        fill_polygons([(points - box[:2]) * CELLS / (box[2:] - box[:2])], CELLS, CELLS)
    )


def torchvisions_pasting(mask: np.ndarray, box: list[float], size: tuple[int, int]) -> np.ndarray:
    pasted = roi_heads.paste_masks_in_image(
        torch.from_numpy(mask)[None, None], torch.tensor([box]), size
    )
    return (pasted[0, 0] > 0.5).numpy()


TARGETS = {
    "torchvision's": torchvisions_targets,
    "at centres": own_targets,
    "drawn in box": drawn_in_the_box,
}
PASTING = {"torchvision's": torchvisions_pasting, "at centres": paste_mask}


def ceilings(polygons: list[list[float]], targets, paste) -> tuple[float, float, float]:
    """Mean IoU, AP and mean relative area of the masks that a perfect head has."""
    resized = tuple(round(side * SCALE) for side in SIZE)
    view = View(SIZE, resized, 0, 0, resized, flipped=False)
    annotations, predictions, ious, areas = [], [], [], []
    for index, polygon in enumerate(polygons, 1):
        truth = to_mask([polygon], *SIZE)
        seen = view.target([(1, [polygon], True)])
        head = targets(seen, np.reshape(polygon, (-1, 2)) * SCALE).float().numpy()
        box = (seen["boxes"][0] / SCALE).tolist()
        found = paste(head, box, SIZE)
        ious.append((truth & found).sum() / (truth | found).sum())
        areas.append(found.sum() / truth.sum())
        rle = encode_rle(found)
        entry = dict(image_id=index, category_id=1, bbox=[*box[:2], 1, 1], score=0.9)
        predictions.append(
            entry | {"segmentation": rle | {"counts": compress_counts(rle["counts"])}}
        )
        about = segmentation(truth) | {"segmentation": [polygon]}
        annotations.append(about | {"id": index, "image_id": index, "category_id": 1})
    known = {
        "images": [dict(id=a["id"], height=SIZE[0], width=SIZE[1]) for a in annotations],
        "categories": [{"id": 1, "name": "object"}], "annotations": annotations,
    }  # fmt: skip
    found = average_precisions(known, predictions)[f"{KINDS['segm']}_AP"]
    return float(np.mean(ious)), found, float(np.mean(areas))


def compare_ceilings(args: argparse.Namespace) -> None:
    print(f"{'targets':16s}{'pasting':16s}{'objects':10s}{'IoU':>8s}{'area':>8s}{'AP':>8s}")
    for name, radii in RADII.items():
        rng = np.random.default_rng(0)
        polygons = [outline(rng, radii) for _ in range(args.objects)]
        for targets, make in TARGETS.items():
            for pasting, paste in PASTING.items():
                iou, ap, area = ceilings(polygons, make, paste)
                print(f"{targets:16s}{pasting:16s}{name:10s}{iou:8.3f}{area:8.3f}{ap:8.1f}")


def detections(count: int, size: tuple[int, int]) -> list[tuple[np.ndarray, list[float]]]:
    """Round masks in boxes from a thirtieth of the image's height to two thirds of it."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(*[np.linspace(-1, 1, CELLS)] * 2, indexing="ij")
    mask = (1 / (1 + np.exp(-6 * (1 - np.hypot(x, y))))).astype(np.float32)
    found = []
    for _ in range(count):
        sides = rng.uniform(size[0] / 30, size[0] / 1.5, 2)
        corner = rng.uniform(0, 1, 2) * (np.array(size[::-1]) - sides)
        found.append((mask, [*corner.tolist(), *(corner + sides).tolist()]))
    return found


def cost(case: str, args: argparse.Namespace, size: tuple[int, int]) -> None:
    """CPU seconds and memory beyond what there was before, of one image's detections.

    In a process of its own: a peak stays a process's for life.
    """
    torch.set_num_threads(args.threads)
    examples, act = detections(args.detections, size), COSTS[case]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    act(examples, size)
    seconds = time.process_time() - started
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{case:40s}{size[0]} x {size[1]}{seconds:9.3f} s{peak:9.1f} MiB more")


def keep_all(examples, size) -> None:
    """As it was done: all masks of an image at once, each encoded as a whole."""
    masks = np.zeros((len(examples), *size), dtype=bool)
    for pasted, (mask, box) in zip(masks, examples, strict=True):
        pasted[:] = torchvisions_pasting(mask, box, size)
    for mask in masks:
        compress_counts(encode_rle(mask)["counts"])


def keep_boxes(examples, size) -> None:
    for mask, box in examples:
        encode_mask(mask, box, size)


COSTS = {
    "pasted and encoded in the box": keep_boxes,
    "pasted by torchvision, encoded whole": keep_all,
}


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    side = (args.megapixels * 1e6 / 12) ** 0.5
    for size in (SIZE, (round(3 * side), round(4 * side))):
        for case in COSTS:
            process = multiprocessing.get_context("spawn").Process(
                target=cost, args=(case, args, size)
            )
            process.start()
            process.join()
    compare_ceilings(args)


if __name__ == "__main__":
    main(get_args_parser().parse_args())
