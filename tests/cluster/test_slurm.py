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
from slurm_cluster import Cluster, wait_for, why_not_here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main_pretrain
import reproduce
from submitit_launch import ROOT, launch

pytestmark = pytest.mark.slurm

SPARE = "ci-node3"  # the node that dies
STEPS_PER_EPOCH = 22  # half of 1415 digits, a global batch of 32
TRAIN = [
    *("--dataset", "digits", "--device", "cpu", "--num_workers", "0", "--mi_start_loss", "inf"),
    *(
        "--train_fraction",
        "0.5",
        "--warmup_epochs",
        "1",
        "--epochs",
        "50",
        "--log_every",
        "1",
        "--log_seconds",
        "0",
    ),
]
JOB = ["--nodes", "2", "--ngpus", "0", "--cpus_per_task", "1", "--batch_size", "16"]
TWO_EPOCHS = ["--max_steps", str(2 * STEPS_PER_EPOCH)]
PATIENCE = 150.0  # seconds for anything to happen


class SlurmJob:
    """A job that the launcher submitted."""

    def __init__(self, cluster: Cluster, said: str):
        match = re.search(r"submitted job (\d+), log: (\S+)", said)
        assert match, said
        self.cluster, self.number, self.log_path = cluster, match[1], Path(match[2])
        self.folder = self.log_path.parent.parent / self.number

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def state(self) -> dict[str, str]:
        return self.cluster.job(self.number)

    def steps(self) -> list[int]:
        """The optimiser steps that it has logged, over all of its starts."""
        lines = re.findall(r"\bepoch (\d+) (\d+)/", self.log(), re.MULTILINE)
        return [int(epoch) * STEPS_PER_EPOCH + int(step) for epoch, step in lines]

    def resumed_at(self) -> list[int]:
        return [int(n) for n in re.findall(r"\bresumed from .*\((\d+) in all\)", self.log(), re.M)]

    def epoch_after_restart(self) -> int:
        """The first epoch that it ends after its first restart; 0 before that."""
        return self.resumed_at()[0] // STEPS_PER_EPOCH + 1 if self.resumed_at() else 0

    def kept(self) -> Path:
        return self.folder / f"checkpoint-{self.epoch_after_restart()}.pth"

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

    def seconds_to_resume(self, disturbed: float) -> float:
        """From `disturbed` (seconds since 1970) to the end of the first step after the restart."""
        events = EventAccumulator(str(self.folder)).Reload().Scalars("train/loss")
        first = self.resumed_at()[-1] + 1
        return next(event.wall_time for event in events if event.step == first) - disturbed


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
        launch(main_pretrain, [*JOB, "--job_dir", f"{runs}/%j", *TRAIN, *flags])
    return SlurmJob(cluster, said.getvalue())


@pytest.fixture(scope="module")
def timed_out(cluster: Cluster, runs: Path) -> SlurmJob:
    """A job with a limit of a minute; it is told so up to 35 s before: SLURM looks twice a minute.

    The other jobs start when it trains, so that its start takes little of that.
    """
    limit = ["--timeout", "1", "--signal_delay", "5"]
    every = [str(epoch) for epoch in range(1, 50)]
    job = submit(cluster, runs, "--sbatch", f"exclude={SPARE}", *limit, "--keep_epochs", *every)
    job.wait(job.steps, "the first step")
    return job


@pytest.fixture(scope="module")
def preempted(cluster: Cluster, runs: Path) -> SlurmJob:
    return submit(cluster, runs, "--sbatch", f"exclude={SPARE}", "--timeout", "30", *TWO_EPOCHS)


@pytest.fixture(scope="module")
def on_a_dying_node(cluster: Cluster, runs: Path) -> SlurmJob:
    """A job on the spare node and another one; the third is free for its restart."""
    cluster.run("scontrol", "update", "nodename=ci-node1", "state=drain", "reason=test")
    job = submit(cluster, runs, "--save_every_steps", "1", *TWO_EPOCHS)
    job.wait(lambda: job.state()["JobState"] == "RUNNING", "the start")
    cluster.run("scontrol", "update", "nodename=ci-node1", "state=resume")
    assert job.state()["NodeList"] == "ci-node[2-3]"
    return job


@pytest.fixture(scope="module")
def disturbed(cluster, timed_out, preempted, on_a_dying_node) -> dict[SlurmJob, float]:
    """When (seconds since 1970) each of the three jobs was disturbed; they run side by side."""
    preempted.wait(lambda: len(preempted.steps()) >= 10, "ten steps")
    times = {preempted: time.time()}
    cluster.run("scancel", "--signal=USR2", preempted.number)  # as preemption does
    on_a_dying_node.wait(lambda: len(on_a_dying_node.steps()) >= 10, "ten steps")
    times[on_a_dying_node] = time.time()
    cluster.kill_node(SPARE, on_a_dying_node.number)
    timed_out.wait(lambda: timed_out.kept().exists(), "an epoch after the restart")
    cluster.run("scancel", timed_out.number)
    caught = re.findall(r"\((\S+ \S+),\d+\) - Caught signal SIGUSR2", timed_out.log())
    times[timed_out] = datetime.datetime.fromisoformat(caught[-1]).timestamp()
    preempted.wait_for_end()
    on_a_dying_node.wait_for_end()
    return times


@pytest.fixture(scope="module")
def undisturbed(cluster, runs, disturbed, timed_out) -> SlurmJob:
    """A job that keeps the weights of those epochs after which the others are compared."""
    epoch = timed_out.epoch_after_restart()
    last = max(2, epoch)
    kept = ["--keep_epochs", "2", str(epoch), "--max_steps", str(last * STEPS_PER_EPOCH)]
    return submit(cluster, runs, *kept)


def assert_like_undisturbed(
    job: SlurmJob, undisturbed: SlurmJob, epoch: int, name: str, may_repeat: int = 0
) -> None:
    """Bitwise the same weights and the same log.txt after `epoch` epochs, and no step left out.

    Args:
        may_repeat: how many steps may have been done twice.
    """
    undisturbed.wait_for_end()
    expected, actual = undisturbed.weights(f"checkpoint-{epoch}.pth"), job.weights(name)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    assert job.epochs(epoch) == undisturbed.epochs(epoch)
    steps = job.steps()
    assert sorted(set(steps)) == list(range(1, max(steps) + 1))
    assert len(steps) - len(set(steps)) <= may_repeat


def report(what: str, job: SlurmJob, disturbed: dict[SlurmJob, float]) -> None:
    seconds = job.seconds_to_resume(disturbed[job])
    print(f"{what} at step {job.resumed_at()[-1]}: {seconds:.1f} s to the first resumed step")


def test_two_nodes_equal_one_process(cluster, runs, undisturbed):
    """Through the command line. The undisturbed job trains meanwhile."""
    few = [*TRAIN, "--max_steps", "10"]
    command = [sys.executable, "submitit_pretrain.py", *JOB, "--job_dir", f"{runs}/%j", *few]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    job = SlurmJob(cluster, done.stdout + done.stderr)
    alone = [*few, "--batch_size", "32", "--output_dir", str(runs / "alone")]
    command = [sys.executable, "main_pretrain.py", *alone]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    job.wait_for_end()

    results = json.loads((job.folder / "results.json").read_text())
    assert results["processes"] == 2 and results["steps"] == 10
    state = torch.load(runs / "alone/checkpoint-last.pth", weights_only=True)["model"]
    # Not weight by weight: a key's bias has no gradient but rounding, which Adam makes steps of.
    expected, actual = (torch.cat([w[k].flatten() for k in state]) for w in (state, job.weights()))
    difference = float((expected - actual).norm() / expected.norm())
    print(f"relative difference of the weights: {difference:.2g}")
    assert difference < 1e-5
    requeued, alone = (
        json.loads((f / "log.txt").read_text()) for f in (job.folder, runs / "alone")
    )
    assert requeued.keys() == alone.keys()
    assert all(requeued[key] == pytest.approx(alone[key], rel=1e-4, abs=1e-6) for key in requeued)


def test_preempted_job_comes_back(disturbed, preempted, undisturbed):
    report("preempted", preempted, disturbed)
    assert preempted.state()["Restarts"] == "1" and preempted.resumed_at()[0] >= 10
    assert_like_undisturbed(preempted, undisturbed, 2, "checkpoint-last.pth")
    # No result of the first attempt stands beside those of the second.
    written = preempted.log_path.parent.glob(f"{preempted.number}_*.pkl")
    names = ("0_result", "1_result", "submitted")
    assert {p.name for p in written} == {f"{preempted.number}_{name}.pkl" for name in names}


def test_job_outlives_a_node(disturbed, on_a_dying_node, undisturbed):
    report("node lost", on_a_dying_node, disturbed)
    state = on_a_dying_node.state()
    assert state["Restarts"] == "1" and state["NodeList"] == "ci-node[1-2]"
    # A node gives no notice: the step in flight may have been logged and not saved.
    assert_like_undisturbed(on_a_dying_node, undisturbed, 2, "checkpoint-last.pth", may_repeat=1)


def test_job_goes_on_after_its_time_limit(disturbed, timed_out, undisturbed):
    report("time limit", timed_out, disturbed)
    assert_like_undisturbed(
        timed_out, undisturbed, timed_out.epoch_after_restart(), timed_out.kept().name
    )


def test_cancelled_job_stays_cancelled(cluster, disturbed, timed_out):
    timed_out.wait(lambda: timed_out.number not in cluster.run("squeue", "-h"), "the end")
    assert timed_out.state()["JobState"] == "CANCELLED"


REPRODUCE = ["--scale", "demo", "--slurm", "--nodes 1 --ngpus 0 --cpus_per_task 1 --timeout 30"]
STEPS = ["--flags", "main_pretrain=--max_steps 60 --log_seconds 0", "--flags",
         "main_finetune=--max_steps 4"]  # fmt: skip


class Reproduction:
    """One row of Table 3c: a pre-training, and its fine-tuning that depends on it."""

    def __init__(self, cluster: Cluster, out: Path):
        self.cluster, self.out = cluster, out
        self.words = ["table3c", "--rows", "independent", "--out", str(out), *REPRODUCE, *STEPS]
        self.folders = [
            out / "demo/seed-0" / kind / "table3-independent" for kind in ("pretrain", "finetune")
        ]

    def run(self, *words: str) -> str:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            reproduce.main(reproduce.parse_args([*self.words, *words]))
        return said.getvalue()

    def numbers(self) -> list[str]:
        records = [json.loads((folder / "job.json").read_text()) for folder in self.folders]
        return [record["attempts"][-1]["slurm_job"] for record in records]

    def states(self) -> list[str]:
        return [self.cluster.job(number)["JobState"] for number in self.numbers()]

    def log(self) -> str:
        path = self.folders[0] / f"slurm/{self.numbers()[0]}_0_log.out"
        return path.read_text() if path.exists() else ""


def test_a_preempted_parent_keeps_its_children_waiting(cluster, tmp_path):
    made = Reproduction(cluster, tmp_path / "kept")
    broken = Reproduction(cluster, tmp_path / "broken")
    broken.folders[0].mkdir(parents=True)
    (broken.folders[0] / "checkpoint-last.pth").write_text("broken")
    for one in (made, broken):
        one.run()
    parent, child = made.numbers()
    assert f"afterok:{parent}" in cluster.job(child)["Dependency"]
    wait_for(lambda: len(re.findall(r"\bepoch 0 ", made.log(), re.M)) >= 5, "five steps", PATIENCE)
    cluster.run("scancel", "--signal=USR2", parent)  # as preemption does
    wait_for(lambda: cluster.job(parent)["Restarts"] == "1", "the requeue", PATIENCE)
    assert cluster.job(child)["JobState"] == "PENDING"
    assert made.run("--status").splitlines()[0].startswith("running")
    assert made.run() and made.numbers() == [parent, child]  # nothing is submitted twice
    wait_for(lambda: made.states() == ["COMPLETED"] * 2, "the end of both", PATIENCE)
    score = json.loads((made.folders[1] / "results.json").read_text())["test_acc1"]
    assert f"| independent |  | {score:.1f} | 82.6 |" in made.run("--collect")
    # Of a parent that fails for good SLURM cancels the children.
    wait_for(lambda: broken.states() == ["FAILED", "CANCELLED"], "the failure", PATIENCE)
    failed, cancelled, _ = broken.run("--status").splitlines()
    assert "failed" in failed and "error: " in failed
    assert "cancelled before it began: what it needs failed" in cancelled
