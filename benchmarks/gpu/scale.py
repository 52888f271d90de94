"""What NCCL and DistributedDataParallel cost where there is but one process (gloo on a CPU)."""

import argparse
import contextlib
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from benchmarks.gpu.record import Record, Rows
from benchmarks.gpu.sizes import device, seconds_per_step, start_peak, step_flags, synchronize
from benchmarks.pretrain_step import build_ours

MIB = 2**20


def run(record: Record, args: argparse.Namespace) -> None:
    record.part("collectives", 15, lambda: collectives(args.tiny))
    for model in ("nano",) if args.tiny else ("base", "large"):
        record.part(f"{model}, one process", 45, lambda m=model: one_process(m, args.tiny))


@contextlib.contextmanager
def group() -> Iterator[None]:
    """A process group of this process alone."""
    backend = "nccl" if device().type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def collectives(is_tiny: bool) -> Rows:
    """Microseconds of sums and gatherings: of the losses, of latents, of gradients."""
    rows: Rows = []
    sizes = (8, MIB) if is_tiny else (8, 4096, MIB, 16 * MIB, 344 * MIB)
    with group():
        for size in sizes:
            x = torch.zeros(size // 4, device=device())
            parts = [torch.empty_like(x)]
            row: dict[str, object] = {"bytes": size}
            for name, call in (
                ("sum, us", lambda x=x: dist.all_reduce(x)),
                ("gather, us", lambda x=x, parts=parts: dist.all_gather(parts, x)),
            ):
                row[name] = 1e6 * _seconds(call)
            rows.append(row)
    return rows


def _seconds(call, count: int = 20) -> float:
    call()
    synchronize()
    started = time.perf_counter()
    for _ in range(count):
        call()
    synchronize()
    return (time.perf_counter() - started) / count


def one_process(model: str, is_tiny: bool) -> Rows:
    """A step without a group, in DDP with one process, and without again."""
    images = 1 if is_tiny else {"base": 64, "large": 32}[model]
    amp = "none" if device().type == "cpu" else "auto"

    def milliseconds() -> float:
        start_peak()
        train, _ = build_ours(step_flags(is_tiny), model, images, amp)
        return 1000 * seconds_per_step(train, is_tiny)

    first = milliseconds()
    with group():
        inside = milliseconds()
    again = milliseconds()
    plain = (first + again) / 2
    return [
        {"step": "no group", "images": images, "ms": first},
        {"step": "DDP, one process", "images": images, "ms": inside, "of no group": inside / plain},
        {"step": "no group again", "images": images, "ms": again, "of no group": again / plain},
    ]
