"""Time and memory of a training step of UperNet, per crop, and what they come to on GPUs.

    python benchmarks/segmentation_step.py --model vit_base_patch16 --amp none bf16

The step is main_segmentation.py's, on random crops. FLOPs are counted and the bytes that the
backward pass needs are those that autograd keeps, so both hold for GPUs, too; how long a run takes
there is calculated from a peak rate and the share of it that is assumed to be reached.
"""

import argparse
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import main_segmentation
from benchmarks.step_facts import as_main_trains, measure_and_calculate, step_facts, step_parser
from engine_segmentation import pixel_loss, train_step
from util.evaluation.dense import windows

STEPS, BATCH = 160_000, 16  # published


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = step_parser(__doc__)
    parser.set_defaults(images=2, input_size=512, classes=150, rounds=3)
    args = parser.parse_args(argv)
    if args.images < 2:
        parser.error("--images 1: BatchNorm needs 2 crops at least")
    return args


def build(args: argparse.Namespace, amp: str):
    """The main's training step, and its FLOPs, kept bytes and bytes of state."""
    own = as_main_trains(main_segmentation, args, amp)
    size = (args.images, args.input_size, args.input_size)
    imgs = torch.randn(size[0], 3, *size[1:], device=own.device)
    maps = torch.randint(args.classes, size, device=own.device)

    def loss() -> torch.Tensor:
        own.drop_paths.draw(0, 0, len(imgs), own.device)
        with own.precision.autocast():
            logits, auxiliary = own.model(imgs)
        enlarged = (windows.enlarged(x, size[1:]) for x in (logits, auxiliary))
        return sum(pixel_loss(x, maps) for x in enlarged)

    def train(num_steps: int) -> None:
        for step in range(num_steps):
            own.drop_paths.draw(step, 0, len(imgs), own.device)
            train_step(own.model, [(imgs, maps)], 1, own.optimizer, own.precision)

    return train, step_facts(own.model, loss)


if __name__ == "__main__":
    measure_and_calculate(parse_args(), build, "crop", STEPS, BATCH)
