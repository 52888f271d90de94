"""An export is written whole or not at all, and never over what is not its own."""

import errno
import json
import os

import exported
import pytest
from exported import refused

from exports import folder as folders


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return exported.pretrained(folder / "checkpoint-last.pth", "mae_vit_nano_patch2", 8)


def test_an_existing_folder_is_refused_and_replaced_with_a_flag(checkpoint, tmp_path):
    out = tmp_path / "out"
    assert exported.export(checkpoint, out, "timm").status == 0
    refused(exported.export(checkpoint, out, "timm"), "exists", "--overwrite")
    (out / "mine.txt").write_text("stays")
    outcome = exported.export(checkpoint, out, "safetensors", "--overwrite")
    assert outcome.status == 0, outcome.err
    assert (out / "mine.txt").read_text() == "stays"
    assert "architecture" not in json.loads((out / "config.json").read_text())
    files = json.loads((out / "export.json").read_text())["files"]
    assert {*files, "export.json", "mine.txt"} == {*os.listdir(out)}
    assert exported.export(checkpoint, out, "huggingface", "--overwrite").status == 0
    assert (out / "preprocessor_config.json").exists()
    assert exported.export(checkpoint, out, "timm", "--overwrite").status == 0
    assert not (out / "preprocessor_config.json").exists()  # which no export wrote now
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_changed_or_foreign_is_not_replaced(checkpoint, tmp_path):
    out = tmp_path / "out"
    assert exported.export(checkpoint, out, "timm").status == 0
    (out / "README.md").write_text("my own words")
    refused(exported.export(checkpoint, out, "timm", "--overwrite"), "README.md", "changed")
    assert (out / "README.md").read_text() == "my own words"
    again = tmp_path / "again"
    assert exported.export(checkpoint, again, "timm").status == 0
    (again / "preprocessor_config.json").write_text("mine")  # which another target would write
    before = {path.name: path.read_bytes() for path in again.iterdir()}
    refused(exported.export(checkpoint, again, "huggingface", "--overwrite"), "preprocessor")
    assert before == {path.name: path.read_bytes() for path in again.iterdir()}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years")
    refused(exported.export(checkpoint, foreign, "timm", "--overwrite"), "export.json")
    assert os.listdir(foreign) == ["thesis.txt"]
    file = tmp_path / "file"
    file.write_text("a file")
    refused(exported.export(checkpoint, file, "timm", "--overwrite"), "file")
    assert file.read_text() == "a file"


def test_an_empty_folder_is_taken(checkpoint, tmp_path):
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    assert exported.export(checkpoint, out, "safetensors").status == 0
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize("where", ["write_json", "write_tensors", "_seal", "_put_in_place"])
def test_a_full_disk_leaves_nothing(checkpoint, tmp_path, monkeypatch, where):
    from exports import to_timm

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in (folders, to_timm):
        if hasattr(place, where):
            monkeypatch.setattr(place, where, full)
    refused(exported.export(checkpoint, tmp_path / "out", "timm"), "No space left", "out")
    assert os.listdir(tmp_path) == []


def test_ctrl_c_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    from exports import to_timm

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(to_timm, "write_tensors", interrupt)
    assert exported.export(checkpoint, tmp_path / "out", "timm").status == 130
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made(checkpoint, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    refused(exported.export(checkpoint, file / "out", "timm"), "cannot be written")
