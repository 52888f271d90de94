"""What all ranks must agree on: they go on with the same, or all end with the same one line.

Everything here is for all ranks, in the same order, and goes over the CPU group. A rank that fails
says so instead of leaving the others in a collective; one that is gone is found by the others
(`distributed.is_lost_peer`). Without a process group every function is for W = 1.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from util.cluster import distributed, node_memory
from util.errors import EXIT_USAGE, RunError, UsageError

Result = TypeVar("Result")
Problem = tuple[str, int]  # message, exit status

SIGN_OF_LIFE = 0.2  # seconds between two, while the ranks wait for rank 0


def gather(value: Any) -> list:
    """The values that all ranks pass, in order of rank; they should be plain and small."""
    if not distributed.is_distributed():
        return [value]
    values: list = [None] * distributed.world_size()
    dist.all_gather_object(values, value, distributed.cpu_group())
    return values


def groups(values: Sequence[Hashable]) -> dict[Any, str]:
    """Each different value with the ranks that have it: `rank 1`, `ranks 0, 2, 3 and 12 more`."""
    by_value: dict[Any, list[int]] = {}
    for rank, value in enumerate(values):
        by_value.setdefault(value, []).append(rank)
    return {value: _named(ranks) for value, ranks in by_value.items()}


def _named(ranks: list[int], most: int = 4) -> str:
    more = f" and {len(ranks) - most} more" if len(ranks) > most else ""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:most]))}{more}"


def all_or_none(action: Callable[[], Result]) -> Result:
    """Run `action`, which must not wait for other ranks, on each rank.

    Raises:
        RunError: on all ranks, where it failed on any; the line says on which, and why.
    """
    if not distributed.is_distributed():
        return action()
    result, error, problem = None, None, None
    try:
        result = action()
    except Exception as caught:
        error, problem = caught, _problem_of(caught)
    problems = gather(problem)
    if error is not None and not isinstance(error, RunError):
        raise error  # a bug: with its traceback
    failed = {p: who for p, who in groups(problems).items() if p is not None}
    if not failed:
        return result
    if all(problems) and len(failed) == 1:  # the same everywhere: no matter of ranks
        raise _as_error(*problems[0])
    line = "; ".join(f"{who}: {message}" for (message, _), who in failed.items())
    raise _as_error(line, next(iter(failed))[1])


def main_first(action: Callable[[], Result]) -> Result:
    """Run `action`, which must not wait for other ranks, on each rank: on rank 0 first.

    Then on one rank of each other node, then on all others: what the first ones keep on a disk,
    the others find there. Those first ones may take longer than --dist_timeout.

    Raises:
        RunError: on all ranks, where it failed on any; the line says on which, and why.
    """
    if not distributed.is_distributed():
        return action()
    outcomes: list[tuple[Any, Exception | None]] = []

    def run() -> None:
        try:
            outcomes.append((action(), None))
        except Exception as error:
            outcomes.append((None, error))

    main_does(run)
    leaders = node_memory.node_leaders()
    is_leader = leaders[distributed.rank()] == distributed.rank() and not outcomes
    _wait_for(_Job(run) if is_leader else None)

    def outcome() -> Result:
        if not outcomes:
            return action()
        result, error = outcomes[0]
        if error is not None:
            raise error
        return result

    return all_or_none(outcome)


def main_does(action: Callable[[], Result]) -> Result:
    """Run `action`, which must not wait for other ranks, on rank 0; all ranks get its result.

    It may take longer than --dist_timeout: the ranks exchange signs of life in the meantime, so
    that a lost one is found. Rank 0 then finishes `action` all the same.

    Raises:
        RunError: on all ranks, where rank 0's `action` raised it.
    """
    if not distributed.is_distributed():
        return action()
    job = _Job(action) if distributed.is_main() else None
    _wait_for(job)
    answer = [job.answer()] if job is not None else [None]
    dist.broadcast_object_list(answer, 0, distributed.cpu_group())
    result, problem = answer[0]
    if job is not None and job.error is not None and not isinstance(job.error, RunError):
        raise job.error
    if problem is not None:
        raise _as_error(*problem)
    return result


def _wait_for(job: "_Job | None") -> None:
    """Wait on all ranks until the jobs of those that have one are done; with signs of life."""
    is_working = True
    while is_working:
        flag = torch.tensor(int(job is not None and not job.is_done(SIGN_OF_LIFE)))
        try:
            dist.all_reduce(flag, group=distributed.cpu_group())
        except RuntimeError:
            if job is not None:
                job.thread.join()
            raise
        is_working = bool(flag)


class _Job:
    """An action that runs in a thread, and its result or error."""

    def __init__(self, action: Callable[[], Any]):
        self.action, self.result, self.error = action, None, None
        # A daemon: a second Ctrl-C ends the run without waiting for it.
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self.action()
        except BaseException as error:
            self.error = error

    def is_done(self, seconds: float) -> bool:
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def answer(self) -> tuple[Any, Problem | None]:
        if self.error is None:
            return self.result, None
        message, status = _problem_of(self.error)
        return None, (message if isinstance(self.error, RunError) else f"rank 0: {message}", status)


def _problem_of(error: BaseException) -> Problem:
    if isinstance(error, RunError):
        return str(error), error.status
    return f"{type(error).__name__}: {error}".splitlines()[0], RunError.status


def _as_error(message: str, status: int) -> RunError:
    return UsageError(message) if status == EXIT_USAGE else RunError(message, status)
