"""Stages of the GPU hour keep to their time, go on where they stopped, and need four packages."""

import gzip
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_hour
from benchmarks.gpu import evidence, record
from benchmarks.gpu.record import Record, Unfinished, table
from util.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
# What the mains can use and a fresh GPU machine has not.
ABSENT = (
    "sklearn", "scipy", "tensorboard", "submitit", "segmentation_models_pytorch", "torchcodec",
    "faster_coco_eval", "pycocotools", "pytest", "transformers",
)  # fmt: skip
PARTS = {  # some of what each stage measures
    "check": {"losses against the CPU", "precisions", "what waits", "compiled"},
    "speed": {"nano, batches", "nano, variants", "nano, compiled", "profile"},
    "loading": {"images per second"},
    "scale": {"collectives", "nano, one process"},
    "dense": {"detection, 2 images, fp32", "segmentation, 2 images, fp32"},
    "evidence": {"fashion_mnist, seeds 0"},
}
QUICK = ("loading", "scale")


@pytest.fixture
def fashion(tmp_path) -> Path:
    """Fashion-MNIST's four files, with 80 training and 40 test images of noise."""
    draw = np.random.default_rng(0)
    for stem, count in (("train", 80), ("t10k", 40)):
        arrays = {
            "images-idx3": draw.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            "labels-idx1": np.arange(count, dtype=np.uint8) % 10,
        }
        for kind, array in arrays.items():
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            with gzip.open(tmp_path / f"{stem}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + array.tobytes())
    return tmp_path


def words(stage: str, out: Path, data: Path) -> list[str]:
    found = [stage, "--tiny", "--device", "cpu", "--out", str(out), "--data_path", str(data)]
    return [*found, "--seeds", "0", "--jobs", "1", "--seconds", "500"]


def parts_of(out: Path, stage: str) -> dict[str, dict]:
    return json.loads((out / f"{stage}.json").read_text())["parts"]


@pytest.mark.parametrize(
    "stage", [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in PARTS]
)
def test_a_stage_measures_its_parts_once(stage, tmp_path, fashion, monkeypatch, capfd):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "out"
    gpu_hour.main(words(stage, out, fashion))
    parts = parts_of(out, stage)
    assert parts.keys() >= PARTS[stage]
    assert not [part["failed"] for part in parts.values() if "failed" in part]
    assert all(f"### {name}" in (out / f"{stage}.md").read_text() for name in parts)
    assert all(parts[name]["rows"] for name in PARTS[stage])
    capfd.readouterr()
    gpu_hour.main(words(stage, out, fashion))
    told = capfd.readouterr().out
    assert all(f"{name}: known" in told for name in PARTS[stage])
    assert all(parts_of(out, stage)[name] == parts[name] for name in PARTS[stage])


@pytest.mark.slow
@pytest.mark.parametrize("stage", PARTS)
def test_a_stage_needs_torch_torchvision_and_timm_alone(stage, tmp_path, fashion):
    """All but UperNet, whose decoder is somebody else's: that part says so."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_hour.py", *words(stage, tmp_path / "out", fashion)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = parts_of(tmp_path / "out", stage)
    failed = {name: part["failed"] for name, part in parts.items() if "failed" in part}
    segmentation = failed.pop("segmentation, 2 images, fp32", "")
    assert not failed and ("segmentation-models-pytorch" in segmentation) == (stage == "dense")
    if stage == "check":
        assert all("passes" in row["result"] for row in parts["tests"]["rows"])


# --------------------------------------------------------------------------------------- a record


def new(folder: Path, seconds: float = 60.0, **options) -> Record:
    return Record("check", str(folder), seconds, {"device": "none"}, **options)


def counted(calls: list, rows=({"a": 1},)):
    def measure():
        calls.append(1)
        return list(rows)

    return measure


def test_a_part_is_measured_once(tmp_path):
    calls: list[int] = []
    for _ in range(2):
        new(tmp_path).part("one", 1, counted(calls))
    assert len(calls) == 1 and new(tmp_path).rows("one") == [{"a": 1}]
    assert "| a |\n| --- |\n| 1 |" in (tmp_path / "check.md").read_text()


def test_nothing_begins_for_which_there_is_no_time(tmp_path, capsys):
    calls: list[int] = []
    own = new(tmp_path, seconds=5)
    own.part("long", 30, counted(calls))
    own.part("short", 1, counted(calls))
    assert len(calls) == 1 and "next time" in capsys.readouterr().out
    assert set(parts_of(tmp_path, "check")) == {"short"}


def test_a_part_that_overruns_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "GRACE", 0.1)
    started = time.monotonic()
    new(tmp_path, seconds=0.2).part("slow", 0.1, lambda: time.sleep(30))
    assert time.monotonic() - started < 20
    assert "stopped" in parts_of(tmp_path, "check")["slow"]["failed"]


def test_what_failed_is_told_and_measured_again_when_asked(tmp_path, capsys):
    def fail():
        raise RuntimeError("no such kernel\nand more")

    calls: list[int] = []
    new(tmp_path).part("one", 1, fail)
    assert "one: RuntimeError: no such kernel" in capsys.readouterr().out
    new(tmp_path).part("one", 1, counted(calls))
    assert not calls and "failed: RuntimeError" in (tmp_path / "check.md").read_text()
    new(tmp_path, retry=True).part("one", 1, counted(calls))
    assert calls and "failed" not in parts_of(tmp_path, "check")["one"]


def test_what_is_unfinished_keeps_its_rows_and_goes_on(tmp_path):
    def half():
        raise Unfinished("1 of 2", [{"a": 1}])

    new(tmp_path).part("one", 1, half)
    assert parts_of(tmp_path, "check")["one"]["rows"] == [{"a": 1}]
    new(tmp_path).part("one", 1, counted([], [{"a": 1}, {"a": 2}]))
    assert len(new(tmp_path).rows("one")) == 2
    assert "Unfinished" not in (tmp_path / "check.md").read_text()


def test_what_is_interrupted_counts_as_not_begun_and_what_dies_as_failed(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new(tmp_path).part("one", 1, interrupt)
    assert not parts_of(tmp_path, "check")
    seen = []
    new(tmp_path).part("one", 1, lambda: seen.append(parts_of(tmp_path, "check")) or [{"a": 1}])
    assert seen[0]["one"] == {"failed": record.BEGAN}  # as it stands if the process ends now


@pytest.mark.parametrize(
    "text", ["", "[]", '{"about": {}}', '{"about": 1, "parts": {}}', "no JSON"]
)
def test_a_file_that_is_no_record_is_left_alone(tmp_path, text):
    (tmp_path / "check.json").write_text(text)
    with pytest.raises(UsageError, match="no record"):
        new(tmp_path)
    assert (tmp_path / "check.json").read_text() == text


def test_another_machines_record_is_left_alone(tmp_path):
    Record("check", str(tmp_path), 9, {"device": "H200"})
    with pytest.raises(UsageError, match="of device H200, this is none"):
        new(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_told_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        gpu_hour.main(["scale", "--tiny", "--device", "cpu", "--out", str(tmp_path / "file")])
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith("error: --out") and told.count("\n") == 1


def test_a_table_has_every_column(tmp_path):
    assert table([{"a": 1.23456}, {"b": "x"}]) == "| a | b |\n| --- | --- |\n| 1.235 |  |\n|  | x |"


def test_the_end_of_a_study_is_the_end_of_its_runs():
    """Of all processes that it has started, though it ends first itself."""
    child = "import time; print('child', flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"child\n"
    evidence.end(process)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
