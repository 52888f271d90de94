"""Whether two commits compute the same: losses, weights and tables, to the last bit.

    git worktree add ../before COMMIT
    python benchmarks/identical.py run ../before before.json
    python benchmarks/identical.py run . after.json
    python benchmarks/identical.py compare before.json after.json

`run` starts the mains of a checkout on a CPU in fp32, for 50 steps each, and keeps a digest of each
tensor of their checkpoints, each number of their logs and each of their tables. What depends on
the clock or on a path is left out. It takes about 15 minutes of one core.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

STEPS = 50
QUICK = f"--max_steps {STEPS} --epochs 4 --warmup_epochs 1 --batch_size 16 --log_every 1"
MI = f"main_pretrain.py {QUICK} --mi_start_loss inf"
BY_ITERATIONS = f"--iterations {STEPS} --eval_every 25 --warmup_iterations 5 --input_size 32"
DENSE = f"--model vit_tiny_patch4 --data_path SCENES {BY_ITERATIONS} --batch_size 4"
PARTS = "--accum_iter 2"

# Name -> command, or (processes, command). A folder in capitals is that run's; SCENES are made.
RUNS: dict[str, str | tuple[int, str]] = {
    "MAE": f"main_pretrain.py {QUICK} --num_masks 1 --lambda_max 0 --lambda_min 0",
    "MIMAE": MI,
    "GATE": f"main_pretrain.py {QUICK} --mi_start_loss 1.0",
    "ACCUMULATED": f"{MI} {PARTS}",
    "EXACT": f"{MI} {PARTS} --exact_accum",
    "RANKS": (2, f"{MI} {PARTS}"),
    "EXACT_RANKS": (2, f"{MI} {PARTS} --exact_accum"),
    "TOKENS": f"{MI} --club_level token --latent_pool mean --mask_type independent",
    "BATCH": f"{MI} --club_negatives batch --mi_head mlp --norm_pix_loss --pred_ratio 0.5",
    "UNTRAINED_PHI": f"{MI} --no_train_approximation --grad_checkpointing",
    "CLIPPED": f"{MI} --clip_grad 0.5 --num_masks 0 --mask_ratio 0.6 --lambda_rec 0.5",
    "SIMMIM": f"main_pretrain.py {QUICK} --model simmim_swin_mini_patch2",
    "MISIMMIM": f"{MI} --model misimmim_swin_mini_patch2 {PARTS} --exact_accum",
    "SIMMIM_VIT": f"{MI} --model misimmim_vit_base_patch16 --input_size 64 --max_steps 2",
    "RECIPE": "main_pretrain.py @recipes/table3/f_mimae.args @recipes/demo/pretrain.args --model "
    f"mimae_vit_tiny_patch2 --epochs 3 --warmup_epochs 0.6 --step 32 --max_steps {STEPS}",
    "FINETUNED": f"main_finetune.py --finetune MIMAE {QUICK} --ema_decay 0.9 {PARTS}",
    "FINETUNED_RANKS": (2, f"main_finetune.py --finetune MIMAE {QUICK}"),
    "FINETUNED_SWIN": f"main_finetune.py --finetune SIMMIM {QUICK}",
    "FEW": "main_finetune.py --finetune MIMAE --train_fraction 0.2 --draws 2 --choose_blr 1e-3 "
    "1e-2 --epochs 2 --warmup_epochs 1 --batch_size 32",
    "PROBED": f"main_linprobe.py --finetune MIMAE {QUICK}",
    "PROBED_CROPS": f"main_linprobe.py --finetune MIMAE {QUICK} --min_crop 0.5 --optimizer lars",
    "NEIGHBOURS": "main_linprobe.py --finetune MIMAE --knn",
    "SEGMENTED": f"main_segmentation.py --finetune MAE_PHOTOGRAPHS {DENSE} --decoder_channels 16",
    "DETECTED": f"main_detection.py --finetune MAE_PHOTOGRAPHS {DENSE} --ema_decay 0.9",
    "EVALUATED": "main_evaluate.py MIMAE MAE untrained pixels --names a b none raw "
    "--train_fraction 0.3 --draws 2 --few 1 4 --few_shares 0.1",
    "ROBUST": "main_robustness.py FINETUNED FINETUNED_RANKS --names a b --max_images 64 "
    "--corruptions contrast fog --severities 1 3 5",
}
BEFORE = {  # what others start from
    "MAE_PHOTOGRAPHS": "main_pretrain.py --dataset flat --data_path SCENES/images/training "
    f"--model mimae_vit_tiny_patch4 --input_size 32 {QUICK}"
}
TIMED = re.compile(
    r"checkpoints|second|time|images_per|command|version|commit|host|path|flags|sources|dir"
)


def run(checkout: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Run everything in a checkout; the values that it left, by run and by what they are."""
    scenes = folder / "SCENES"
    command = "tools.scenes" if (checkout / "tools").exists() else "util.data.scenes"
    flags = f"{scenes} --images 40 --val_images 8 --size 64 --num_workers 0"
    start(checkout, f"-m {command} {flags}")
    # Recipes have told a process's batch, and tell the images of a step.
    says_step = "images_per_step" in (checkout / "recipes/demo/pretrain.args").read_text()
    step = "--images_per_step" if says_step else "--batch_size"
    found = {}
    for name, what in (BEFORE | RUNS).items():
        processes, words = what if isinstance(what, tuple) else (1, what)
        words = re.sub(r"\b[A-Z_]{3,}\b", lambda match: place(folder, match[0]), words)
        words = words.replace("--step ", f"{step} ")
        words += f" --output_dir {folder / name} --device cpu --amp none --num_workers 0 --seed 1"
        launcher = f"-m torch.distributed.run --standalone --nproc_per_node {processes} "
        start(checkout, launcher * (processes > 1) + words)
        found[name] = dict(sorted(numbers(folder / name)))
        print(f"{name}: {len(found[name])} numbers", flush=True)
    return found


def place(folder: Path, name: str) -> str:
    """The path that a word in capitals stands for: a run's checkpoint, or the scenes."""
    checkpoint = folder / name / "checkpoint-last.pth"
    return str(checkpoint if checkpoint.exists() else folder / name)


def start(checkout: Path, words: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [sys.executable, *words.split()]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def numbers(folder: Path) -> Iterator[tuple[str, str]]:
    """(what, value or digest) of all that a run left."""
    import numpy as np
    import torch

    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "checkpoint-last.pth":
            state = torch.load(path, weights_only=True)
            for key in ("model", "trained", "optimizer", "gate", "progress"):
                yield from flat(f"{name}: {key}", state.get(key))
        elif path.name == "log.txt":
            for i, line in enumerate(path.read_text().splitlines()):
                yield from flat(f"{name}: {i}", json.loads(line))
        elif path.suffix == ".json" and "blob" not in name:
            yield from flat(name, json.loads(path.read_text()))
        elif path.suffix == ".npy":
            yield name, digest(np.load(path).tobytes())
        elif path.suffix == ".md":
            yield name, digest(path.read_bytes())
        elif path.name.startswith("events.out"):
            yield from curves(path.parent)


def curves(folder: Path) -> Iterator[tuple[str, str]]:
    """The loss of every step, from TensorBoard's file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    for tag in events.Tags()["scalars"]:
        if not TIMED.search(tag):
            for event in events.Scalars(tag):
                yield f"TensorBoard: {tag} {event.step}", repr(event.value)


def flat(name: str, value: object) -> Iterator[tuple[str, str]]:
    """The leaves of nested containers, each under the keys that lead to it."""
    import torch

    if isinstance(value, dict):
        for key, item in value.items():
            if not TIMED.search(str(key)):
                yield from flat(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from flat(f"{name}.{i}", item)
    elif isinstance(value, torch.Tensor):
        content = value.contiguous().view(-1).view(torch.uint8) if value.ndim else value
        yield name, digest(content.numpy().tobytes())
    elif value is not None:
        yield name, repr(value)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def compare(one: dict, other: dict) -> int:
    """Print which numbers differ or stand on one side only; how many those are."""
    total = 0
    for name in one.keys() | other.keys():
        a, b = one.get(name, {}), other.get(name, {})
        different = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
        total += len(different)
        shown = "".join(f"\n  {k}: {a.get(k)} | {b.get(k)}" for k in different[:5])
        print(f"{name}: {len(a)} numbers, {len(different)} differ{shown}")
    print(f"{total} of {sum(map(len, one.values()))} numbers differ")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="action", required=True)
    part = parts.add_parser("run", help="run a checkout")
    part.add_argument("checkout", type=Path)
    part.add_argument("out", type=Path, help="the JSON file to write")
    part = parts.add_parser("compare", help="compare two files that `run` wrote")
    part.add_argument("files", type=Path, nargs=2)
    args = parser.parse_args()
    if args.action == "compare":
        one, other = (json.loads(file.read_text()) for file in args.files)
        sys.exit(bool(compare(one, other)))
    with tempfile.TemporaryDirectory() as folder:
        found = run(args.checkout.resolve(), Path(folder))
    args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
