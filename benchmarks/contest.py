"""Time contestants, processes that each hold one training step, in turns.

In turns, so that whatever else the machine does falls on all of them; in processes of their own,
so that each one's memory is its own.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch

# What a contestant's process builds: train(number of steps), and what it tells about a step.
Build = Callable[..., tuple[Callable[[int], None], dict]]
_CONTEXT = torch.multiprocessing.get_context("spawn")


class Failed(Exception):
    """A contestant has ended: out of memory, or with the error that it has printed."""


class Contestant:
    """A process that runs `build(*args)` and trains on demand."""

    def __init__(self, name: str, build: Build, *args):
        self.name, self.rates, self.peak, self.facts = name, [], 0, {}
        self.cpu_rates: list[float] = []
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(
            target=_serve, args=(theirs, name, build, args), daemon=True
        )
        self.process.start()
        theirs.close()

    def await_ready(self) -> None:
        """Wait until it is built."""
        self.facts = self._answer()

    def start_turn(self, num_steps: int) -> None:
        """Begin a turn of so many steps, after one that does not count."""
        self.num_steps = num_steps
        self.pipe.send(num_steps)

    def end_turn(self) -> None:
        """Wait for the turn's end; note steps per second, and per second of CPU time, and the peak
        of the memory in bytes."""
        seconds, cpu_seconds, self.peak = self._answer()
        self.rates.append(self.num_steps / seconds)
        self.cpu_rates.append(self.num_steps / max(cpu_seconds, 1e-9))

    def _answer(self):
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise Failed(f"{self.name} ended; its error stands above") from None
        if isinstance(answer, Failed):
            raise answer
        return answer

    def end(self) -> None:
        self.pipe.close()
        self.process.join(timeout=5)
        self.process.kill()  # it may wait for others that are gone
        self.process.join()

    @property
    def rate(self) -> float:
        """Steps per second, the median of the turns."""
        return statistics.median(self.rates)

    def ratio(self, other: "Contestant") -> float:
        """How many times faster than another: the median over the rounds."""
        return statistics.median(a / b for a, b in zip(self.rates, other.rates, strict=True))


def hold(plans: Sequence[tuple], rounds: int, num_steps: int) -> list[Contestant]:
    """Build contestants, let them compete, end them; those that fail are printed and left out.

    Args:
        plans: of each its name, what builds it, and the arguments of that.
    """
    contestants: list[Contestant] = []
    for plan in plans:
        contestant = Contestant(*plan)
        try:
            contestant.await_ready()
            contestants.append(contestant)
        except Failed as failure:
            print(failure, flush=True)
            contestant.end()
    compete(contestants, rounds, num_steps)
    for contestant in contestants:
        contestant.end()
    return contestants


def compete(contestants: list[Contestant], rounds: int, num_steps: int) -> None:
    """Give each its turn, `rounds` times; those that fail are printed and leave the list."""
    for _ in range(rounds):
        for contestant in list(contestants):
            time.sleep(0.5)  # OpenMP's threads spin a while after their work
            try:
                contestant.start_turn(num_steps)
                contestant.end_turn()
            except Failed as failure:
                print(failure, flush=True)
                contestants.remove(contestant)
                contestant.end()


def _serve(pipe, name: str, build: Build, args: tuple) -> None:
    use_cuda = torch.cuda.is_available()
    try:
        before = 0 if use_cuda else memory("VmRSS")
        train, facts = build(*args)
        if use_cuda:
            torch.cuda.empty_cache()  # the others are yet to be built
        pipe.send(facts)
        while True:
            try:
                num_steps = pipe.recv()
            except EOFError:
                return
            if use_cuda:
                torch.cuda.reset_peak_memory_stats()
            train(1)
            if use_cuda:
                torch.cuda.synchronize()
            started, cpu_started = time.perf_counter(), time.process_time()
            train(num_steps)
            if use_cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
            cpu_seconds = time.process_time() - cpu_started
            peak = torch.cuda.max_memory_allocated() if use_cuda else memory("VmHWM") - before
            pipe.send((seconds, cpu_seconds, peak))
            if use_cuda:
                torch.cuda.empty_cache()  # the others need it
    except torch.OutOfMemoryError:
        pipe.send(Failed(f"{name}: out of memory"))


def memory(kind: str) -> int:
    """VmRSS, this process's memory, or VmHWM, the most it has been; in bytes, 0 if unknown."""
    if not os.path.exists("/proc/self/status"):
        return 0
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields[kind].split()[0]) * 1024


def matmul_peak(device: torch.device, dtype: torch.dtype, sides: Sequence[int] = ()) -> float:
    """FLOPs per second that square matrix products reach on the device, the best of some sizes.

    Args:
        sides: of the matrices; by default large ones.
    """
    best = 0.0
    for side in sides or ((1024, 2048) if device.type == "cpu" else (4096, 8192)):
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        for _ in range(3):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(5):
                a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 5 * 2 * side**3 / (time.perf_counter() - started))
    return best
