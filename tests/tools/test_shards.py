"""Shards from folders: the same images, classes and order, and the same bytes each time."""

import contextlib
import io
import os
import shutil
import tarfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from tools import shards
from util.data.datasets import load_images
from util.entry import run_main


def write(folder, out, *flags) -> tuple[int, str]:
    """Run the command; its exit status, and what it wrote to stderr."""
    err, status = io.StringIO(), 0
    words = [str(folder), str(out), *map(str, flags)]
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            run_main(shards.main, lambda: shards.parse_args(words))
        except SystemExit as end:
            status = end.code or 0
    return status, err.getvalue()


def load(dataset, split, path, **changes):
    options = dict(in_chans=3, subset_file="", train_fraction=1.0, download=False) | changes
    options |= dict(mean=[0.5] * 3, std=[0.5] * 3)
    return load_images(Namespace(dataset=dataset, data_path=str(path), **options), split)


@pytest.fixture
def folder(tmp_path):
    """Three classes of odd names and of every suffix; one that val lacks."""
    rng = np.random.default_rng(0)
    for name in ("train/a b/1.PNG", "train/a b/1.jpg", "train/a b/1.x.png", "train/10/2.png",
                 "train/9/deep/3.webp", "train/9/bare", "val/10/2.png", "val/9/ü.bmp"):  # fmt: skip
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        pixels.save(path, format=None if path.suffix else "JPEG")
    np.save(tmp_path / "images/train/9/4.npy", rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return tmp_path / "images"


@pytest.mark.parametrize("size", [500, 0.0001])
def test_a_folder_and_its_shards_are_the_same_set(folder, tmp_path, size):
    assert write(folder, tmp_path / "out", "--shard_mb", size) == (0, "")
    assert len(list((tmp_path / "out").iterdir())) == (2 if size == 500 else 9)
    for split, count in (("pretrain", 7), ("train", 7), ("val", 2)):
        files, found = (load(name, split, path) for name, path in
                        (("image_folder", folder), ("shards", tmp_path / "out")))  # fmt: skip
        assert len(found) == count and found.classes == files.classes == ["10", "9", "a b"]
        assert np.array_equal(found.targets, files.targets)
        for index in range(count):
            assert torch.equal(found.read(index), files.read(index))


def test_the_same_folder_makes_the_same_bytes(folder, tmp_path):
    for out in ("one", "two"):
        assert write(folder, tmp_path / out)[0] == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        with tarfile.open(path) as tar:
            assert {(m.mtime, m.uid, m.mode) for m in tar} == {(0, 0, 0o644)}


def test_a_tree_without_labels(folder, tmp_path):
    assert write(folder / "train" / "9", tmp_path / "out")[0] == 0
    found = load("shards", "pretrain", tmp_path / "out")
    names = [found.relative_name(i) for i in range(3)]
    assert names == [f"train-0000.tar/{name}" for name in ("4.npy", "bare.jpg", "deep/3.webp")]


def test_no_name_is_one_that_readers_pass_over(folder, tmp_path):
    """Of a list with hidden folders, and of classes that are called so."""
    (tmp_path / "list" / ".hid").mkdir(parents=True)
    sources = sorted((folder / "train").rglob("*.webp"))
    for name in ("one.webp", ".hid/two.webp"):
        shutil.copy(sources[0], tmp_path / "list" / name)
    paths = [tmp_path / "list" / name for name in ("one.webp", ".hid/two.webp")]
    (tmp_path / "plain.txt").write_text("".join(f"{path}\n" for path in paths))
    assert write(tmp_path / "plain.txt", tmp_path / "a", "--dataset", "csv") == (0, "")
    found = load("shards", "pretrain", tmp_path / "a")
    names = {found.relative_name(i) for i in range(2)}
    assert names == {"train-0000.tar/one.webp", "train-0000.tar/_.hid/two.webp"}
    assert os.path.dirname(found.name(0)).startswith(str(tmp_path / "a"))
    lines = [f"{path},{label}\n" for path, label in zip(paths, (".hidden", "x/y"), strict=True)]
    (tmp_path / "labelled.csv").write_text("".join(lines))
    assert write(tmp_path / "labelled.csv", tmp_path / "b", "--dataset", "csv") == (0, "")
    found = load("shards", "pretrain", tmp_path / "b")
    assert len(found) == 2 and found.classes == ["_.hidden", "x_y"]


def test_what_cannot_be_written(folder, tmp_path):
    for out, source, words in (
        (folder, folder, "is not empty"), (tmp_path / "o", tmp_path / "none", "FOLDER"),
        (tmp_path / "images/train/10/2.png", folder, "2.png"),
    ):  # fmt: skip
        status, err = write(source, out)
        assert status == 2 and words in err and err.count("\n") == 1


def test_tables_become_shards(tmp_path):
    """Names that are paths, equal or absent; the classes keep their numbers and names."""
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "PNG")
    names = ["/x/a.b.png", "a.b.png", None, "c.png"]
    images = [{"bytes": file.getvalue(), "path": name} for name in names]
    for split in ("train", "val"):
        table = pyarrow.table({"image": images, "label": ["x", "x", "y/z", "y/z"]})
        (tmp_path / "in").mkdir(exist_ok=True)
        parquet.write_table(table, tmp_path / "in" / f"{split}.parquet")
    assert write(tmp_path / "in", tmp_path / "out", "--dataset", "hugging_face") == (0, "")
    with tarfile.open(tmp_path / "out" / "train-0000.tar") as shard:
        assert shard.getnames()[::2] == ["x/a_b.png", "x/a_b-2.png", "y_z/0000002.png", "y_z/c.png"]
    found = load("shards", "val", tmp_path / "out")
    assert found.classes == ["x", "y_z"] and found.targets.tolist() == [0, 0, 1, 1]
    parquet.write_table(
        pyarrow.table({"image": [*images[:3], {"bytes": None, "path": "c.png"}], "label": [0] * 4}),
        tmp_path / "in" / "train.parquet",
    )
    status, err = write(tmp_path / "in", tmp_path / "again", "--dataset", "hugging_face")
    assert status == 2 and "has no bytes" in err and list((tmp_path / "again").iterdir()) == []
