"""Process groups from whichever launcher is there, and collectives that carry gradients.

W is the world size. Without a process group every function here is the identity for W = 1.
"""

import contextlib
import datetime
import inspect
import logging
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from util.errors import EXIT_LOST_RANKS, RunError, UsageError

log = logging.getLogger(__name__)

STORE_LINGERS = 2.0  # seconds for which rank 0 still answers ranks that time out after it
GLOO_LINGERS = 0.2  # seconds for which gloo's threads may still drop Python objects
_groups: dict[str, dist.ProcessGroup] = {}
GRAD_HOOKS = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}


def is_distributed() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number; 0 where there is no group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """W, the processes of the group; 1 where there is none."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Whether this is rank 0, which writes files and talks."""
    return rank() == 0


def launcher_environment() -> dict[str, int | str] | None:
    """Rank, world size, local rank and master as the launcher gave them; None for one process.

    torchrun's variables win; else those of a SLURM step (srun, and submitit through srun). What is
    set to nothing is not set.

    Raises:
        UsageError: a variable that is no number; the line names it.
    """
    env = {name: value for name, value in os.environ.items() if value}
    if "RANK" in env and "WORLD_SIZE" in env:
        return {
            "rank": _number(env, "RANK"),
            "world_size": _number(env, "WORLD_SIZE"),
            "local_rank": _number(env, "LOCAL_RANK", 0),
            "master_addr": env.get("MASTER_ADDR", "127.0.0.1"),
            "master_port": _number(env, "MASTER_PORT", 29500),
        }
    if "SLURM_STEP_ID" in env and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        job = int(env["SLURM_JOB_ID"])
        return {
            "rank": int(env["SLURM_PROCID"]),
            "world_size": int(env["SLURM_STEP_NUM_TASKS"]),
            "local_rank": int(env["SLURM_LOCALID"]),
            "master_addr": env.get("MASTER_ADDR") or host_names(env["SLURM_STEP_NODELIST"])[0],
            # Jobs that share a host must not share a port, so it follows from the job's number;
            # below 32768, where Linux takes ports for outgoing connections.
            "master_port": int(env.get("MASTER_PORT") or 10000 + job % 20000),
        }
    return None


def _number(env: dict[str, str], name: str, default: int | None = None) -> int:
    if name not in env and default is not None:
        return default
    try:
        return int(env[name])
    except ValueError:
        raise UsageError(
            f"{name}={env[name]} in the environment is no number: unset it, or start with torchrun"
        ) from None


def host_names(node_list: str) -> list[str]:
    """SLURM's short form of node names, as `gpu[01-03,7],cpu1`, written out in order."""
    if not any(c in node_list for c in "[,"):
        return [node_list]
    command = ["scontrol", "show", "hostnames", node_list]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        # In a container scontrol may be absent.
        groups = re.findall(r"(?:[^,\[]|\[[^\]]*\])+", node_list)
        return [name for group in groups for name in _written_out(group)]


def _written_out(group: str) -> list[str]:
    """`gpu[01-03,7]-x` -> gpu01-x, gpu02-x, gpu03-x, gpu7-x."""
    match = re.search(r"\[([^\]]*)\]", group)
    if match is None:
        return [group]
    names = []
    for part in match[1].split(","):
        low, _, high = part.partition("-")
        for i in range(int(low), int(high or low) + 1):
            names.append(f"{group[: match.start()]}{i:0{len(low)}}{group[match.end() :]}")
    return [name for partly in names for name in _written_out(partly)]


def init_process_group(device_flag: str, timeout_minutes: float = 10.0) -> torch.device:
    """Join the launcher's process group, if there is one, and choose this rank's device.

    Args:
        device_flag: `auto` (CUDA where there is one, else CPU), `cpu`, `cuda` or `cuda:N`.
        timeout_minutes: how long to wait for the other ranks.

    Raises:
        UsageError: no such device.
        RunError: ranks that did not come; it names them.
    """
    launched = launcher_environment()
    device = _choose_device(device_flag, int(launched["local_rank"]) if launched else 0)
    if launched is None or launched["world_size"] == 1 or is_distributed():
        return device
    world, own_rank = int(launched["world_size"]), int(launched["rank"])
    timeout = datetime.timedelta(minutes=timeout_minutes)
    address = f"{launched['master_addr']}:{launched['master_port']}"
    try:
        store = dist.TCPStore(
            str(launched["master_addr"]), int(launched["master_port"]), world,
            is_master=own_rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            timeout=timeout, wait_for_workers=False,
        )  # fmt: skip
        # torchrun keeps its store when it restarts the workers, and a task of a requeued job may
        # live on for a while on a node that was cut off: an attempt sees its own keys only.
        names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
        attempt = "-".join(os.environ.get(name, "0") for name in names)
        store = dist.PrefixStore(f"mimae/{attempt}", store)
        store.set(f"rank{own_rank}", socket.gethostname())
        _await_ranks(store, own_rank, world, timeout)
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"rank {own_rank} found no rank 0 at {address} within {timeout_minutes:g} minutes: "
            f"check that the address is reachable and the port free ({reason})",
            EXIT_LOST_RANKS,
        ) from None
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store, rank=own_rank, world_size=world, timeout=timeout,
    )  # fmt: skip
    if device.type == "cuda":
        _groups["cpu"] = dist.new_group(backend="gloo", timeout=timeout)
    return device


@contextlib.contextmanager
def process_group(device_flag: str, timeout_minutes: float) -> Iterator[None]:
    """One process group for several runs, which join it in turns."""
    init_process_group(device_flag, timeout_minutes)
    try:
        yield
    finally:
        shutdown()


def cpu_group() -> dist.ProcessGroup | None:
    """A group of all ranks whose messages do not pass the GPU; None stands for the default one."""
    return _groups.get("cpu")


def is_lost_peer(error: Exception) -> bool:
    """True for what torch raises where another rank is gone; gloo has no class of its own."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def _await_ranks(store: dist.Store, own_rank: int, world: int, timeout: datetime.timedelta) -> None:
    try:
        store.wait([f"rank{r}" for r in range(world)], timeout)
    except dist.DistError:
        came = [r for r in range(world) if store.check([f"rank{r}"])]
        absent = ", ".join(str(r) for r in range(world) if r not in came)
        hosts = ", ".join(sorted({store.get(f"rank{r}").decode() for r in came}))
        if own_rank == 0:
            time.sleep(STORE_LINGERS)
        raise RunError(
            f"rank(s) {absent} of {world} did not come within {timeout} (the others are on "
            f"{hosts}): look at their logs, or raise --dist_timeout",
            EXIT_LOST_RANKS,
        ) from None


def _choose_device(flag: str, local_rank: int) -> torch.device:
    if flag == "auto":
        flag = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(flag)
    except RuntimeError:
        raise UsageError(f"--device {flag} is unknown: use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {flag} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise UsageError(f"--device {flag}: no CUDA device is visible; use --device cpu or auto")
    # A launcher that shows each task only its own GPU numbers it 0.
    index = device.index if device.index is not None else local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def wrap(
    model: nn.Module,
    device: torch.device,
    grad_compression: str = "none",
    sync_buffers: bool = True,
) -> nn.Module:
    """The model inside DDP; itself where there is one process.

    Args:
        grad_compression: `none`, or `fp16` or `bf16`, in which gradients travel.
        sync_buffers: send rank 0's buffers (BatchNorm's statistics) round before each forward.
    """
    if not is_distributed():
        return model
    ids = [device.index] if device.type == "cuda" else None
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    # torch renamed the option and warns of the old name.
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    wrapped = DistributedDataParallel(
        model, ids, gradient_as_bucket_view=True, **{option: sync_buffers}
    )
    if grad_compression != "none":
        wrapped.register_comm_hook(None, GRAD_HOOKS[grad_compression])
    return wrapped


def compile_in_place(model: nn.Module, grad_checkpointing: bool) -> None:
    """torch.compile a model, before `wrap`; its parameters keep their names."""
    if grad_checkpointing:
        # Older torch cannot split a graph with checkpointed blocks where DDP's buckets end.
        torch._dynamo.config.optimize_ddp = False
    model.compile()


def share_buffers(model: nn.Module) -> None:
    """Give rank 0's buffers to all ranks."""
    if is_distributed():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of DDP, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def without_exchange(model: nn.Module, hold: bool) -> contextlib.AbstractContextManager:
    """DDP's `no_sync` where `hold` is True: gradients are added up and not exchanged."""
    if hold and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def barrier() -> None:
    """Wait for all ranks."""
    if is_distributed():
        dist.barrier()


def shutdown() -> None:
    """Leave the process group."""
    if not is_distributed():
        return
    dist.destroy_process_group()
    _groups.clear()
    # Once DDP was used, gloo's threads live on (torch 2.14). One that waits for the GIL, to drop
    # what a finished work refers to, when Python begins to end, aborts the process.
    time.sleep(GLOO_LINGERS)


def reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over the ranks, without gradient."""
    return reduce_sum(tensor) / world_size()


def reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks, without gradient."""
    tensor = tensor.detach().clone()
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def reduce_max(number: int) -> int:
    """The largest of the ranks' numbers."""
    if not is_distributed():
        return number
    largest = torch.tensor(number)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=cpu_group())
    return int(largest)


def reduce_mean_with_grad(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over the ranks; its gradient is the mean of the ranks' gradients."""
    return _ReduceMean.apply(tensor) if is_distributed() else tensor


def gather_with_grad(tensor: torch.Tensor) -> torch.Tensor:
    """[rows, ...] of every rank -> [W·rows, ...], rank by rank.

    The gradient of a rank's rows is the *sum* over all ranks of what they computed from them.
    """
    return _Gather.apply(tensor) if is_distributed() else tensor


class _ReduceMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        return reduce_mean(tensor)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return reduce_mean(grad)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        ctx.num_rows = tensor.shape[0]
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        # An all-reduce, not a reduce-scatter, which gloo lacks; latents are a few MB at most.
        start = rank() * ctx.num_rows
        return reduce_sum(grad)[start : start + ctx.num_rows]
