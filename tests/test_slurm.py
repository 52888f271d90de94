"""Jobs on a real SLURM: equal to one process, and unharmed by preemption, time-outs, dead nodes."""

import contextlib
import datetime
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.slurm.cluster import Cluster, wait_for, why_not_here
from util.slurm import ROOT, launch

pytestmark = pytest.mark.slurm

SPARE = "ci-node3"  # the node that dies
STEPS_PER_EPOCH = 44  # 1437 digits, a global batch of 32, the last one not whole
TRAIN = (
    "--dataset digits --device cpu --num_workers 0 --mi_start_loss inf --warmup_epochs 1 "
    "--epochs 50 --log_every 1"
).split()
JOB = "--nodes 2 --ngpus 0 --cpus_per_task 1 --batch_size 16".split()
PATIENCE = 150.0  # seconds; all of it passes only where something is wrong


class SlurmJob:
    """A job that the launcher submitted."""

    def __init__(self, cluster: Cluster, said: str):
        found = re.search(r"submitted job (\d+), log: (\S+)", said)
        assert found, said
        self.cluster, self.number, self.log_path = cluster, found[1], Path(found[2])
        self.folder = self.log_path.parent.parent / self.number

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def state(self) -> dict[str, str]:
        return self.cluster.job(self.number)

    def steps(self) -> list[int]:
        """The optimiser steps that it has logged, over all of its starts."""
        found = re.findall(r"^epoch (\d+) (\d+)/", self.log(), re.MULTILINE)
        return [int(epoch) * STEPS_PER_EPOCH + int(step) for epoch, step in found]

    def resumed_at(self) -> list[int]:
        return [int(n) for n in re.findall(r"^resumed from .*\((\d+) in all\)", self.log(), re.M)]

    def wait(self, condition, what: str) -> None:
        try:
            wait_for(condition, f"job {self.number}: {what}", PATIENCE)
        except TimeoutError as error:
            pytest.fail(f"{error}; {self.state()}; the end of its log:\n{self.log()[-3000:]}")

    def wait_for_end(self) -> None:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait(lambda: self.state()["JobState"] in ended, "the end")
        assert self.state()["JobState"] == "COMPLETED", self.log()[-3000:]

    def weights(self, name: str = "checkpoint-last.pth") -> dict[str, torch.Tensor]:
        return torch.load(self.folder / name, weights_only=True)["model"]

    def epochs(self, count: int) -> list[str]:
        return (self.folder / "log.txt").read_text().splitlines()[:count]

    def seconds_to_resume(self, signalled: float, resumed_at: int) -> float:
        """From `signalled` (time.time()) to the end of the first step after the restart."""
        events = EventAccumulator(str(self.folder)).Reload().Scalars("train/loss")
        return min(event.wall_time for event in events if event.step > resumed_at) - signalled


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    reason = why_not_here()
    if reason and os.environ.get("CI") == "true":
        pytest.fail(f"CI must not skip the SLURM tests: {reason}")
    if reason:
        pytest.skip(reason)
    with Cluster(num_nodes=3) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environ.items():
            patch.setenv(name, value)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield running


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def submit(cluster: Cluster, runs: Path, *flags: str) -> SlurmJob:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        launch("main_pretrain", [*JOB, "--job_dir", f"{runs}/%j", *TRAIN, *flags])
    return SlurmJob(cluster, said.getvalue())


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, runs: Path) -> SlurmJob:
    """A job that keeps the weights of each epoch, for as long as somebody compares with it."""
    every = [str(epoch) for epoch in range(1, 50)]
    return submit(cluster, runs, "--sbatch", f"exclude={SPARE}", "--keep_epochs", *every)


@pytest.fixture(scope="module")
def timed_out(cluster: Cluster, runs: Path) -> SlurmJob:
    """A job with a limit of a minute that is told so 30 seconds before."""
    every = [str(epoch) for epoch in range(1, 50)]
    limit = ["--timeout", "1", "--signal_delay", "30"]
    return submit(cluster, runs, "--sbatch", f"exclude={SPARE}", *limit, "--keep_epochs", *every)


@pytest.fixture(scope="module")
def preempted(cluster: Cluster, runs: Path) -> SlurmJob:
    limit = ["--timeout", "30", "--max_steps", str(2 * STEPS_PER_EPOCH)]
    return submit(cluster, runs, "--sbatch", f"exclude={SPARE}", *limit)


@pytest.fixture(scope="module")
def on_a_dying_node(cluster: Cluster, runs: Path) -> SlurmJob:
    """A job on the spare node and another one; the third is free for its restart."""
    cluster.run("scontrol", "update", "nodename=ci-node1", "state=drain", "reason=test")
    limit = ["--save_every_steps", "1", "--max_steps", str(2 * STEPS_PER_EPOCH)]
    job = submit(cluster, runs, *limit)
    job.wait(lambda: job.state()["JobState"] == "RUNNING", "the start")
    assert job.state()["NodeList"] == "ci-node[2-3]"
    cluster.run("scontrol", "update", "nodename=ci-node1", "state=resume")
    return job


def assert_like_undisturbed(job: SlurmJob, undisturbed: SlurmJob, epoch: int, name: str) -> None:
    """Bitwise the same weights and the same log.txt after `epoch` epochs, and no step twice."""
    kept = undisturbed.folder / f"checkpoint-{epoch}.pth"
    undisturbed.wait(kept.exists, f"epoch {epoch}")
    expected, actual = undisturbed.weights(kept.name), job.weights(name)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    assert job.epochs(epoch) == undisturbed.epochs(epoch)
    steps = job.steps()
    assert steps == list(range(1, len(steps) + 1))


def test_two_nodes_equal_one_process(cluster, runs, undisturbed, timed_out):
    """Through the command line; the two long jobs are started first and train meanwhile."""
    few = [*TRAIN, "--max_steps", "10"]
    command = [sys.executable, "submitit_pretrain.py", *JOB, "--job_dir", f"{runs}/%j", *few]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    job = SlurmJob(cluster, done.stdout + done.stderr)
    alone = [*few, "--batch_size", "32", "--output_dir", str(runs / "alone")]
    subprocess.run([sys.executable, "main_pretrain.py", *alone], cwd=ROOT, check=True)
    job.wait_for_end()

    results = json.loads((job.folder / "results.json").read_text())
    assert results["processes"] == 2 and results["steps"] == 10
    expected = torch.load(runs / "alone/checkpoint-last.pth", weights_only=True)["model"]
    actual = job.weights()
    assert expected.keys() == actual.keys()
    difference = max(float((expected[k] - actual[k]).abs().max()) for k in expected)
    print(f"largest difference of a weight: {difference:.2g}")
    assert difference < 1e-5
    own, other = (
        json.loads(p.read_text()) for p in (job.folder / "log.txt", runs / "alone/log.txt")
    )
    assert own.keys() == other.keys()
    assert all(own[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6) for key in own)


def test_preempted_job_comes_back(cluster, undisturbed, preempted, on_a_dying_node):
    """The signal that preemption sends. The job whose node is to die starts here, too."""
    preempted.wait(lambda: len(preempted.steps()) >= 10, "ten steps")
    signalled = time.time()
    cluster.run("scancel", "--signal=USR2", preempted.number)
    preempted.wait(preempted.resumed_at, "the restart")
    preempted.wait_for_end()
    (resumed_at,) = preempted.resumed_at()
    assert preempted.state()["Restarts"] == "1" and resumed_at >= 10
    assert_like_undisturbed(preempted, undisturbed, 2, "checkpoint-last.pth")
    seconds = preempted.seconds_to_resume(signalled, resumed_at)
    print(
        f"preempted at step {resumed_at}: {seconds:.1f} s to the first resumed step, 0 steps lost"
    )
    # No result of the first attempt may stand beside those of the second.
    assert sorted(p.name for p in preempted.log_path.parent.glob(f"{preempted.number}_*.pkl")) == [
        f"{preempted.number}_{name}.pkl" for name in ("0_result", "1_result", "submitted")
    ]


def test_job_outlives_a_node(cluster, undisturbed, on_a_dying_node):
    job = on_a_dying_node
    job.wait(lambda: len(job.steps()) >= 10, "ten steps")
    died = time.time()
    cluster.kill_node(SPARE, job.number)
    job.wait(job.resumed_at, "the restart")
    job.wait_for_end()
    (resumed_at,) = job.resumed_at()
    assert job.state()["Restarts"] == "1" and SPARE not in job.state()["NodeList"]
    assert_like_undisturbed(job, undisturbed, 2, "checkpoint-last.pth")
    seconds = job.seconds_to_resume(died, resumed_at)
    print(
        f"node died at step {resumed_at}: {seconds:.1f} s to the first resumed step, 0 steps lost"
    )


def test_job_goes_on_after_its_time_limit(cluster, undisturbed, timed_out):
    timed_out.wait(timed_out.resumed_at, "the restart")
    resumed_at = timed_out.resumed_at()[0]
    epoch = resumed_at // STEPS_PER_EPOCH + 1
    kept = timed_out.folder / f"checkpoint-{epoch}.pth"
    timed_out.wait(kept.exists, f"epoch {epoch}")
    assert_like_undisturbed(timed_out, undisturbed, epoch, kept.name)
    caught = re.search(r"\((\S+ \S+),\d+\) - Caught signal SIGUSR2", timed_out.log())
    signalled = datetime.datetime.fromisoformat(caught[1]).timestamp()
    seconds = timed_out.seconds_to_resume(signalled, resumed_at)
    print(
        f"timed out at step {resumed_at}: {seconds:.1f} s to the first resumed step, 0 steps lost"
    )


def test_cancelled_job_stays_cancelled(cluster, timed_out):
    restarts = timed_out.state()["Restarts"]
    cluster.run("scancel", timed_out.number)
    timed_out.wait(lambda: timed_out.number not in cluster.run("squeue", "-h"), "the end")
    assert timed_out.state()["JobState"] == "CANCELLED"
    assert timed_out.state()["Restarts"] == restarts
