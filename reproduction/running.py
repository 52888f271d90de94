"""What runs already when reproduce.py begins, and whether it can wait for that."""

import os

from reproduction import processes, run_slurm
from reproduction.state import Folder
from util.errors import UsageError
from util.training.output import lock

LOCK = ".lock"  # of OUT/SCALE, while a process runs the tables


def is_locked(folder: str) -> bool:
    """Whether another process holds the lock of this folder, so is running its tables."""
    path = os.path.join(folder, LOCK)
    if not os.path.exists(path):
        return False
    try:
        with open(path, "r+") as file:
            return lock(file) is False
    except PermissionError:  # somebody else's tables, to look at
        return False


def is_alive(folder: Folder, is_looked_after: bool) -> bool:
    """Whether a job's last attempt runs, or waits in SLURM's queue.

    Args:
        is_looked_after: whether another reproduce.py runs these tables, as far as one can tell; it
            counts only where the attempt's process is not known here.
    """
    last = folder.last_attempt()
    if "slurm_job" in last:
        # What is done need not be asked for: SLURM's queue may be far away.
        return not folder.results() and run_slurm.alive(folder.record())
    return processes.is_alive(last) if processes.is_ours(last) else is_looked_after


def check(folder: Folder, of_slurm: bool, any_commit: bool) -> None:
    """Refuse a running job for which this command cannot wait.

    Args:
        of_slurm: whether this command submits to SLURM. any_commit: as the flag.

    Raises:
        UsageError: it runs elsewhere, by another commit or with other flags.
    """
    is_of_slurm = "slurm_job" in folder.last_attempt()
    reason = folder.runs_otherwise(any_commit)
    if is_of_slurm != of_slurm:
        reason = f"runs {'in SLURM' if is_of_slurm else 'on this machine'}"
    if reason:
        raise UsageError(f"{folder.job.name} {reason}: wait for it, or end it")
