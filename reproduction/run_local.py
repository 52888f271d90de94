"""Run the jobs on this machine, several at a time; a failure stops only what depends on it."""

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from reproduction.graph import Graph, Job
from reproduction.processes import Adopted, identity, send
from reproduction.scales import ROOT
from reproduction.state import DONE, LOG, RUNNING, Folder, JobState, words_of
from util.data.loader import num_cores
from util.errors import EXIT_INTERRUPTED, RunError
from util.training.signals import is_hangup_ignored

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command(graph: Graph, job: Job, processes: int) -> list[str]:
    """A job's command line without the interpreter, under torchrun if it has several processes."""
    if job.kind == "scenes":
        return ["-m", job.main, *graph.arguments(job)]
    start = []
    if processes > 1:
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*start, f"{job.main}.py", *graph.arguments(job)]


def shown(graph: Graph, job: Job, processes: int) -> str:
    """The same command as a line that can be copied into a shell."""
    return shlex.join(["python", *command(graph, job, processes)])


class LocalRun:
    """Runs what is missing of a graph as processes of this machine.

    Jobs that run already, since a reproduce.py that was killed started them, are waited for.

    Args:
        states: of all jobs, each job after those that it needs.
        jobs_at_once: how many jobs run at a time. processes: of each job, under torchrun.
    """

    def __init__(self, graph: Graph, states: Sequence[JobState], jobs_at_once: int, processes: int):
        self.graph, self.states, self.processes = graph, states, processes
        self.jobs_at_once = jobs_at_once
        self.slots = list(range(jobs_at_once))  # those that are free
        self.running: dict[str, tuple[subprocess.Popen | Adopted, int]] = {}
        self.is_interrupted = False

    def run(self) -> list[str]:
        """Run what is missing.

        Returns:
            The names of the jobs that failed, and of those that could not start because of it.

        Raises:
            RunError: a signal came. The running jobs have saved, and the same command goes on.
        """
        done = {found.job.name for found in self.states if found.state == DONE}
        waiting = {s.job.name: s.job for s in self.states if s.job.name not in done}
        log.info("%d jobs are done, %d to do", len(done), len(waiting))
        failed: list[str] = []
        heard = [number for number in SIGNALS if not is_hangup_ignored(number)]
        before = {number: signal.signal(number, self._interrupt) for number in heard}
        try:
            for found in self.states:
                if found.state == RUNNING:
                    self._adopt(waiting.pop(found.job.name))
            while self.running or (waiting and not self.is_interrupted):
                for name, job in list(waiting.items()):
                    if any(need in failed for need in job.needs):
                        log.error("%s is left out: what it needs has failed", name)
                        failed.append(name)
                        del waiting[name]
                    elif self._has_place() and done.issuperset(job.needs):
                        self._start(job)
                        del waiting[name]
                for name, status in self._ended():
                    if status is None:
                        waiting[name] = self.graph.jobs[name]
                    else:
                        (failed.append if status else done.add)(name)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.is_interrupted:
            raise RunError("interrupted: the same command goes on", EXIT_INTERRUPTED)
        return failed

    def _has_place(self) -> bool:
        has_place = bool(self.slots) and len(self.running) < self.jobs_at_once
        return has_place and not self.is_interrupted

    def _adopt(self, job: Job) -> None:
        """Wait for a job that runs already."""
        known = Folder(self.graph, job).last_attempt()
        log.info("runs already, and is waited for: %s (process %d)", job.name, known["pid"])
        slot = known["slot"]  # whose GPUs it has
        self.slots = [free for free in self.slots if free != slot]
        self.running[job.name] = Adopted(known), slot

    def _start(self, job: Job) -> None:
        folder, slot = Folder(self.graph, job), self.slots.pop(0)
        folder.begin(slot=slot)
        log.info("starts: %s", job.name)
        with open(os.path.join(folder.path, LOG), "a") as out:
            process = subprocess.Popen(
                [sys.executable, *command(self.graph, job, self.processes)], cwd=ROOT, stdout=out,
                stderr=subprocess.STDOUT, env=self._environment(slot), start_new_session=True,
            )  # fmt: skip
        folder.note(**identity(process.pid))
        self.running[job.name] = process, slot

    def _environment(self, slot: int) -> dict[str, str]:
        """A job's environment: its share of the cores, and GPUs of its own if there are enough."""
        at_once = max(self.jobs_at_once, len(self.running) + 1)
        threads = max(1, num_cores() // (at_once * self.processes))
        environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
        if devices:
            first = slot * self.processes
            own = [devices[(first + i) % len(devices)] for i in range(self.processes)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(own))
        return environment

    def _ended(self) -> list[tuple[str, int | None]]:
        """Wait a moment; then (name, exit status) of the jobs that ended since the last call.

        Of an adopted one that left no results the status is None: it has to be started.
        """
        time.sleep(0.2)
        ended = []
        for name, (process, slot) in list(self.running.items()):
            status = process.poll()
            if status is None:
                continue
            del self.running[name]
            if slot < self.jobs_at_once:
                self.slots = sorted({*self.slots, slot})
            folder = Folder(self.graph, self.graph.jobs[name])
            is_own = isinstance(process, subprocess.Popen)
            seconds = folder.end(status if is_own else None)
            if status == 0 and folder.results() is None:
                status = 1 if is_own else None  # a run that says it is done wrote its results
            if status is None:
                log.warning("ended without results, and goes on: %s", name)
            elif status:
                log.error("failed: %s (%s): %s", name, words_of(status), folder.last_line(True))
            else:
                log.info("done: %s, %.0f s", name, seconds)
            ended.append((name, status))
        return ended

    def _interrupt(self, number: int, frame) -> None:
        """Let the running jobs save; a second signal ends them at once."""
        kill = signal.SIGKILL if self.is_interrupted else signal.SIGTERM
        self.is_interrupted = True
        for process, _ in self.running.values():
            send(process, kill)
