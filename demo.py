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


def accuracies(name: str, *flags: str) -> tuple[float, float]:
    """Linear-probe and k-NN top-1 accuracy (percent) of an encoder."""
    folder = f"{OUTPUT}/{name}"
    run("main_linprobe.py", *flags, "--log_every", "1000000", "--output_dir", f"{folder}_linear")
    run("main_linprobe.py", *flags, "--knn", "--output_dir", f"{folder}_knn")
    with open(f"{folder}_linear/results.json") as linear, open(f"{folder}_knn/results.json") as knn:
        return json.load(linear)["test_acc1"], json.load(knn)["knn_acc1"]


def main() -> None:
    started = time.monotonic()
    run("main_pretrain.py", "--visualize", "--output_dir", f"{OUTPUT}/pretrain")
    pretrained = ("--finetune", f"{OUTPUT}/pretrain/checkpoint-last.pth")
    rows = {
        "MI-MAE, pre-trained": accuracies("mimae", *pretrained),
        "the same model, untrained": accuracies("untrained"),
        "raw pixels": accuracies("pixels", "--model", "pixels"),
    }
    print(f"\n{'digits, test accuracy (%)':28s}{'linear probe':>14s}{'20-NN':>8s}")
    for name, (linear, knn) in rows.items():
        print(f"{name:28s}{linear:14.2f}{knn:8.2f}")
    print(f"\npicture: {OUTPUT}/pretrain/reconstructions.png")
    print(f"{time.monotonic() - started:.0f} seconds")


if __name__ == "__main__":
    main()
