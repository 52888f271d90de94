"""Segmentation and detection from shards: the same images, maps and objects as from folders."""

import contextlib
import io
import json
import tarfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from tools import shards
from util.data import kept_index
from util.data.dense.ade20k import Labels, load_mapped_images, read_labels
from util.data.dense.coco import load_coco
from util.data.dense.image_places import FolderPlace, place_of
from util.entry import run_main
from util.errors import UsageError


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(kept_index, "SETTLED", 0)


def write(folder, out, *flags) -> None:
    words = [str(folder), str(out), *map(str, flags)]
    with contextlib.redirect_stdout(io.StringIO()):
        run_main(shards.main, lambda: shards.parse_args(words))


@pytest.fixture(scope="module")
def sharded(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    write(scenes, out, "--shard_mb", 0.01)
    return out


def mapped(path, split, labels=None):
    labels = labels or read_labels(str(path), "", 1, "")
    return load_mapped_images(str(path), split, labels, 3)


def coco(path, split, **changes):
    flags = dict.fromkeys(("train_json", "train_images", "val_json", "val_images"), "")
    flags |= dict(data_path=str(path), in_chans=3, empty_images=False, value_range=None)
    flags |= dict(mean=[0.5] * 3, std=[0.5] * 3)
    return load_coco(Namespace(**flags | changes), split)


def test_a_folder_whose_path_looks_like_a_shards(scenes, tmp_path):
    """`place_of` asks what lies there, not what it is called."""
    folder = tmp_path / "m.tardieu" / "coco"
    folder.parent.mkdir()
    folder.symlink_to(next(iter(scenes.rglob("*.jpg"))).parent)
    assert isinstance(place_of(str(folder), "--train_images"), FolderPlace)
    with pytest.raises(UsageError, match="--train_images"):
        place_of(str(tmp_path / "absent"), "--train_images")


def test_what_lies_there(scenes, sharded):
    names = sorted(path.name for path in sharded.iterdir())
    assert len([name for name in names if name.startswith("train-")]) > 2
    assert {"classes.txt", "classes_and_ground.txt", "instances_train.json",
            "instances_val.json", "val-0000.tar"} < set(names)  # fmt: skip
    with tarfile.open(sharded / "train-0000.tar") as shard:
        assert shard.getnames()[:2] == ["00000000.jpg", "00000000.seg.png"]


def test_images_and_maps_are_the_folders(scenes, sharded):
    for split in ("training", "validation"):
        files, found = mapped(scenes, split), mapped(sharded, split)
        assert len(found) == len(files) and found.classes == files.classes
        for index in np.random.default_rng(0).permutation(len(files)).tolist():
            for one, other in zip(files.read(index), found.read(index), strict=True):
                assert torch.equal(one, other)
    joined = f"{sharded}/train-*.tar::{sharded}/val-*.tar"
    assert read_labels(joined, "", 1, "").classes == files.classes
    pattern = f"{sharded}/train-*.tar"
    assert len(mapped(pattern, "training")) == 20
    assert found.name(0).endswith("val-0000.tar/00000000.jpg")
    assert found.files(0) == (str(sharded / "val-0000.tar"),)


def test_images_and_objects_are_the_folders(scenes, sharded):
    for split in ("train", "val"):
        (files, truth), (found, same_truth) = coco(scenes, split), coco(sharded, split)
        assert found.ids == files.ids and truth == same_truth
        for index in np.random.default_rng(0).permutation(len(files)).tolist():
            (image, about), (other, same_about) = files.read(index), found.read(index)
            assert torch.equal(image, other) and about == same_about
    again, _ = coco(
        "", "train", train_json=str(scenes / "instances_training.json"),
        train_images=f"{sharded}/train-*.tar",
    )  # fmt: skip
    assert torch.equal(again.read(3)[0], coco(scenes, "train")[0].read(3)[0])


def test_the_layout_of_coco_and_names_with_dots(tmp_path):
    source = tmp_path / "coco"
    for split in ("train2017", "val2017"):
        (source / split / "deep").mkdir(parents=True)
        names = ["deep/a.b.png", "c.png"]
        for i, name in enumerate(names):
            Image.new("RGB", (8, 6), (i, 0, 0)).save(source / split / name)
        images = [dict(id=i, file_name=n, height=6, width=8) for i, n in enumerate(names)]
        box = dict(bbox=[1, 1, 4, 3], category_id=1, iscrowd=0, area=12)
        about = dict(
            images=images, categories=[dict(id=1, name="x")],
            annotations=[box | dict(id=i, image_id=i) for i in range(2)],
        )  # fmt: skip
        (source / "annotations").mkdir(exist_ok=True)
        (source / "annotations" / f"instances_{split}.json").write_text(json.dumps(about))
    write(source, tmp_path / "out")
    found, _ = coco(tmp_path / "out", "val")
    assert [int(found.read(i)[0][0, 0, 0]) for i in range(2)] == [0, 1]
    assert found.name(0).endswith("val-0000.tar/deep/a_b.png")


def tar(path, names) -> None:
    with tarfile.open(path, "w") as shard:
        for name in names:
            file = io.BytesIO()
            Image.fromarray(np.ones((4, 4), np.uint8)).save(file, "PNG")
            member = tarfile.TarInfo(name)
            member.size = len(file.getvalue())
            shard.addfile(member, io.BytesIO(file.getvalue()))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.png"], "1 images and 0 label maps under the key a"),
        (["a.png", "a.x.png", "a.y.png"], "1 images and 0 label maps"),
        (["a.seg.png"], "0 images and 1 label maps"),
        (["a.txt"], "hold no image"),
    ],
)
def test_what_is_no_pair_is_told(tmp_path, names, words):
    tar(tmp_path / "training-0.tar", names)
    with pytest.raises(UsageError, match=words):
        mapped(tmp_path, "training", Labels(["x"]))


def test_the_map_is_the_other_image_or_that_called_seg(tmp_path):
    tar(tmp_path / "training-0.tar", ["a.png", "a.mask.png", "b.seg.png", "b.depth.png", "b.png"])
    images = mapped(tmp_path, "training", Labels(["x"]))
    assert len(images) == 2 and images.pairs.map_name(0).endswith("a.mask.png")
    assert images.pairs.map_name(1).endswith("b.seg.png")


def test_images_that_no_shard_has_are_told(scenes, sharded):
    with pytest.raises(UsageError, match=r"lacks 15 of 20 images .*--train_images"):
        coco(
            "", "train", train_json=str(scenes / "instances_training.json"),
            train_images=f"{sharded}/val-*.tar",
        )  # fmt: skip
    with pytest.raises(UsageError, match=r"--train_images .*there is no .*none-\*\.tar"):
        coco(
            "", "train", train_json=str(scenes / "instances_training.json"),
            train_images=str(sharded / "none-*.tar"),
        )  # fmt: skip
