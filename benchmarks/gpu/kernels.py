"""Where the time of a training step goes, by kinds of kernels, as torch's profiler has it."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.record import Rows
from benchmarks.gpu.sizes import seconds_per_step

# A kernel is of the first kind of which a word is in its name.
KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matrix products": ("gemm", "cutlass", "xmma", "nvjet", "cublas", "addmm", "::mm", "::bmm"),
    "layer norm": ("layer_norm", "layernorm"),
    "gelu": ("gelu",),
    "optimiser": ("adam", "multi_tensor", "foreach"),
    "gather and scatter": ("gather", "scatter", "index"),
    "sums and means": ("reduce", "mean", "sum", "norm"),
    "casts and copies": ("copy", "memcpy", "memset", "cat", "fill"),
    "sort": ("sort",),
}
STEPS = 3


def kind(name: str) -> str:
    lowered = name.lower()
    for label, words in KINDS.items():
        if any(word in lowered for word in words):
            return label
    return "elementwise and others"


def where_time_goes(train: Callable[[int], None], is_tiny: bool) -> Rows:
    """Milliseconds of a step by kind of kernel, what the device idles, and the dearest kernels."""
    use_cuda = torch.cuda.is_available()
    seconds = seconds_per_step(train, is_tiny)
    activities = [ProfilerActivity.CUDA] if use_cuda else [ProfilerActivity.CPU]
    with profile(activities=activities) as found:
        train(STEPS)
        if use_cuda:
            torch.cuda.synchronize()
    events = [(e.key, _own_time(e, use_cuda) / STEPS / 1000) for e in found.key_averages()]
    by_kind: dict[str, float] = defaultdict(float)
    for name, milliseconds in events:
        by_kind[kind(name)] += milliseconds
    rows: Rows = [
        {"what": name, "ms per step": value, "% of step": value / seconds / 10}
        for name, value in sorted(by_kind.items(), key=lambda item: -item[1])
    ]
    busy = sum(by_kind.values())
    rows.append({"what": "nothing runs", "ms per step": 1000 * seconds - busy,
                 "% of step": 100 - busy / seconds / 10})  # fmt: skip
    dearest = sorted(events, key=lambda event: -event[1])[:12]
    rows += [
        {"what": f"kernel {name[:90]}".replace("|", "/"), "ms per step": value,
         "% of step": value / seconds / 10}
        for name, value in dearest
    ]  # fmt: skip
    return [*rows, {"what": "a step", "ms per step": 1000 * seconds, "% of step": 100.0}]


def _own_time(event, use_cuda: bool) -> float:
    """Microseconds of an event alone."""
    return event.self_device_time_total if use_cuda else event.self_cpu_time_total
