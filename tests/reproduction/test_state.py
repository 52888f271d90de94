"""A job is done, running, failed or missing by what lies in its folder."""

import json
import os

import pytest
from planted import plant

from reproduction import paper, run_slurm
from reproduction.graph import Graph
from reproduction.scales import SMALL_SCALES
from reproduction.state import (
    DONE,
    FAILED,
    MISSING,
    OTHER_COMMIT,
    OTHER_FLAGS,
    RUNNING,
    Folder,
    seconds_left,
    status_lines,
    words_of,
)
from util.errors import RunError


@pytest.fixture
def graph(tmp_path):
    made = Graph(SMALL_SCALES["demo"], str(tmp_path))
    for row in paper.TABLE3A.rows:
        made.cell(row, "FT", 0)
    return made


PRETRAIN, FINETUNE = "seed-0/pretrain/table3-a_mae", "seed-0/finetune/table3-a_mae"


def test_a_job_from_its_start_to_its_end(graph):
    folder = Folder(graph, graph.jobs[PRETRAIN])
    assert folder.state("abc").state == MISSING
    folder.begin()
    assert folder.state("abc", is_alive=True).state == RUNNING
    assert folder.state("abc").state == MISSING  # who started it is gone
    folder.end(0)
    plant(graph, PRETRAIN)
    assert folder.state("abc").state == folder.state(None).state == DONE


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [(2, FAILED, "bad input: error: --lr"), (3, FAILED, "the loss became NaN: error: --lr"),
     (5, FAILED, "out of memory"), (69, FAILED, "ranks were lost"), (99, FAILED, "exit status 99"),
     (75, MISSING, "interrupted after a checkpoint"), (-9, MISSING, "ended by signal 9")],
)  # fmt: skip
def test_a_failure_is_said_in_words_with_the_logs_last_line(graph, status, state, words):
    folder = Folder(graph, graph.jobs[PRETRAIN])
    folder.begin()
    with open(folder.log(), "w") as log:
        log.write("starts\nhalf a bar\rwhole bar\nerror: --lr is NaN\nsrun: ends\n\n")
    folder.end(status)
    found = folder.state("abc")
    assert found.state == state and words in found.detail
    assert words_of(143) == "ended by signal 15"


def test_a_slurm_job_that_left_the_queue_without_results_failed(graph):
    folder = Folder(graph, graph.jobs[FINETUNE])
    folder.begin(slurm_job="17")
    assert folder.state("abc", is_alive=True).state == RUNNING
    assert "what it needs failed" in folder.state("abc").detail
    os.makedirs(f"{folder.path}/slurm")
    with open(folder.log(), "w") as file:
        file.write("error: no images\n")
    found = folder.state("abc")
    assert (found.state, found.detail) == (FAILED, "error: no images")


def test_other_flags_and_commits_are_told_apart(graph):
    folder = plant(graph, PRETRAIN)
    found = folder.state("other")
    assert (found.state, found.detail) == (OTHER_COMMIT, "abc")
    folder.write(command=["main_pretrain", "--epochs", "1"])
    found = folder.state("abc")
    assert (found.state, found.detail) == (OTHER_FLAGS, "main_pretrain --epochs 1")


def test_a_record_is_whole_or_not_there(graph):
    folder = plant(graph, PRETRAIN)
    with open(f"{folder.path}/job.json") as file:
        assert json.load(file)["attempts"][0]["status"] == 0
    with open(f"{folder.path}/results.json", "w") as file:
        file.write('{"commit": "ab')  # as a full disk leaves it
    assert folder.state("abc").state == MISSING


def test_time_left_is_what_runs_of_the_kind_took(graph):
    """12 passes took 60 s; seven pre-trainings of 12 are missing, on two places."""
    plant(graph, PRETRAIN, seconds=60)
    states = [Folder(graph, job).state("abc") for job in graph.in_order()]
    left, unknown = seconds_left(states, 2)
    assert left == pytest.approx(7 * 60 / 2) and unknown == ["finetune"]
    lines = status_lines(states, 2)
    assert lines[-1].startswith("16 jobs: 1 done, 15 missing; about 4 minutes left; no finetune")
    assert lines[0].startswith("done") and lines[0].endswith(PRETRAIN)


@pytest.mark.parametrize(
    ("answer", "found"),
    [("echo RUNNING", True), ("echo PENDING", True), ("true", False),
     ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; false", False),
     ("echo 'Socket timed out' >&2; false", None), (None, None)],
)  # fmt: skip
def test_a_slurm_that_does_not_answer_ends_nothing(tmp_path, monkeypatch, answer, found):
    """Else a job would be taken for ended, and started twice."""
    monkeypatch.setenv("PATH", str(tmp_path))
    if answer:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "squeue").chmod(0o755)
    record = {"attempts": [{"slurm_job": "17"}]}
    if found is None:
        with pytest.raises(RunError, match="squeue"):
            run_slurm.alive(record)
    else:
        assert run_slurm.alive(record) is found
