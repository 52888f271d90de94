"""What the stages share: the sizes of a real run and of a trial, the machine, and a clock."""

import argparse
import contextlib
import gc
import os
import time
from collections.abc import Callable

import torch

from benchmarks.contest import matmul_peak
from util.data.loader import num_cores

GIB = 2**30


def machine(is_tiny: bool) -> dict[str, object]:
    """On what is measured: the device, the cores that feed it, and whether it is only a trial."""
    use_cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if use_cuda else "CPU"
    return {"device": name, "cores": num_cores(), "torch": torch.__version__, "tiny": is_tiny}


def device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def step_flags(is_tiny: bool, **changes: object) -> argparse.Namespace:
    """The flags that `pretrain_step.build_ours` asks for."""
    flags = dict(
        threads=torch.get_num_threads(), input_size=28 if is_tiny else 224, num_masks=4,
        compile=False, grad_checkpointing=False, against="",
    )  # fmt: skip
    return argparse.Namespace(**flags | changes)


def seconds_per_step(train: Callable[[int], None], is_tiny: bool) -> float:
    """Seconds of a step: the fastest of three turns of five, after a step that does not count."""
    turns, steps = (1, 1) if is_tiny else (3, 5)
    train(1)
    best = float("inf")
    for _ in range(turns):
        synchronize()
        started = time.perf_counter()
        train(steps)
        synchronize()
        best = min(best, (time.perf_counter() - started) / steps)
    return best


def peak_of_products(dtype: torch.dtype, is_tiny: bool) -> float:
    """FLOPs per second that matrix products reach here."""
    return matmul_peak(device(), dtype, (256,) if is_tiny else ())


def compiler(is_tiny: bool) -> contextlib.AbstractContextManager:
    """Where torch.compile compiles; in a trial what is to be compiled runs as it is."""
    return torch.compiler.set_stance("force_eager") if is_tiny else contextlib.nullcontext()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def start_peak() -> None:
    """Free what is left of others, and count the peak of the memory from here on."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | str:
    """The most memory that was taken since `start_peak`; on a CPU it is not known."""
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else "?"


def threads_for(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)
