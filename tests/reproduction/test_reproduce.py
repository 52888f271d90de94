"""reproduce.py as it is used: from nothing to a table, interrupted, failing, twice at once."""

import contextlib
import csv
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pages import check_page
from slurm_cluster import wait_for

import reproduce
from util.entry import run_main

ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    *("--scale", "demo", "--commit", "test"),
    *("--flags", "main_pretrain=--max_steps 2", "--flags", "main_finetune=--max_steps 2"),
    *("--flags", "main_linprobe=--max_steps 2"),
    *("--flags", "main_detection=--iterations 2 --warmup_iterations 1 --eval_every 2"),
    *("--flags", "main_segmentation=--iterations 2 --warmup_iterations 1 --eval_every 2"),
]

ANY_COMMIT = ["--any_commit", *SHORT[:2], *SHORT[4:]]


@pytest.fixture(autouse=True)
def _commit(monkeypatch):
    """Edits during the tests are no other commit."""
    monkeypatch.setenv("MIMAE_COMMIT", "test")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def here(*words) -> tuple[int, str, str]:
    """Run the command in this process: status, stdout, stderr."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_main(reproduce.main, lambda: reproduce.parse_args([str(w) for w in words]))
        except SystemExit as end:
            status = end.code or 0
    return status, out.getvalue(), err.getvalue()


def refused(*words) -> str:
    status, _, err = here(*words)
    line = err.strip().splitlines()[-1]
    assert status == 2, err
    return line


def test_all_is_all_whatever_stands_beside_it():
    asked = [reproduce.parse_args(words).table for words in (["all"], ["table1", "all"])]
    assert asked[0] == asked[1] and {"table1", "table5", "claims"} <= set(asked[0])


def test_claims_take_the_rows_of_every_table():
    args = reproduce.parse_args(["claims", "--rows", "mimae_400", "mae_1600"])
    assert args.rows == ["mimae_400", "mae_1600"]


ASKED = ("table3a", "table2", "--rows", "a", "scratch")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """(a) of Table 3a, and of Table 2 a model without pre-training, in few steps."""
    out = tmp_path_factory.mktemp("reproduction")
    environment = os.environ | {"MIMAE_COMMIT": "test", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "reproduce.py", *ASKED, "--jobs", "2"]
    done = subprocess.run(
        [*words, "--out", str(out), *SHORT], cwd=ROOT, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_from_nothing_to_a_table(table):
    out, said = table
    lines = (out / "demo/tables/table3a.md").read_text().splitlines()
    scores = {}
    for kind in ("finetune", "linprobe"):
        folder = out / f"demo/seed-0/{kind}/mae_vit_base_800ep"
        scores[kind] = f"{json.loads((folder / 'results.json').read_text())['test_acc1']:.1f}"
    (line,) = (line for line in lines if line.startswith("| (a) L_rec: MAE "))
    found = re.findall(r"\d+\.\d", line)
    assert [scores["finetune"], "82.2", scores["linprobe"]] == found[:3] and line in said
    (line,) = (line for line in said.splitlines() if line.startswith("| no pre-training"))
    assert len(re.findall(r"\d+\.\d", line)) == 3  # AP of boxes and masks, mIoU
    assert (out / "demo/tables/table3a.tex").exists() and (out / "demo/tables/table3a.csv").exists()
    assert "no pre-training" in check_page(out / "demo/tables/report.html").text


def test_what_is_done_is_not_done_again(table):
    out, _ = table
    before = {path: path.stat().st_mtime_ns for path in out.rglob("checkpoint-last.pth")}
    status, said, err = here(*ASKED, "--out", out, *SHORT)
    assert status == 0 and "(a) L_rec: MAE" in said, err
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("checkpoint-last.pth")}
    status, said, _ = here(*ASKED, "--out", out, *SHORT, "--status")
    assert status == 0 and said.splitlines()[-1] == "6 jobs: 6 done"
    assert here(*ASKED, "--out", out, *SHORT, "--dry_run")[1] == ""


def test_from_another_folder_it_is_the_same(table, monkeypatch):
    """A relative --out is the user's, the commands' is the code's."""
    out, _ = table
    monkeypatch.chdir(out.parent)
    status, said, err = here(*ASKED, "--out", out.name, *SHORT, "--status")
    assert status == 0 and said.splitlines()[-1] == "6 jobs: 6 done", err


def test_another_row_takes_what_is_there(table):
    out, _ = table
    _, said, _ = here("table3a", "--rows", "a", "b", "--out", out, *SHORT, "--dry_run")
    assert [line.split()[1] for line in said.splitlines()] == [
        "main_pretrain.py",
        "main_finetune.py",
    ]


def test_other_flags_and_commits_are_shown_and_not_mixed(table):
    out, _ = table
    line = refused(*ASKED, "--out", out, *SHORT, "--flags", "main_finetune=--epochs 3")
    assert "finetune/mae_vit_base_800ep is done with other flags" in line
    changed = [word if word != "test" else "another" for word in SHORT]
    assert "is done by another commit, 6 in all" in refused(*ASKED, "--out", out, *changed)
    both = refused(*ASKED, "--out", out, *ANY_COMMIT, "--commit", "another")
    assert "--commit" in both and "--any_commit" in both
    status, said, err = here(*ASKED, "--out", out, *changed, "--collect")
    assert status == 0 and "done by another commit: test" in said + err
    assert "| (a) L_rec: MAE |  | -- | 82.2 | -- |  |" in said
    status, said, _ = here(*ASKED, "--out", out, *ANY_COMMIT, "--collect")
    assert status == 0 and "| (a) L_rec: MAE |  | -- | 82.2 |" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [(("table3a", "--rows", "z"), ("--rows z", "the rows are a, b, c, d, e, f")),
     (("table9",), ("table9", "table1")),
     (("table1",), ("nothing can be run", "--imagenet")),
     (("table3a", "--flags", "main_pretend=--epochs 1"), ("main_pretend", "main_pretrain")),
     (("table3a", "--slurm", "--nodes 2", "--jobs", "2"), ("--slurm", "--jobs")),
     (("table3a", "--scale", "demo", "--nproc_per_node", "2"), ("one process", "--jobs")),
     (("table1", "--imagenet", ROOT, "--dry_run"), (f"--imagenet {ROOT}", "no train and no val")),
     (("table2", "--coco", ROOT / "nowhere"), ("--coco nowhere", "no such folder")),
     (("table3a", "--scale", "demo", "--checkpoints", "nowhere", "--collect"), ("--checkpoints",)),
     (("table1", "--one_percent_list", ROOT), ("--one_percent_list", "readable text file"))],
)  # fmt: skip
def test_bad_input_is_one_line(words, said, tmp_path):
    line = refused(*words, "--out", tmp_path / "out")
    assert all(word in line for word in said)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_process_on_the_same_table_is_refused_and_a_signal_saves(tmp_path, number):
    words = ["table3a", "--rows", "a", "--out", str(tmp_path)]
    first = subprocess.Popen(
        [sys.executable, "reproduce.py", *words, *SHORT], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        record = tmp_path / "demo/seed-0/pretrain/mae_vit_base_800ep/job.json"
        wait_for(record.exists, "the first run", 60)
        assert "another process runs these tables" in refused(*words, *SHORT)
        _, said, _ = here(*words, *SHORT, "--status")
        assert said.startswith("running")
        # A signal: the run saves and says so, and so does the command.
        log = record.with_name("log.out")
        results = record.with_name("results.json")
        wait_for(lambda: "epoch 0" in log.read_text() or results.exists(), "an epoch", 60)
        first.send_signal(number)
        assert first.wait(60) == 75
    finally:
        first.kill()
    status, _, err = here(*words, *SHORT)
    assert status == 0, err
    attempts = json.loads(record.read_text())["attempts"]
    # The signal may have come when the run had just written its results: then it is done.
    assert results.exists() and len(attempts) <= 2


def test_what_a_killed_process_left_running_is_waited_for(tmp_path):
    """Not started a second time beside it; and of another commit it is not taken for this one's."""
    words = ["table3c", "--rows", "independent", "--out", str(tmp_path)]
    first = subprocess.Popen(
        [sys.executable, "reproduce.py", *words, *SHORT], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    record = tmp_path / "demo/seed-0/pretrain/table3-independent/job.json"
    try:
        wait_for(lambda: record.exists() and '"started"' in record.read_text(), "the run", 60)
    finally:
        first.kill()
        first.wait()
    _, said, _ = here(*words, *SHORT, "--status")
    assert said.startswith("running") and "1 running" in said
    line = refused(*words, *SHORT, "--slurm", "--nodes 1 --ngpus 1")
    assert "table3-independent runs on this machine: wait for it" in line
    line = refused(*words, *SHORT, "--flags", "main_pretrain=--max_steps 3")
    assert "table3-independent runs with other flags" in line
    (pid,) = [one["pid"] for one in json.loads(record.read_text())["attempts"]]
    status, said, err = here(*words, *SHORT)
    assert status == 0, err
    assert (
        f"runs already, and is waited for: seed-0/pretrain/table3-independent (process {pid})"
        in (said + err)
    )
    (attempt,) = json.loads(record.read_text())["attempts"]
    assert attempt["status"] is None and record.with_name("results.json").exists()
    assert here(*words, *SHORT, "--status")[1].splitlines()[-1] == "2 jobs: 2 done"


def test_what_another_commit_began_needs_any_commit_and_its_cell_says_so(tmp_path, monkeypatch):
    """Cut after two steps by one commit, ended by another."""
    words = ["table3c", "--rows", "independent", "--out", tmp_path]
    folder = tmp_path / "demo/seed-0/pretrain/table3-independent"
    assert here(*words, *SHORT)[0] == 0
    (folder / "results.json").unlink()  # as a run that was killed at its end leaves it
    tuned = tmp_path / "demo/seed-0/finetune/table3-independent"
    stale = "finetune/table3-independent is made of what is there no more"
    assert stale in refused(*words, *SHORT)  # it would be of another encoder
    (tuned / "results.json").unlink()
    assert stale in refused(*words, *SHORT) and list(tuned.glob("checkpoint-*.pth"))
    shutil.rmtree(tuned)
    monkeypatch.setenv("MIMAE_COMMIT", "another")
    changed = [word if word != "test" else "another" for word in SHORT]
    line = refused(*words, *changed)
    assert "seed-0/pretrain/table3-independent is begun by another commit" in line
    assert "--any_commit" in line and not (folder / "results.json").exists()
    status, said, err = here(*words, *ANY_COMMIT)
    assert status == 0, err
    assert json.loads((folder / "results.json").read_text())["commits"] == ["test", "another"]
    (line,) = (line for line in said.splitlines() if line.startswith("| independent |"))
    assert line.count("†") == 1 and "†: with code of several commits: test, then another" in said


def test_a_failed_run_is_told_and_the_others_go_on(tmp_path):
    """The pre-training of (a) cannot begin: its folder's checkpoint is a broken file."""
    broken = tmp_path / "demo/seed-0/pretrain/mae_vit_base_800ep"
    broken.mkdir(parents=True)
    (broken / "checkpoint-last.pth").write_text("broken")
    status, said, err = here(
        "table3c", "table3a", "--rows", "a", "independent", "--out", tmp_path, *SHORT
    )
    assert status == 1 and "3 runs failed: seed-0/pretrain/mae_vit_base_800ep" in err
    assert "seed-0/finetune/mae_vit_base_800ep is left out: what it needs has failed" in said + err
    assert "| (a) L_rec: MAE |  | -- | 82.2 | -- |  |" in said
    (line,) = (line for line in said.splitlines() if line.startswith("| independent |"))
    assert re.search(r"\| \d+\.\d \| 82.6 \|", line)
    _, said, _ = here("table3a", "--rows", "a", "--out", tmp_path, *SHORT, "--status")
    assert re.search(r"failed .*mae_vit_base_800ep  bad input: .*error: ", said)


def test_slurm_gets_the_graph_as_dependencies(tmp_path):
    """Without SLURM: what would be submitted."""
    status, said, err = here(
        *ASKED, "--out", tmp_path, *SHORT, "--slurm", "--nodes 1 --ngpus 1", "--dry_run"
    )
    assert status == 0, err
    first, second, *_ = said.splitlines()
    assert first.startswith("python submitit_launch.py main_pretrain --nodes 1 --ngpus 1")
    assert "--dependency afterok:seed-0/pretrain/mae_vit_base_800ep" in second
    assert "--dependency" not in first and not list(tmp_path.rglob("*.sh"))


def test_nothing_is_submitted_where_a_job_cannot_be(tmp_path):
    """Steps of an image on two processes; a main's own machines come last."""
    words = ("table2", "--rows", "mimae_400", "--out", tmp_path, "--scale", "demo")
    many = ("--slurm", "--nodes 1 --ngpus 2", "--flags", "main_segmentation=--images_per_step 1")
    line = refused(*words, *many)
    assert "segmentation" in line and '--slurm "main_segmentation=FLAGS"' in line
    assert not list(tmp_path.rglob("job.json"))
    own = ("--slurm", "main_segmentation=--ngpus 1", "--dry_run")
    status, said, err = here(*words, *many, *own)
    assert status == 0, err
    lines = [line for line in said.splitlines() if "submitit_launch.py" in line]
    gpus = {line.split()[2]: re.findall("--ngpus ([0-9]+)", line)[-1] for line in lines}
    assert gpus["main_segmentation"] == "1" and gpus["main_pretrain"] == "2"


def test_what_is_missing_is_not_run_for_another_commit(tmp_path):
    words = ("table3b", "--scale", "demo", "--out", tmp_path, "--commit", "another")
    line = refused(*words)
    assert "--commit another" in line and "are missing" in line and "--collect" in line
    assert here(*words, "--collect")[0] == 0 and here(*words, "--status")[0] == 0


@pytest.mark.parametrize("flags", [("--status", "--collect"), ("--imagenet", "/data")])
def test_flags_that_would_do_nothing_are_refused(flags):
    assert flags[0] in refused("table1", "--scale", "demo", *flags)


def test_one_curve_is_drawn_and_one_run_is_made_for_it(tmp_path):
    words = ("loss_curves", "--scale", "demo", "--out", tmp_path, "--dry_run")
    assert here(*words, "--seeds", 3, 4)[1] == here(*words, "--seeds", 3)[1]


def test_rows_that_the_scale_leaves_out_are_said_and_run_when_named(tmp_path):
    words = ("table3b", "--scale", "demo", "--out", tmp_path, "--commit", "test")
    plain, named = (here(*words, *more, "--dry_run")[1] for more in ((), ("--rows", "lambda_1_1")))
    assert "lambda_0.1_10" in plain and "lambda_1_1" not in plain and "lambda_1_1" in named
    _, said, _ = here(*words, "--collect")
    assert "scale demo leaves out, and --rows adds: table3b: lambda_1_1" in said
    assert "| λ1 = 1, λ2 = 1 |" not in said
    _, said, _ = here(*words, "--rows", "lambda_1_1", "--collect")
    assert "leaves out" not in said and "| λ1 = 1, λ2 = 1 |" in said


@pytest.mark.slow
def test_tables_1_and_3a_at_demo_scale(tmp_path):
    """Every default row, to its end; pre-training gains 5 points over both controls."""
    status, _, err = here(
        "table1", "table3a", "--scale", "demo", "--jobs", 2, "--out", tmp_path, "--commit", "test"
    )
    assert status == 0, err
    cells = {}
    for name in ("table1", "table3a"):
        with open(tmp_path / f"demo/tables/{name}.csv", newline="") as file:
            for line in csv.DictReader(file):
                cells[name, line["row"], line["column"]] = line
    ours = {key: float(line["value"]) for key, line in cells.items() if line["value"]}
    empty = {line["why_empty"] for line in cells.values() if not line["value"]}
    assert len(ours) == 4 * 3 + 1 + 4 + 1  # of Table 1 four rows whole and the supervised one
    known = ("only with --scale imagenet", "published only", "the paper has no such")
    assert all(why.startswith(known) for why in empty)
    for column, control in itertools.product(("FT", "LIN", "FT1%"), ("scratch", "initialisation")):
        assert ours["table1", "mae_800", column] > ours["table1", control, column] + 5
