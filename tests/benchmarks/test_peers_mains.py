"""The mains beside their peers: each pair runs, on the same work; timings are nobody's business."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.peers import average_precision, frozen, pairs

PROGRAM = "benchmarks/peers/mains.py"
ONE_AP = r"box AP (\d+\.\d+), mask AP (\d+\.\d+) \|"


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, PROGRAM, *words], capture_output=True, text=True)


def printed(part: str, *words: str) -> str:
    done = run("--tiny", "--rounds", "1", "--threads", "1", "--only", part, *words)
    assert done.returncode == 0, done.stderr
    assert "ended; its error stands above" not in done.stdout, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("part", ["finetune", "segmentation", "detection", "loading"])
def test_a_pair_runs(part):
    assert re.search(r"\| ours \| [\d.e-]+ \| 1\.000 ", printed(part))


@pytest.mark.slow
def test_the_table_of_all_pairs_is_written(tmp_path):
    text = printed("coco_ap", "--out", str(tmp_path / "found"))
    ours, theirs = re.findall(ONE_AP, text)
    assert ours == theirs
    written = (tmp_path / "found.md").read_text()
    assert re.search(r"### All pairs[^$]*\| COCO's AP[^|]* \| pycocotools \| 3 \| ", written)
    assert (tmp_path / "found.json").stat().st_size > 100


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--mae", "--dino"])
def test_a_folder_without_the_code_is_told(flag, tmp_path):
    done = run(flag, str(tmp_path))
    assert done.returncode == 2
    assert re.fullmatch(rf"error: {flag} .* name a clone .*\n", done.stderr)


def test_what_is_missing_is_left_out_with_a_line(capsys):
    absent = pairs.Entry("theirs", pairs.repeated, predicted=2.0, needs=("no_such_package",))
    elsewhere = pairs.Entry("a clone", pairs.repeated, missing="--clone PATH")
    assert pairs.Pair("a", "step", [absent, elsewhere]).measure(1, 1) == []
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("skipped: theirs; pip install ")
    assert told[1] == "skipped: a clone; --clone PATH"


def test_the_table_says_what_was_predicted_and_done():
    entries = [pairs.Entry("ours", pairs.repeated), pairs.Entry("theirs", pairs.repeated, (), 1.5)]
    found = [
        SimpleNamespace(name=name, rates=[rate, rate], cpu_rates=[rate, rate], peak=2**30,
                        rate=rate, facts={"libraries": 2**29, "right": "99"})
        for name, rate in (("ours", 4.0), ("theirs", 2.0))
    ]  # fmt: skip
    ours, theirs = pairs.Pair("a", "step", entries).rows(found)
    assert theirs["predicted"] == 1.5
    assert ours["predicted"] == ""
    assert theirs["x ours"].startswith("2.000")
    assert theirs["GiB"] == "0.50"
    assert theirs["the work"] == "right 99"


def facts(build, *words) -> dict:
    threads = torch.get_num_threads()
    try:
        return build(*words)[1]
    finally:
        torch.set_num_threads(threads)


def test_regressions_find_the_same_minimum():
    work = SimpleNamespace(threads=1, **frozen.TINY)
    ours, theirs = (
        facts(build, work, (1e-2, 1e-1))
        for build in (frozen.our_regression, frozen.sklearn_regression)
    )
    for a, b in zip(ours["objective"].split(), theirs["objective"].split(), strict=True):
        assert float(a) == pytest.approx(float(b), rel=3e-3)


def test_neighbours_vote_the_same():
    work = SimpleNamespace(threads=1, **frozen.TINY)
    ours = facts(frozen.our_knn, work, (frozen.K,))["right"]
    assert ours == facts(frozen.sklearn_knn, work)["right"]


def test_average_precisions_agree():
    pytest.importorskip("pycocotools")
    work = SimpleNamespace(threads=1, **average_precision.TINY)
    ours = facts(average_precision.ours, work)
    theirs = facts(average_precision.original, work)
    assert ours["box AP"] == theirs["box AP"] != "0.000000"
    assert ours["mask AP"] == theirs["mask AP"]


def test_masks_in_the_image_differ_at_their_edges_alone():
    pytest.importorskip("pycocotools")
    work = SimpleNamespace(threads=1, **average_precision.TINY)
    ours, theirs = (
        float(facts(build, work)["pixels"].split()[0])
        for build in (average_precision.our_masks, average_precision.their_masks)
    )
    assert ours == pytest.approx(theirs, rel=0.05)


def test_no_line_of_a_peer_is_kept():
    """MAE's and DINO's code runs from a clone that a flag names, never from here."""
    for path in Path("benchmarks/peers").glob("*"):
        assert path.is_dir() or path.suffix in (".py", ".txt"), path
