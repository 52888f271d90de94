"""Signals that end a run: in training after the step in flight, which all ranks agree on; else at
once."""

import contextlib
import logging
import signal
import threading

import torch
import torch.distributed as dist

from util.cluster import distributed
from util.errors import EXIT_INTERRUPTED, RunError, Stopped

log = logging.getLogger(__name__)


class Interrupted(RunError):
    """A signal ended the run, which the same command goes on with."""

    status = EXIT_INTERRUPTED


def is_hangup_ignored(number: int) -> bool:
    """Whether a signal is SIGHUP and nohup, or who else started the process, has it ignored."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


class StopSignal:
    """Hears SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2; a second SIGINT ends the run at once.

    While `is_training` a signal is remembered until all ranks have saved; at other times (reading
    data, evaluating, predicting) it ends the run where it is: what it keeps is on the disk already.
    While the run `breaks_off`, as in a test between two epochs, the first signal raises Stopped
    there; who catches that saves, and calls `leave`.

    SIGHUP comes when a terminal is closed; under nohup, which ignores it, it stays ignored.

    Handlers that were there before (a launcher's) run when all ranks have saved, and with None
    for the frame.
    """

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_training = self.breaks_off = False
        self.previous: dict[int, object] = {}
        if threading.current_thread() is threading.main_thread():
            heard = [n for n in self.numbers if not is_hangup_ignored(n)]
            self.previous = {n: signal.signal(n, self._remember) for n in heard}

    def _remember(self, number: int, frame: object) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        is_first, self.received = self.received is None, self.received or number
        if self.breaks_off:
            if is_first:
                raise Stopped(f"{signal.Signals(number).name}: what is on the disk is kept")
        elif not self.is_training:
            self.leave(Stopped, "what is on the disk is kept, and the same command goes on with it")

    def agreed(self) -> bool:
        """True on all ranks once any rank has received a signal."""
        if not distributed.is_distributed():
            return self.received is not None
        flag = torch.tensor(int(self.received or 0))
        # On the CPU: agreeing on a flag must not wait for the GPU.
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=distributed.cpu_group())
        # By what was sent alone: a signal that came meanwhile is known to this rank only, which
        # would stop while the others go on. It counts from the next step on.
        if not flag:
            return False
        self.received = self.received or int(flag)
        return True

    def leave(
        self, kind: type[BaseException] = Interrupted,
        why: str = "the run is saved; --resume auto goes on with it",
    ) -> None:  # fmt: skip
        """End the run, through the launcher's handler where it had one."""
        name = signal.Signals(self.received).name
        handler = self.previous.get(self.received)
        self.restore()
        if callable(handler) and handler is not signal.default_int_handler:
            log.warning("%s: %s; the launcher takes over", name, why)
            handler(self.received, None)
        raise kind(f"{name}: {why}")

    def restore(self) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self.previous.items():
            with contextlib.suppress(TypeError, ValueError):
                signal.signal(number, handler)
        self.previous = {}
