"""Functions run by several gloo ranks, each a process of its own that a server has forked."""

import contextlib
import json
import multiprocessing
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as mp

from util.cluster import distributed
from util.errors import RunError

# torch._dynamo: an optimiser imports it, for seconds.
PRELOAD = ["engine_pretrain", "models_mimae", "main_finetune", "torch._dynamo"]


def free_port() -> int:
    """One below those that the kernel gives to connections meanwhile."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", random.SystemRandom().randrange(10000, 31000)))
            return probe.getsockname()[1]


def _rank(
    rank: int, function: Callable, world: int, port: int, folder: str, minutes: float, args: tuple
) -> None:
    torch.set_num_threads(1)
    os.environ |= dict(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    distributed.init_process_group("cpu", minutes)
    try:
        answer = function(rank, *args)
    except Exception as error:
        status = getattr(error, "status", 69 if distributed.is_lost_peer(error) else -1)
        kind = "RunError" if isinstance(error, RunError) else type(error).__name__
        answer = {"status": status, "error": str(error), "kind": kind}
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(answer))
    distributed.shutdown()


def in_ranks(
    function: Callable, world: int, folder: Path, *args, minutes: float = 2.0
) -> list[object]:
    """What `function(rank, *args)` returned on each rank, as JSON has it; None: it was killed.

    An exception comes back as {"status", "error", "kind"}.
    """
    multiprocessing.set_forkserver_preload(PRELOAD)
    start = (function, world, free_port(), str(folder), minutes, args)
    context = mp.start_processes(_rank, start, world, join=False, start_method="forkserver")
    for process in context.processes:
        process.join(300)
        process.kill()  # None is its answer
    files = [folder / f"rank{rank}.json" for rank in range(world)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]
