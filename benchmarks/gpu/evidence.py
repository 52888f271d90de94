"""MAE, four masks and MI-MAE at equal masked samples, several seeds, many runs at a time.

It is benchmarks/equal_samples.py, ended in time: a run that is cut short goes on from its
checkpoint at the next call.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

from benchmarks import study
from benchmarks.gpu.record import GRACE, Record, Rows, Unfinished
from benchmarks.gpu.sizes import threads_for

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VARIANTS = [
    "MAE: --num_masks 1 --lambda_max 0 --lambda_min 0",
    "four masks: --lambda_max 0 --lambda_min 0",
    "MI-MAE:",
]
SETTINGS = {  # as the studies have them; more steps than a CPU has time for
    "fashion_mnist": (
        "--common", "--model mimae_vit_tiny_patch7 --mi_start_loss inf --lr 1e-3 --amp bf16",
        "--batch_size", "256", "--steps", "3744",
    ),
    "openclipart": (
        "--common", "--model mimae_vit_tiny_patch4 --mi_start_loss inf --lr 1e-3 --amp bf16",
        "--batch_size", "128", "--steps", "6000", "--balanced",
    ),
}  # fmt: skip
TINY = (
    "--common", "--mi_start_loss inf", "--batch_size", "64", "--steps", "2", "--probe_images",
    "100", "--few", "2", "--draws", "2",
)  # fmt: skip


def run(record: Record, args: argparse.Namespace) -> None:
    steps = f", {args.steps} steps" if args.steps else ""
    name = f"{args.dataset}{steps}, seeds {' '.join(map(str, args.seeds))}"
    record.part(name, 1, lambda: runs(record, args))


def runs(record: Record, args: argparse.Namespace) -> Rows:
    """Run what is missing until the time is up; a row for each of its runs that has ended.

    Raises:
        Unfinished: there is more to run.
    """
    from benchmarks import equal_samples

    path = os.path.abspath(os.path.join(args.out, "evidence.jsonl"))
    words = ["--study", path, "--runs", os.path.abspath(os.path.join(args.out, "runs"))]
    words += ["--jobs", str(args.jobs), "--dataset", args.dataset]
    words += ["--seeds", *map(str, args.seeds)]
    words += ["--data_path", os.path.abspath(args.data_path)] if args.data_path else []
    words += TINY if args.tiny else SETTINGS.get(args.dataset, ())
    words += ["--steps", str(args.steps)] if args.steps else []
    command = [sys.executable, "benchmarks/equal_samples.py", *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads_for(args.jobs))}
    process = subprocess.Popen(
        [*command, "--variants", *VARIANTS], cwd=ROOT, env=environment, start_new_session=True
    )
    status: int | str = "the time is up"
    try:
        status = f"status {process.wait(max(record.left() - GRACE, 1))}"
    except subprocess.TimeoutExpired:
        pass
    finally:
        end(process)
    own = equal_samples.setting(equal_samples.get_args_parser().parse_args(words))
    found = [row for row in study.read(path) if row["setting"] == own and row["seed"] in args.seeds]
    rows: Rows = [
        {"variant": row["variant"], "seed": row["seed"], "seconds": row.get("seconds", "")}
        | row["scores"]
        for row in found
    ]
    wanted = len(VARIANTS) * len(args.seeds)
    if len(rows) < wanted:
        raise Unfinished(f"{len(rows)} of {wanted} runs have ended, {status}: call it again", rows)
    return rows


def end(process: subprocess.Popen) -> None:
    """End the study and its runs, which save a checkpoint first."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + GRACE
        try:
            os.killpg(process.pid, kind)
            while time.monotonic() < until:
                process.poll()
                time.sleep(0.1)
                os.killpg(process.pid, 0)  # whether one of them is still there
        except ProcessLookupError:
            return
