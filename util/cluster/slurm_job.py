"""A main as each task of a SLURM job runs it: any restart goes on at its newest checkpoint.

How a job comes back:
- USR2 (a preemption, or `--signal_delay` before the time limit): the run saves at the end of the
  step in flight; then submitit's handler, on rank 0, requeues the job.
- SIGTERM while SLURM still calls the job running (a preemption with a grace time): likewise.
- A node that dies: SLURM requeues the job by itself once it has declared the node down.
- A task that dies without a word, or that loses its peers: the batch script requeues the job.
What the run itself reports as wrong (bad data, a NaN, a bug) is not tried again.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import submitit
from submitit.core.utils import DelayedSubmission, UncompletedJobError

from util.entry import run_main
from util.errors import EXIT_INTERRUPTED, EXIT_LOST_RANKS

GRACE_SECONDS = 5.0  # in which a peer that failed writes down why
WAIT_SECONDS = 600.0  # for rank 0 to requeue the job, which ends this task


class Job:
    """Runs a main; submitit pickles it, and pickles it again when it requeues the job.

    Args:
        parse_args, main: of the main's module, which is pickled as its name: the job has the
            copy of the code that was made for it.
        argv: its command line without the first word; `%j` stands for the job's number.
        folder: the working directory, against which paths in `argv` are read.
        begin: called first, with the command line: what it gives is run.
    """

    def __init__(
        self, parse_args: Callable[[], argparse.Namespace],
        main: Callable[[argparse.Namespace], None], argv: list[str], folder: str,
        begin: Callable[[list[str]], list[str]] = list,
    ):  # fmt: skip
        self.parse_args, self.main = parse_args, main
        self.argv, self.folder, self.begin = argv, folder, begin

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit to requeue: the same job again, which --resume auto lets go on."""
        return DelayedSubmission(self)

    def __call__(self) -> None:
        env = submitit.JobEnvironment()
        forget_last_attempt(env)
        os.chdir(self.folder)
        argv = self.begin([word.replace("%j", env.job_id) for word in self.argv])
        sys.argv = [f"{self.main.__module__}.py", *argv]
        signal.signal(signal.SIGTERM, _TermHandler(env))
        logging.getLogger("submitit").propagate = False  # it prints by itself
        try:
            run_main(self.main, self.parse_args)
        except SystemExit as end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # SLURM ends what it has requeued
            if end.code == EXIT_INTERRUPTED and env.global_rank != 0:
                await_the_end()
            if end.code == EXIT_LOST_RANKS:
                time.sleep(GRACE_SECONDS)
            # -1: submitit has requeued the job.
            if end.code not in (None, 0, -1, EXIT_INTERRUPTED, EXIT_LOST_RANKS):
                report_failure(env, f"exit status {end.code}")
            raise
        except UncompletedJobError as error:  # submitit will not requeue the job
            report_failure(env, str(error))
            print(f"error: {error} --resume auto goes on", file=sys.stderr, flush=True)
            sys.exit(EXIT_INTERRUPTED)
        except Exception as error:
            report_failure(env, repr(error))
            raise


def forget_last_attempt(env: submitit.JobEnvironment) -> None:
    """Remove this task's result of an earlier attempt, which submitit would take for this one's."""
    files = [env.paths.result_pickle]
    if env.global_rank == 0:
        files.append(env.paths.submitted_pickle)
    for file in files:
        # An attempt that was killed while it wrote: submitit refuses to write then.
        file.with_suffix(file.suffix + ".save_tmp").unlink(missing_ok=True)
    env.paths.result_pickle.unlink(missing_ok=True)


def failure_file(folder: str | Path, job_number: str) -> Path:
    """Where a task writes that the run failed by itself; the batch script looks for it."""
    return Path(folder) / f"{job_number}.failed"


def report_failure(env: submitit.JobEnvironment, reason: str) -> None:
    """Write down that the run failed by itself, so that the batch script does not requeue it."""
    with open(failure_file(env.paths.folder, env.raw_job_id), "a") as file:
        file.write(f"rank {env.global_rank}: {reason}\n")


def await_the_end() -> None:
    """Wait for rank 0's requeue to end the job: an exit before it would make srun kill rank 0."""
    time.sleep(WAIT_SECONDS)


class _TermHandler:
    """Requeues a job that is preempted with a grace time; submitit passes over SIGTERM.

    A job that ends within its grace time is finished for SLURM, and one that trains on loses
    steps. The same signal goes to a job that SLURM is ending (scancel, requeue), which it no longer
    calls running; and from srun to the tasks that are left when one has died. Those cannot agree
    to stop any more, so StopSignal does not get here: it passes no frame, and Python does.
    """

    def __init__(self, env: submitit.JobEnvironment):
        self.env = env
        self.requeue = signal.getsignal(signal.SIGUSR2)  # submitit's

    def __call__(self, number: int, frame: types.FrameType | None) -> None:
        if frame is not None:
            sys.exit(EXIT_INTERRUPTED)  # the batch script looks further
        if self.env.global_rank == 0 and job_state(self.env.job_id) == "RUNNING":
            self.requeue(number, frame)


def job_state(job_number: str) -> str:
    """SLURM's word for the state of a job, or ARRAY_TASK, from the controller: sites without
    accounting have it. Empty where nothing answers; then the batch script asks again."""
    command = ["squeue", "--noheader", "--jobs", job_number, "--format", "%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
