"""Submit the jobs to SLURM, each to start when the jobs that it needs are done.

A preempted job is requeued under the same number, so jobs that wait for it (afterok) go on
waiting; if it fails for good, SLURM cancels them.
"""

import argparse
import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence

import submitit_launch
from reproduction.graph import Graph, Job
from reproduction.run_local import command, shown
from reproduction.state import DONE, RUNNING, Folder, JobState, last_attempt
from util.errors import RunError, UsageError, first_line

log = logging.getLogger(__name__)


def alive(record: dict) -> bool:
    """Whether a job's last attempt is in SLURM's queue, running or waiting.

    Args:
        record: what is in the job's job.json.

    Raises:
        RunError: squeue gives no answer; if we took the job for ended, it might run twice.
    """
    number = last_attempt(record).get("slurm_job")
    if not number:
        return False
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--jobs", number, "--format", "%T"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise RunError(f"squeue cannot be asked ({first_line(error)}): use a login node") from None
    if asked.returncode and "Invalid job id" not in asked.stderr:
        raise RunError(f"squeue says nothing of job {number}: {asked.stderr.strip()}; try again")
    return bool(asked.stdout.strip())


class SlurmRun:
    """Submits what is missing of a graph to SLURM.

    Args:
        states: of all jobs, each job after those that it needs.
        flags: for submitit_launch.py, by main; of all under an empty name.
        dry_run: print the commands, and submit nothing.
    """

    def __init__(self, graph: Graph, states: Sequence[JobState], flags: dict, dry_run: bool):
        self.graph, self.states, self.flags, self.dry_run = graph, states, flags, dry_run

    def run(self) -> None:
        """Submit every job that is neither done nor in the queue, once all can be."""
        for found in self.states:
            if found.state not in (DONE, RUNNING) and found.job.kind != "scenes":
                self._check(found.job)
        numbers: dict[str, str] = {}
        for found in self.states:
            if found.state == DONE:
                continue
            job, folder = found.job, Folder(self.graph, found.job)
            number = folder.last_attempt().get("slurm_job")
            if job.kind == "scenes":
                self._make_scenes(job, folder)
            elif found.state == RUNNING and number:
                numbers[job.name] = number
            else:
                needed = [numbers[name] for name in job.needs if name in numbers]
                numbers[job.name] = self._submit(job, folder, needed)

    def _make_scenes(self, job: Job, folder: Folder) -> None:
        """Make the scenes in this process: it takes seconds, and each task of a job would do it."""
        if self.dry_run:
            print(shown(self.graph, job, 1))
            return
        folder.begin()
        made = subprocess.run([sys.executable, *command(self.graph, job, 1)], check=False)
        folder.end(made.returncode)
        if made.returncode:
            raise RunError(f"{job.name} could not be made: see above")

    def _launcher(self, job: Job) -> list[str]:
        """The launcher's flags for a job; those of its main come last, so that they win."""
        words = [*shlex.split(self.flags.get("", "")), *shlex.split(self.flags.get(job.main, ""))]
        words += ["--job_dir", self.graph.folder(job.name)]
        return [*words, "--job_name", job.name.replace("/", "-")]

    def _check(self, job: Job) -> None:
        """Read a job's flags for its machines, as they will be when it is submitted."""
        words = [*self._launcher(job), *self.graph.arguments(job)]
        try:
            submitit_launch.split_args(submitit_launch.MAINS[job.main], words)
        except (SystemExit, UsageError) as error:
            if isinstance(error, UsageError):  # else the line is told
                log.error("%s", error)
            raise UsageError(
                f'{job.name} cannot be submitted so, and nothing was: --slurm "{job.main}=FLAGS" '
                "gives its main machines of its own"
            ) from None

    def _submit(self, job: Job, folder: Folder, needed: list[str]) -> str:
        """Submit the job to start after the jobs `needed`; its number (in a dry run, its name)."""
        words = self._launcher(job)
        if needed:
            words += ["--dependency", f"afterok:{':'.join(needed)}"]
            words += ["--sbatch", "kill-on-invalid-dep=yes"]
        if self.dry_run:
            print(shlex.join(["python", "submitit_launch.py", job.main, *words, *job.words]))
            return job.name
        main = submitit_launch.MAINS[job.main]
        arguments: tuple[argparse.Namespace, list[str]] = submitit_launch.split_args(
            main, [*words, *self.graph.arguments(job)]
        )
        (number,) = submitit_launch.submit(main, *arguments)
        folder.begin(slurm_job=number)
        log.info("%s: job %s", job.name, number)
        return number
