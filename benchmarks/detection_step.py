"""Time and memory of a training step of Mask R-CNN on ViTDet, per image, and what they come to.

    python benchmarks/detection_step.py --model vit_base_patch16 --amp none bf16
    python benchmarks/detection_step.py --grad_checkpointing

The step is main_detection.py's, on random images with random objects. FLOPs are counted and the
bytes that the backward pass needs are those that autograd keeps, so both hold for GPUs, too; how
long a run takes there is calculated from a peak rate and the share of it that is assumed.
"""

import argparse
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import main_detection
from benchmarks.step_facts import as_main_trains, measure_and_calculate, step_facts, step_parser
from engine_detection import train_step
from util.flags.parser import number

STEPS, BATCH = 184_375, 64  # published


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = step_parser(__doc__)
    parser.add_argument("--objects", type=number(int, 1), default=7,
        help="per image; COCO has seven")  # fmt: skip
    parser.set_defaults(images=1, input_size=1024, classes=80, rounds=2)
    return parser.parse_args(argv)


def random_batch(args: argparse.Namespace) -> tuple[list, list]:
    """Random images that fill the canvas, with rectangles for objects, as a model is given them."""
    side, draw = args.input_size, torch.Generator().manual_seed(0)
    images, targets = [], []
    for _ in range(args.images):
        images.append(torch.randint(256, (3, side, side), dtype=torch.uint8, generator=draw))
        corners = (0.8 * side * torch.rand(args.objects, 2, generator=draw)).floor()
        sides = (8 + 0.2 * side * torch.rand(args.objects, 2, generator=draw)).floor()
        boxes = torch.cat([corners, (corners + sides).clamp(max=side)], dim=1)
        masks = torch.zeros(args.objects, side, side, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        labels = torch.randint(1, args.classes + 1, (args.objects,), generator=draw)
        targets.append(dict(boxes=boxes, labels=labels, masks=masks))
    return images, targets


def build(args: argparse.Namespace, amp: str):
    """The main's training step, and its FLOPs, kept bytes and bytes of state."""
    main_detection.require_evaluator = lambda: None  # a step evaluates nothing
    own = as_main_trains(main_detection, args, amp)
    batch = main_detection.to_device(*random_batch(args), own.device)

    def loss() -> torch.Tensor:
        own.drop_paths.draw(0, 0, args.images, own.device)
        with own.precision.autocast():
            return sum(own.model(*batch).values())

    def train(num_steps: int) -> None:
        for step in range(num_steps):
            own.drop_paths.draw(step, 0, args.images, own.device)
            train_step(own.model, [batch], 1, own.optimizer, own.precision)

    return train, step_facts(own.model, loss)


if __name__ == "__main__":
    measure_and_calculate(parse_args(), build, "image", STEPS, BATCH)
