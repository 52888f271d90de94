"""Real training processes for the fault tests: started, killed, resumed and compared."""

import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import torch

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# Four steps an epoch, three epochs, every loss on, and the gate opens on the way.
PRETRAIN = (
    "--train_fraction 0.05 --batch_size 16 --epochs 3 --warmup_epochs 1 --mi_start_loss 1.05 "
    "--save_every_steps 1 --log_every 1 --log_seconds 0 --device cpu --blr 2e-3"
).split()
FINETUNE = (
    "--train_fraction 0.05 --batch_size 16 --epochs 3 --warmup_epochs 1 --drop_path 0.3 "
    "--min_crop 0.6 --aa rand-m9-mstd0.5-inc1 --reprob 0.25 --mixup 0.8 --cutmix 1 --blr 5e-4 "
    "--save_every_steps 1 --log_every 1 --log_seconds 0 --device cpu"
).split()
LINPROBE = (
    "--train_fraction 0.05 --batch_size 16 --epochs 3 --warmup_epochs 1 --min_crop 0.5 --flip "
    "--save_every_steps 1 --log_every 1 --log_seconds 0 --device cpu"
).split()
# Two rounds of four steps and one of two; a pass over 20 scenes, which --data_path names, ends in
# the middle of one.
SEGMENTATION = (
    "--model vit_tiny_patch4 --input_size 32 --decoder_channels 8 --batch_size 4 --iterations 10 "
    "--eval_every 4 --warmup_iterations 2 --lr 1e-3 --drop_path 0.3 --stride 32 "
    "--save_every_steps 1 --log_every 1 --log_seconds 0 --device cpu"
).split()
DETECTION = (
    "--model vit_tiny_patch4 --input_size 32 --batch_size 2 --iterations 6 --eval_every 4 "
    "--warmup_iterations 2 --lr 1e-3 --drop_path 0.3 --ema_decay 0.9 --save_every_steps 1 "
    "--log_every 1 --log_seconds 0 --device cpu"
).split()
FLAGS = {
    "main_pretrain": PRETRAIN,
    "main_finetune": FINETUNE,
    "main_linprobe": LINPROBE,
    "main_segmentation": SEGMENTATION,
    "main_detection": DETECTION,
}


class Zygote:
    """Client of zygote.py: one training process at a time."""

    seconds = 300  # that a process may take

    def __init__(self) -> None:
        self.running: int | None = None
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.answers = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.answers.put(json.loads(line))

    def start(self, main: str, argv: list[str], log: pathlib.Path, slow_disk: float = 0.0) -> int:
        if self.running:  # a test that failed has left it
            kill_after(self.running, 0)
            self.wait()
        request = {"main": main, "argv": argv, "log": str(log), "slow_disk": slow_disk}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        self.running = self.answers.get(timeout=300)["pid"]
        return self.running

    def wait(self) -> int:
        """The exit status of the process last started; negative: the signal that killed it."""
        try:
            status = self.answers.get(timeout=self.seconds)["status"]
        except queue.Empty:
            os.kill(self.running, signal.SIGABRT)  # its log then says where it stood
            self.answers.get(timeout=60)
            raise TimeoutError(f"it did not end within {self.seconds} s") from None
        finally:
            self.running = None
        return status

    def run(self, main: str, argv: list[str], log: pathlib.Path, slow_disk: float = 0.0) -> int:
        self.start(main, argv, log, slow_disk)
        return self.wait()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.terminate()  # a process that was forked meanwhile may hold its stdin open
        self.process.wait(30)


def flags(main: str, output_dir: pathlib.Path, *more: str) -> list[str]:
    return [*FLAGS[main], "--output_dir", str(output_dir), *more]


def kill_after(pid: int, seconds: float) -> None:
    """SIGKILL a training process, if it has not ended before."""
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_when(pid: int, condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """SIGKILL a training process as soon as `condition` holds, if that is before it ends."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline and not has_ended(pid):
        time.sleep(0.0005)
    kill_after(pid, 0)


def has_ended(pid: int) -> bool:
    """The process is gone, or a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Saves:
    """What lies in an output folder while a save is under way, or after it was killed."""

    def __init__(self, output: pathlib.Path):
        self.last, self.before = output / "checkpoint-last.pth", output / "checkpoint-last-1.pth"
        self.temporary, self.seen = output / "checkpoint-last.pth.tmp", 0

    def is_writing(self) -> bool:
        return self.temporary.exists() and self.temporary.stat().st_size > 0

    def is_rotating(self) -> bool:
        """The one before has its new name, the new one not yet."""
        return self.before.exists() and self.temporary.exists() and not self.last.exists()

    def was_cut(self) -> bool:
        """A save was in flight when the run was killed, and not yet at an earlier call."""
        try:
            before, self.seen = self.seen, self.temporary.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        return self.seen != before


def differing(left: pathlib.Path, right: pathlib.Path) -> list[str]:
    """Names of what differs, bit by bit, between the final states of two runs."""
    states = [
        torch.load(folder / "checkpoint-last.pth", weights_only=True) for folder in (left, right)
    ]
    for state in states:
        # The output folders' names differ, which flags are given to go on, and the seconds.
        del state["args"], state["flag_sources"], state["history"]
    names = _differing(*states, "")
    if (left / "log.txt").read_bytes() != (right / "log.txt").read_bytes():
        names.append("log.txt")
    return names


def _differing(left, right, name: str) -> list[str]:
    if isinstance(left, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape
        same = same and left.numpy().tobytes() == right.numpy().tobytes()
        return [] if same else [name]
    if isinstance(left, dict):
        if left.keys() != right.keys():
            return [name]
        return [d for key in left for d in _differing(left[key], right[key], f"{name}/{key}")]
    if isinstance(left, list | tuple) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [d for i, (a, b) in pairs for d in _differing(a, b, f"{name}/{i}")]
    return [] if left == right else [name]


def wait_for(log, text: str, seconds: float = 60.0) -> None:
    """Until a process has written `text` to its log."""
    deadline = time.monotonic() + seconds
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline, f"{text!r} did not come: {log.read_text()}"
        time.sleep(0.01)
