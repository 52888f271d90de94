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

from benchmarks.contest import Contestant, compete
from util.args import number

GIB = 2**30


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


def count(model, imgs: torch.Tensor, maps: torch.Tensor, precision) -> dict[str, int]:
    """FLOPs of a forward and backward pass, the bytes that it keeps, and those of the state."""
    from torch.utils.flop_counter import FlopCounterMode

    from engine_segmentation import pixel_loss
    from util.evaluation.windows import enlarged

    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with precision.autocast():
            outputs = model(imgs)
        sum(pixel_loss(enlarged(x, maps.shape[1:]), maps) for x in outputs).backward()
    model.zero_grad(set_to_none=True)
    num_parameters = sum(p.numel() for p in model.parameters())
    return dict(
        flops=counter.get_total_flops(), state=16 * num_parameters, parameters=num_parameters,
        kept=sum(size for place, size in kept.items() if place not in weights),
    )  # fmt: skip


def build(args: argparse.Namespace, amp: str):
    """One main's training step, and its FLOPs, kept bytes and bytes of state."""
    import main_segmentation as main
    from engine_segmentation import train_step
    from util.training import optim
    from util.training.drop_path import DropPaths
    from util.training.precision import Precision

    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    flags = ["--data_path", ".", "--model", args.model, "--input_size", str(args.input_size)]
    own = main.parse_args(flags)
    model = main.build_model(own, None, args.classes).to(device).train()
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

    drop_paths.draw(0, 0, len(imgs), device)
    facts = count(model, imgs, maps, precision)

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            train_step(model, batches(1), 1, optimizer, precision)

    return train, facts


def main() -> None:
    args = get_args_parser().parse_args()
    for amp in args.amp:
        contestant = Contestant(f"{args.model}, {amp}", build, args, amp)
        contestant.await_ready()
        compete([contestant], args.rounds, args.steps)
        facts, crops = contestant.facts, args.images
        flops = facts["flops"] / crops
        print(
            f"{contestant.name}, {args.input_size} px, {crops} crops, {args.threads} thread(s): "
            f"{1 / contestant.rate / crops:.2f} s per crop, {flops / 1e12:.2f} TFLOP per crop, "
            f"{facts['kept'] / crops / GIB:.2f} GiB kept per crop, {facts['state'] / GIB:.2f} GiB "
            f"of state ({facts['parameters'] / 1e6:.1f} M parameters), peak "
            f"{contestant.peak / GIB:.2f} GiB"
        )
        contestant.end()
    seconds = 16 * flops / (args.gpus * args.peak * 1e12 * args.reached)
    print(
        f"160000 steps of 16 crops on {args.gpus} GPUs of {args.peak:g} TFLOP/s, of which "
        f"{args.reached:.0%} are reached: {seconds * 160_000 / 3600:.0f} hours (calculated)"
    )


if __name__ == "__main__":
    main()
