"""Images at a path, whatever lies there: which source reads it, which images, and their labels."""

import argparse
import shutil

import numpy as np
import pytest
from PIL import Image

from util.data.any_images import load_any, source_of
from util.errors import UsageError


def load(path, split="", dataset="", **changes):
    options = dict(
        data_path=str(path), dataset=dataset or source_of(str(path)), split=split, in_chans=3,
        download=False, subset_file="", train_fraction=1.0, mean=[0.5] * 3, std=[0.5] * 3,
    )  # fmt: skip
    return load_any(argparse.Namespace(**options | changes))


def names(images):
    return [images.relative_name(i) for i in range(len(images))]


@pytest.fixture
def places(image_tree, tmp_path):
    """The same tree as other sources."""
    from tools import shards

    shards.main(shards.parse_args([str(image_tree), str(tmp_path / "tars")]))
    listed = [str(path) for path in sorted((image_tree / "val").rglob("*.png"))]
    (tmp_path / "val.csv").write_text("".join(f"{p},{p.split('/')[-2]}\n" for p in listed))
    (tmp_path / "test.txt").write_text("".join(f"{path}\n" for path in listed))
    return tmp_path


def test_what_lies_there_is_found_out(image_tree, places):
    assert source_of(str(image_tree)) == "image_folder"
    assert source_of(str(image_tree / "val")) == source_of(str(image_tree / "val/a")) == "flat"
    assert source_of(str(places / "tars")) == "shards"
    assert source_of(f"{places}/tars/train-{{0000..0000}}.tar::{places}/x.tar") == "shards"
    assert source_of(str(places / "val.csv")) == source_of(str(places / "test.txt")) == "csv"
    assert source_of("digits") == "digits"
    for nothing in ("nowhere", "photo.jpg"):
        with pytest.raises(UsageError, match=f"IMAGES {nothing} is no folder"):
            source_of(nothing)


def test_a_folder_of_images_and_shards_asks_which_are_meant(image_tree, places, tmp_path):
    shutil.copytree(image_tree, tmp_path / "both")
    shutil.copy(places / "tars" / "train-0000.tar", tmp_path / "both" / "old.tar")
    with pytest.raises(UsageError, match=r"images and .tar files: .* --dataset flat or shards"):
        source_of(str(tmp_path / "both"))


def test_splits_and_labels(image_tree, places):
    assert len(load(image_tree)) == 12 and len(load(image_tree, "val")) == 4
    classes = load(image_tree / "val")
    assert classes.classes == ["a", "b"] and classes.targets.tolist() == [0, 0, 1, 1]
    for path in (places / "val.csv", places / "test.txt"):
        listed = load(path)
        assert [name.split("/")[-1] for name in names(listed)] == ["a_0.png", "a_1.png", "b_0.png",
                                                                   "b_1.png"]  # fmt: skip
    assert load(places / "val.csv").targets.tolist() == [0, 0, 1, 1]
    assert load(places / "test.txt").targets.tolist() == [-1] * 4
    assert len(load(places / "tars")) == 16 and len(load(places / "tars", "val")) == 4
    assert len(load(f"{places}/tars/val-0000.tar")) == 4


def test_a_tree_of_any_depth_has_labels_where_all_lie_in_folders(image_tree, tmp_path):
    shutil.copytree(image_tree / "train/a", tmp_path / "tree/2019/june")
    assert load(tmp_path / "tree").classes == ["2019"]
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "tree/loose.png")
    loose = load(tmp_path / "tree")
    assert loose.classes == [] and set(loose.targets.tolist()) == {-1} and len(loose) == 7
    (tmp_path / "few.txt").write_text("a_1.png\nloose.png\n")
    part = load(tmp_path / "tree", subset_file=str(tmp_path / "few.txt"))
    assert names(part) == ["2019/june/a_1.png", "loose.png"]
