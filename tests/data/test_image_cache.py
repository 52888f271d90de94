"""Cached images: an evaluation's pixels stay the same, crops are not enlarged, files are whole."""

import errno
import os
import shutil
import threading
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from util.data import image_cache, kept_index
from util.data.datasets import load_images
from util.data.image_cache import cached, cached_box, reduced
from util.data.image_sets import ArrayImages
from util.data.transforms import ResizeCenterCrop
from util.errors import UsageError
from util.evaluation.frozen.features import where_given

SHAPES = [
    (300, 400),
    (400, 300),
    (256, 256),
    (257, 900),
    (40, 60),
    (9, 700),
    (600, 601),
    (5000, 30),
]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(kept_index, "SETTLED", 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """train/ and val/ with class a: images of all shapes, one of floats, a broken one."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        (root / split / "a").mkdir(parents=True)
        for i, (height, width) in enumerate(SHAPES):
            pixels = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            pixels.save(root / split / "a" / f"{i}.png", compress_level=0)
        np.save(root / split / "a" / "8.npy", rng.random((30, 50, 3), dtype=np.float32))
        (root / split / "a" / "9.png").write_bytes(b"junk")
    return root


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "data")


@pytest.fixture
def args(folder, tmp_path):
    return Namespace(
        dataset="image_folder", data_path=str(folder), in_chans=3, subset_file="", value_range=None,
        train_fraction=1.0, download=False, mean=[0.5] * 3, std=[0.5] * 3, input_size=[28],
        cache_images=0, cache_dir=str(tmp_path / "cache"), num_workers=2,
    )  # fmt: skip


def load(args, split="val", min_crop=1.0, **changes):
    return load_images(Namespace(**vars(args) | changes), split, min_crop=min_crop)


def files(args) -> list[str]:
    return sorted(set(os.listdir(args.cache_dir)) - {"lock"})


@pytest.mark.parametrize("size", [[28], [224], [20, 60]])
def test_an_evaluation_sees_the_same_pixels(args, size):
    view = ResizeCenterCrop((size[0], size[-1]), 224 / 256)
    plain, cached = (load(args, input_size=size, cache_images=c) for c in (None, 0))
    for index in range(9):
        expected, found = view(plain.read(index)), view(cached.read(index))
        assert found.dtype == expected.dtype and torch.equal(found, expected), plain.name(index)
    assert cached.targets.tolist() == plain.targets.tolist() and cached.classes == plain.classes
    assert cached.name(3) == plain.name(3) and cached.files(3) == plain.files(3)
    with pytest.raises(OSError, match="cannot identify"):
        cached.read(9)


@pytest.mark.parametrize("min_crop", [0.08, 0.2, 0.9])
def test_the_smallest_crop_has_the_networks_pixels_or_the_originals(args, min_crop):
    box = cached_box(args, 224 / 256, min_crop)
    for height, width in SHAPES:
        kept = reduced(torch.zeros(1, height, width, dtype=torch.uint8), box).shape[1:]
        # The sides of the most elongated crops of that area, before and after.
        for ratio in (3 / 4, 4 / 3):
            area = min_crop * height * width
            before = np.sqrt([area / ratio, area * ratio])
            after = before * np.array(kept) / (height, width)
            assert (after >= np.minimum(before, 28) - 0.5).all(), (height, width)
        assert abs(kept[0] / kept[1] / (height / width) - 1) < 1 / min(kept)


def test_a_smaller_size_is_taken_but_none_below_the_evaluations(args):
    assert cached_box(args, 224 / 256, 0.08) == (115, 115)
    args.cache_images = 40
    assert cached_box(args, 224 / 256, 0.08) == (40, 40)
    assert load(args, "train", min_crop=0.08).read(0).shape == (3, 40, 53)
    assert load(args, "val").read(0).shape == (3, 32, 42)
    args.cache_images = 31
    with pytest.raises(UsageError, match=r"--cache_images 31 is less than the 32 pixels"):
        load(args, "train", min_crop=0.08)


def test_it_is_made_once_and_anew_where_a_file_has_changed(args, folder, monkeypatch):
    made, make = [], image_cache._make
    monkeypatch.setattr(image_cache, "_make", lambda *a: made.append(1) or make(*a))
    load(args), load(args)
    before = files(args)
    assert len(made) == 1 and len(before) == 1 and before[0].endswith(".pixels")
    Image.new("RGB", (50, 50), "red").save(folder / "val" / "a" / "0.png")
    assert load(args).read(0)[:, 0, 0].tolist() == [255, 0, 0]
    assert len(made) == 2 and len(files(args)) == 1 and files(args) != before
    load(args, input_size=[56]), load(args, "train")  # other images, or of another size
    assert len(made) == 4 and len(files(args)) == 3


def test_another_column_of_the_same_rows_has_its_own(args):
    images = load(args, cache_images=None)
    places = [
        image_cache._place(images, Namespace(**vars(args) | column), 1.0, 1.0)[0]
        for column in ({}, {"image_column": ""}, {"image_column": "mask"})
    ]
    assert places[0] == places[1] != places[2]
    flags = Namespace(value_range=None, num_heads=None, image_column="mask")
    assert where_given(flags) == {"image_column": "mask"}  # of kept features


def test_a_part_of_the_images_has_its_own(args, tmp_path):
    (tmp_path / "list").write_text("a/3.png\na/0.png\n")
    images = load(args, "train", subset_file=str(tmp_path / "list"))
    assert len(images) == 2 and images.read(1).shape == (3, 32, 42)


def test_repaired_images_are_read(args, folder):
    images = load(args)
    Image.new("RGB", (5, 5)).save(folder / "val" / "a" / "9.png")
    assert images.read(9).shape == (3, 5, 5)


@pytest.mark.parametrize("damage", ["cut", "tail", "empty"])
def test_what_is_no_whole_cache_is_made_anew(args, damage):
    expected = load(args).read(0)
    path = os.path.join(args.cache_dir, files(args)[0])
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if damage == "tail":
            file.seek(size - 70)
            file.write(b"?")
        else:
            file.truncate(size - 1000 if damage == "cut" else 0)
    assert torch.equal(load(args).read(0), expected)


def test_a_disk_without_room_is_told_before_anything_is_written(args, monkeypatch):
    usage = Namespace(free=2**14)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UsageError, match=r"no room for 10 images in .*0\.00 GiB are free, 0\.0"):
        load(args)
    assert files(args) == []


def test_a_disk_that_is_full_after_all_leaves_nothing(args, monkeypatch):
    def write(file, *about):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_cache, "_write", write)
    with pytest.raises(UsageError, match=r"no room .*No space left .*--cache_dir"):
        load(args)
    assert files(args) == []


def test_an_interrupted_one_leaves_nothing(args, monkeypatch):
    def write(file, *about):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(image_cache, "_write", write)
        with pytest.raises(KeyboardInterrupt):
            load(args)
    assert files(args) == []
    part = os.path.join(args.cache_dir, "killed.pixels.part")
    open(part, "w").close()
    load(args)
    assert not os.path.exists(part) and len(files(args)) == 1


def test_a_folder_that_cannot_be_written_is_told(args, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--cache_dir .*file.* cannot be used"):
        load(args, cache_dir=str(tmp_path / "file"))


def test_images_that_change_meanwhile_are_told(args, folder, monkeypatch):
    make = image_cache._make

    def change_and_make(*about):
        make(*about)
        Image.new("RGB", (5, 5)).save(folder / "val" / "a" / "0.png")

    monkeypatch.setattr(image_cache, "_make", change_and_make)
    with pytest.raises(UsageError, match="changed while they were cached"):
        load(args)
    assert files(args) == []


def test_two_runs_at_once_make_one(args, monkeypatch):
    made, make = [], image_cache._make
    monkeypatch.setattr(image_cache, "_make", lambda *a: made.append(1) or make(*a))
    runs = [threading.Thread(target=load, args=(args,)) for _ in range(3)]
    [run.start() for run in runs]
    [run.join() for run in runs]
    assert len(made) == 1 and len(files(args)) == 1


def test_images_in_memory_need_none(args):
    images = ArrayImages("digits", np.zeros((2, 8, 8), np.uint8), np.zeros(2), 1)
    with pytest.raises(UsageError, match="in memory already"):
        cached(images, args, 1.0)
