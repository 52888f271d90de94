"""The whole method in minutes, on a CPU: pre-train MI-MAE on digits, probe it, compare.

Runs the mains as a user would and prints what each of them wrote to its results.json.
"""

import json
import subprocess
import sys
import time

OUTPUT = "demo_output"


def run(*words: str) -> None:
    """Run a main; its output goes through."""
    print("\n$ python", *words, flush=True)
    status = subprocess.run([sys.executable, *words]).returncode
    if status:
        sys.exit(status)


FEW = ("--train_fraction", "0.03", "--batch_size", "16")  # 40 labels, four a digit
QUIET = ("--log_every", "1000000")


def accuracies(name: str, *flags: str) -> list[float]:
    """Top-1 accuracies (percent): linear probes on all and on few labels, and k-NN."""
    runs = {"linear": QUIET, "few": (*FEW, *QUIET), "knn": ("--knn",)}
    found = []
    for kind, more in runs.items():
        folder = f"{OUTPUT}/{name}_{kind}"
        run("main_linprobe.py", *flags, *more, "--output_dir", folder)
        with open(f"{folder}/results.json") as file:
            results = json.load(file)
        found.append(results.get("test_acc1", results.get("knn_acc1")))
    return found


def fine_tuned(name: str, *flags: str) -> float:
    """Top-1 accuracy (percent) after four epochs of training all layers."""
    folder = f"{OUTPUT}/{name}_finetune"
    recipe = "--epochs 4 --batch_size 32 --lr 1e-3 --warmup_epochs 0.5 --layer_decay 1".split()
    recipe += "--mixup 0 --cutmix 0 --aa none --reprob 0 --min_crop 1 --drop_path 0".split()
    run("main_finetune.py", *flags, *recipe, *QUIET, "--output_dir", folder)
    with open(f"{folder}/results.json") as file:
        return json.load(file)["test_acc1"]


def main() -> None:
    started = time.monotonic()
    run("main_pretrain.py", "--visualize", "--output_dir", f"{OUTPUT}/pretrain")
    pretrained = ("--finetune", f"{OUTPUT}/pretrain/checkpoint-last.pth")
    rows = {
        "MI-MAE, pre-trained": [
            *accuracies("mimae", *pretrained),
            fine_tuned("mimae", *pretrained),
        ],
        "the same model, untrained": [*accuracies("untrained"), fine_tuned("untrained")],
        "raw pixels": accuracies("pixels", "--model", "pixels"),
    }
    columns = ("linear probe", "with 40 labels", "20-NN", "fine-tuned")
    print(f"\n{'digits, test accuracy (%)':28s}" + "".join(f"{c:>16s}" for c in columns))
    for name, numbers in rows.items():
        print(f"{name:28s}" + "".join(f"{number:16.2f}" for number in numbers))
    print(f"\npicture: {OUTPUT}/pretrain/reconstructions.png")
    print(f"{time.monotonic() - started:.0f} seconds")


if __name__ == "__main__":
    main()
