"""What a checkpoint costs: seconds to save and to read it, against seconds of a training step.

python benchmarks/checkpoint_cost.py --model mimae_vit_base_patch16 --batch_size 2
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from models_mimae import MODELS
from util.training.checkpoint import read_checkpoint, write_atomically
from util.training.optim import adamw, decay_groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="mimae_vit_base_patch16")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--input_size", type=int, default=224)
    parser.add_argument("--folder", help="where to write; default: the temporary folder")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = MODELS[args.model](img_size=args.input_size).to(device)
    optimizer = adamw(decay_groups(model, 0.05))
    imgs = torch.randn(args.batch_size, 3, args.input_size, args.input_size, device=device)

    def step() -> None:
        model(imgs)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    step_seconds = timed(step)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = os.path.join(folder, "checkpoint-last.pth")
        save_seconds = timed(lambda: write_atomically(path, state))
        read_seconds = timed(lambda: read_checkpoint(path))
        size = os.path.getsize(path) / 2**30
    share = save_seconds / (save_seconds + args.every * step_seconds)
    print(
        f"{args.model}: {size:.2f} GiB; save {save_seconds:.2f} s, checked read "
        f"{read_seconds:.2f} s, step of {args.batch_size} images {step_seconds:.2f} s; a save "
        f"every {args.every} steps is {100 * share:.2f} % of the time"
    )


def timed(call, repeats: int = 3) -> float:
    """The median of some calls, in seconds, after one that does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[repeats // 2]


if __name__ == "__main__":
    main()
