"""The statistics of a set: how many were read, sizes, broken ones, duplicates, also of splits."""

import csv

import numpy as np
import pytest
from PIL import Image

from tools import statistics
from util.errors import UsageError


def picture(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Classes a and b; what is planted there is in the tests."""
    for split, count in (("train", 8), ("val", 2)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                seed = ord(name) + 10 * i + 1000 * (split == "val")
                picture(seed).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def told(capsys, folder, *flags) -> str:
    words = ["--data_path", folder, "--input_size", 16, "--num_workers", 0, *flags]
    statistics.main(statistics.parse_args([str(word) for word in words]))
    return capsys.readouterr().out


def test_a_clean_set(folder, capsys):
    out = told(capsys, folder)
    assert "train: 16 images looked at, 16 read\n  width x height: 60 x 40 (100 %)\n" in out
    assert "val: 4 images looked at, 4 read" in out and "unreadable" not in out
    assert "no images have the pixels of another\nno images look like another\n--mean 0." in out
    assert "train: 3 images of 16 looked at" in told(capsys, folder, "--images", 3)


def test_sizes(folder, capsys):
    picture(1, 30, 90).save(folder / "train/a/0.png")
    picture(2, 7, 9).save(folder / "train/a/1.png")
    out = told(capsys, folder)
    assert "width x height: 60 x 40 (87.5 %), 30 x 90 (6.25 %), 7 x 9 (6.25 %)\n" in out
    assert "shorter side, least, 5 %, median, 95 %, most: 7 24 40 40 40\n" in out
    assert "longer side, least, 5 %, median, 95 %, most: 9 47 60 68 90\n" in out


def test_broken_ones_duplicates_and_what_looks_alike(folder, capsys):
    train, val = folder / "train", folder / "val"
    (train / "a/7.png").write_bytes(b"junk")
    (val / "b/1.png").write_bytes(b"")
    same = picture(500)
    for path in (train / "a/0.png", train / "b/0.png", val / "a/0.png"):
        same.save(path)
    same.save(val / "a/1.png", optimize=True)  # another file of the same pixels
    picture(600, 240, 160).save(train / "b/1.png")
    picture(600, 240, 160).save(train / "b/2.jpg", quality=80)
    (train / "b/2.png").unlink()
    out = told(capsys, folder, "--report", folder / "report.csv")
    assert "train: 16 images looked at, 15 read\n  unreadable: 1: " in out
    assert f"{train}/a/7.png (cannot identify image file" in out
    assert "val: 4 images looked at, 3 read\n  unreadable: 1: " in out
    assert "4 images in 1 group have the pixels of another: " in out
    assert f"{train}/a/0.png = {train}/b/0.png = {val}/a/0.png = …" in out
    of_same = out.split("have the pixels")[1].split("look like")[0]
    assert "within train: 2\n  within val: 2\n  of val, in train too: 2\n" in of_same
    assert "groups with more than one label: 1" in of_same
    assert f"2 images in 1 group look like another: {train}/b/1.png = {train}/b/2.jpg" in out
    with open(folder / "report.csv", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["kind", "group", "split", "name", "why"]
    assert [line[0] for line in lines[1:]] == ["unreadable"] * 2 + ["same"] * 4 + ["alike"] * 2
    assert lines[-1][:4] == ["alike", "0", "train", f"{train}/b/2.jpg"]


def test_a_set_that_is_mostly_broken_is_told_as_well(folder, capsys):
    for name in ("a", "b"):
        for i in range(40):
            (folder / "train" / name / f"junk{i}.png").write_bytes(b"junk")
    out = told(capsys, folder, "--report", folder / "report.csv")
    assert "train: 96 images looked at, 16 read\n  unreadable: 80:" in out
    assert len((folder / "report.csv").read_text().splitlines()) == 81
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"junk")
    with pytest.raises(UsageError, match="none of the training images"):
        told(capsys, folder)


def test_labels_are_not_needed_nor_a_val(folder, capsys):
    assert "train: 20 images looked at" in told(capsys, folder, "--dataset", "flat")
    (folder / "val").rename(folder.parent / f"{folder.name}-val")
    out = told(capsys, folder)
    assert "val is not looked at: " in out and out.splitlines()[-2].startswith("--mean 0.")


def test_a_report_that_cannot_be_written_is_told_first(folder, capsys):
    with pytest.raises(UsageError, match=r"--report .*cannot be written"):
        told(capsys, folder, "--report", folder / "nowhere" / "report.csv")
    assert capsys.readouterr().out == ""


def test_a_bar_where_a_person_waits(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "train ████████ 16/16" in told(capsys, folder)
