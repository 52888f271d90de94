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
from benchmarks.contest import Contestant, compete
from benchmarks.step_facts import hours, in_words, step_facts
from engine_segmentation import pixel_loss, train_step
from util.args import number
from util.evaluation import windows
from util.training import optim
from util.training.drop_path import DropPaths
from util.training.precision import Precision


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    positive = number(int, 1)
    add("--model", default="vit_base_patch16")
    add("--images", type=number(int, 2), default=2, help="crops per step; BatchNorm needs two")
    add("--input_size", type=positive, default=512, help="pixels")
    add("--classes", type=positive, default=150)
    add("--amp", nargs="+", choices=("bf16", "fp16", "none"), default=["none"])
    add("--steps", type=positive, default=1, help="per turn")
    add("--rounds", type=positive, default=3)
    add("--threads", type=positive, default=torch.get_num_threads())
    add("--gpus", type=positive, default=8, help="of the calculation")
    add("--peak", type=float, default=125.0, help="of one, TFLOP/s; a V100's in fp16: 125")
    add("--reached", type=float, default=0.3, help="share of the peak that is assumed")
    return parser


def build(args: argparse.Namespace, amp: str):
    """One main's training step, and its FLOPs, kept bytes and bytes of state."""
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    flags = ["--data_path", ".", "--model", args.model, "--input_size", str(args.input_size)]
    own = main_segmentation.parse_args(flags)
    model = main_segmentation.build_model(own, None, args.classes).to(device).train()
    drop_paths = DropPaths(model, seed=0)
    precision = Precision(amp, device)
    optimizer = optim.adamw(optim.decay_groups(model, own.weight_decay))
    size = (args.images, args.input_size, args.input_size)
    imgs = torch.randn(size[0], 3, *size[1:], device=device)
    maps = torch.randint(args.classes, size, device=device)

    def batches(num: int):
        for step in range(num):
            drop_paths.draw(step, 0, len(imgs), device)
            yield imgs, maps

    def loss() -> torch.Tensor:
        drop_paths.draw(0, 0, len(imgs), device)
        with precision.autocast():
            logits, auxiliary = model(imgs)
        enlarged = (windows.enlarged(x, size[1:]) for x in (logits, auxiliary))
        return sum(pixel_loss(x, maps) for x in enlarged)

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            train_step(model, batches(1), 1, optimizer, precision)

    return train, step_facts(model, loss)


def main() -> None:
    args = get_args_parser().parse_args()
    for amp in args.amp:
        contestant = Contestant(f"{args.model}, {amp}", build, args, amp)
        contestant.await_ready()
        compete([contestant], args.rounds, args.steps)
        print(
            f"{contestant.name}, {args.input_size} px, {args.images} crops, {args.threads} "
            f"thread(s): {in_words(contestant, args.images, 'crop')}"
        )
        contestant.end()
    flops = contestant.facts["flops"] / args.images
    took = hours(16 * flops, 160_000, args.gpus, args.peak, args.reached)
    print(
        f"160000 steps of 16 crops on {args.gpus} GPUs of {args.peak:g} TFLOP/s, of which "
        f"{args.reached:.0%} are reached: {took:.0f} hours (calculated)"
    )


if __name__ == "__main__":
    main()
