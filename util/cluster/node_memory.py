"""Tensors of which each node has one copy, whatever the number of its ranks.

A node's ranks map one file of its temporary folder; nothing is shared between nodes.
"""

import math
import os
import socket
import tempfile
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from util.cluster import distributed
from util.errors import RunError

CHUNK = 2**24  # bytes that travel at a time


def node_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU that all ranks of a node see; for all ranks.

    Raises:
        RunError: on all ranks, where a node has no room for it.
    """
    if not distributed.is_distributed():
        return torch.empty(shape, dtype=dtype)
    leader, numel = node_leaders()[distributed.rank()], math.prod(shape)
    path, error, tensor = "", "", None
    if leader == distributed.rank():
        path, error = _make_file(max(1, numel * dtype.itemsize))
    made = _gather((path, error))
    if not any(error for _, error in made):
        try:
            tensor = torch.from_file(made[leader][0], shared=True, size=numel, dtype=dtype)
        except (OSError, RuntimeError) as failure:
            error = str(failure).splitlines()[0]
        made = _gather((path, error))  # each has it now, and nobody needs its name
    if path:
        os.unlink(path)
    errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(made) if error]
    if errors:
        raise RunError(
            f"{numel * dtype.itemsize / 2**30:.2f} GiB in the temporary folder of each node are "
            f"needed ({errors[0]}): set TMPDIR to a folder with room"
        )
    return tensor.view(shape)


def share_rows(tensor: Tensor) -> None:
    """Make a node tensor [n, ...] whole on each node, rank r having filled its rows r, r + W, …"""
    if not distributed.is_distributed():
        return
    leaders, rank, world = node_leaders(), distributed.rank(), distributed.world_size()
    _barrier()
    if len(set(leaders)) > 1:
        step = max(1, CHUNK // max(1, tensor[0].numel() * tensor.itemsize))
        for source in range(world):
            for rows in tensor[source::world].split(step):  # [≤ step, ...]
                sent = (
                    rows.contiguous()
                    if rank == source
                    else torch.empty(rows.shape, dtype=rows.dtype)
                )
                dist.broadcast(sent, source, group=distributed.cpu_group())
                if leaders[rank] == rank and leaders[source] != rank:
                    rows.copy_(sent)
    _barrier()


def node_leaders() -> list[int]:
    """For each rank the first one of its node."""
    keys = _gather(_node())
    return [keys.index(key) for key in keys]


def _node() -> tuple:
    """What ranks have in common that see the same temporary folder: kernel, disk and inode.

    Names of hosts can be alike, and containers on one host have folders of their own.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            kernel = file.read()
    except OSError:
        kernel = socket.gethostname()
    status = os.stat(tempfile.gettempdir())
    return kernel, status.st_dev, status.st_ino


def _make_file(size: int) -> tuple[str, str]:
    """Make a temporary file of `size` bytes; its path, and the error, empty where there is none."""
    path = ""
    try:
        descriptor, path = tempfile.mkstemp(prefix="mimae-")
        try:
            os.posix_fallocate(descriptor, 0, size)  # now, where later there would be a SIGBUS
        finally:
            os.close(descriptor)
    except OSError as error:
        return path, str(error)
    return path, ""


def _gather(value: Any) -> list:
    values: list = [None] * distributed.world_size()
    dist.all_gather_object(values, value, distributed.cpu_group())
    return values


def _barrier() -> None:
    dist.barrier(group=distributed.cpu_group())
