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

from benchmarks.contest import Contestant, compete
from benchmarks.step_facts import hours, in_words, step_facts
from util.args import number

STEPS, BATCH = 184_375, 64  # published


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    positive = number(int, 1)
    add("--model", default="vit_base_patch16")
    add("--images", type=positive, default=1, help="per step")
    add("--objects", type=positive, default=7, help="per image; COCO has seven")
    add("--input_size", type=positive, default=1024, help="pixels")
    add("--classes", type=positive, default=80)
    add("--amp", nargs="+", choices=("bf16", "fp16", "none"), default=["none"])
    add("--grad_checkpointing", action="store_true")
    add("--steps", type=positive, default=1, help="per turn")
    add("--rounds", type=positive, default=2)
    add("--threads", type=positive, default=torch.get_num_threads())
    add("--gpus", type=positive, default=8, help="of the calculation")
    add("--peak", type=float, default=125.0, help="of one, TFLOP/s; a V100's in fp16: 125")
    add("--reached", type=float, default=0.3, help="share of the peak that is assumed")
    return parser


def random_batch(args: argparse.Namespace) -> tuple[list, list]:
    """Images that fill the canvas, with rectangles for objects."""
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
    import main_detection as main
    from engine_detection import train_step
    from util.training import optim
    from util.training.drop_path import DropPaths
    from util.training.precision import Precision

    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    flags = ["--data_path", ".", "--model", args.model, "--input_size", str(args.input_size)]
    flags += ["--grad_checkpointing"] * args.grad_checkpointing
    own = main.parse_args(flags)
    model = main.build_model(own, None, args.classes).to(device).train()
    drop_paths, precision = DropPaths(model, seed=0), Precision(amp, device)
    optimizer = optim.adamw(optim.decay_groups(model, own.weight_decay))
    batch = main.to_device(*random_batch(args), device)

    def loss() -> torch.Tensor:
        drop_paths.draw(0, 0, args.images, device)
        with precision.autocast():
            return sum(model(*batch).values())

    def train(num_steps: int) -> None:
        for step in range(num_steps):
            drop_paths.draw(step, 0, args.images, device)
            train_step(model, [batch], 1, optimizer, precision)

    return train, step_facts(model, loss)


def main() -> None:
    args = get_args_parser().parse_args()
    for amp in args.amp:
        contestant = Contestant(f"{args.model}, {amp}", build, args, amp)
        contestant.await_ready()
        compete([contestant], args.rounds, args.steps)
        print(
            f"{contestant.name}, {args.input_size} px, {args.images} image(s), {args.threads} "
            f"thread(s){', checkpointed' * args.grad_checkpointing}: "
            f"{in_words(contestant, args.images)}"
        )
        contestant.end()
    flops = contestant.facts["flops"] / args.images
    took = hours(BATCH * flops, STEPS, args.gpus, args.peak, args.reached)
    print(
        f"{STEPS} steps of {BATCH} images on {args.gpus} GPUs of {args.peak:g} TFLOP/s, of which "
        f"{args.reached:.0%} are reached: {took:.0f} hours (calculated)"
    )


if __name__ == "__main__":
    main()
