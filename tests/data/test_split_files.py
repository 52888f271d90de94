"""Which files a pattern or a folder names, and of which split they are."""

import logging
import os

import pytest

from util.data.split_files import JOINED, named_files, split_files


@pytest.fixture
def made(tmp_path):
    """(names) -> the folder with those files, empty."""

    def make(*names: str) -> str:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("")
        return str(tmp_path)

    return make


def names_of(root: str, split: str) -> list[str]:
    found = split_files(root, split, (".csv",), deep=True)
    return [os.path.relpath(path, root) for path in found]


def test_files_that_say_nothing_are_for_training_where_none_says_so(made, caplog):
    assert names_of(made("a.csv", "val.csv", "more/b.csv"), "train") == ["a.csv", "more/b.csv"]
    assert not caplog.records


def test_beside_files_that_say_train_they_are_left_out_and_told(made, caplog):
    """Names that are no split's may hold test images, or the training images once more."""
    root = made("train.csv", "val.csv", "trainval.csv", "dev.csv", "val_old/0.csv", "train/0.csv")
    with caplog.at_level(logging.WARNING):
        assert names_of(root, "train") == ["train.csv", "train/0.csv"]
    assert "3 files are of no split by their names" in caplog.text and "dev.csv" in caplog.text
    assert names_of(root, "val") == ["val.csv"]


def test_links_that_lead_back_are_followed_once(made):
    root = made("one/a.csv", "b.csv")
    os.symlink(root, os.path.join(root, "self"))
    os.symlink(root, os.path.join(root, "one", "up"))
    os.symlink("self.csv", os.path.join(root, "self.csv"))
    assert names_of(root, "train")[:2] == ["b.csv", "one/a.csv"]
    assert len(names_of(root, "train")) <= 3  # a link to itself is named as a file


def test_patterns_that_overlap_name_a_file_once(made):
    root = made("train-0.csv", "train-1.csv")
    patterns = JOINED.join([f"{root}/train-{{0..1}}.csv", f"{root}/train-*.csv"])
    assert len(named_files(patterns, (".csv",), deep=True)) == 2


@pytest.mark.parametrize(
    "patterns",
    [
        ["{train,val}/parts/0.csv"], ["train/parts/*.csv", "val/parts/*.csv"], ["*/parts/*.csv"],
        ["train/parts", "val/parts"],
    ],
)  # fmt: skip
def test_the_folders_of_patterns_say_a_split_at_any_depth(made, patterns):
    root = made("train/parts/0.csv", "val/parts/0.csv")
    path = JOINED.join(f"{root}/{pattern}" for pattern in patterns)
    for split in ("train", "val"):
        found = split_files(path, split, (".csv",), deep=True)
        assert [os.path.relpath(one, root) for one in found] == [f"{split}/parts/0.csv"]


def test_folders_far_above_the_data_say_nothing(made):
    """Where one of the sources lies in no split's folder, none is dropped."""
    root = made("train/laion/0.csv", "scratch/coco/1.csv")
    path = JOINED.join([f"{root}/train/laion/*.csv", f"{root}/scratch/coco/*.csv"])
    assert len(split_files(path, "train", (".csv",), deep=True)) == 2


def test_of_several_folders_each_files_own_is_its_root(made):
    """Parts of a folder `train` that is named are for training, as deep as they lie."""
    made("a/train/0.csv", "a/train/part1/1.csv", "b/val/0.csv", "b/train/2.csv")
    root = made()
    folders = JOINED.join(f"{root}/{folder}" for folder in ("a/train", "b/train", "b/val"))
    found = split_files(folders, "train", (".csv",), deep=True)
    assert [os.path.relpath(path, root) for path in found] == [
        "a/train/0.csv", "a/train/part1/1.csv", "b/train/2.csv",
    ]  # fmt: skip
    assert len(split_files(folders, "val", (".csv",), deep=True)) == 1
