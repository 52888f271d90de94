"""Images that cannot be read: which sets may have some, and what tells that a file was repaired."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from util.data.dense.ade20k import Labels, load_mapped_images
from util.data.image_folders import PUBLISHED, load_test_folder, published_set
from util.data.image_sets import ArrayImages, FileImages, Subset
from util.data.imagenet import TEST_SETS, synsets
from util.data.loader import Batches
from util.data.transformed import TransformedImages
from util.data.unreadable import leave_out, made_of
from util.errors import RunError, UsageError


@pytest.fixture
def images(tmp_path):
    """Ten files, image i of the value i."""
    for i in range(10):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(tmp_path / f"{i}.png")
    return FileImages(str(tmp_path), [f"{i}.png" for i in range(10)], np.arange(10) % 2, [], 1)


def damage(images, *ids):
    for index in ids:
        with open(images.name(index), "wb") as file:
            file.write(b"no image")


def once(images, batch_size=4, replace=False, **options):
    batches = Batches(TransformedImages(images, lambda x: x, 0), batch_size, False, **options)
    found = [(ids.tolist(), imgs[:, 0, 0, 0].tolist(), targets.tolist())
             for ids, imgs, targets in batches.each_once(replace)]  # fmt: skip
    return found, batches


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_takes_the_place_of_an_unreadable_image(images, workers, caplog):
    damage(images, 1, 4, 5, 6, 7)
    found, batches = once(images, num_workers=workers)
    assert found == [([0, 2, 3], [0, 2, 3], [0, 0, 1]), ([8, 9], [8, 9], [0, 1])]
    assert batches.left_out() == [1, 4, 5, 6, 7]
    for index in (1, 4, 5, 6, 7):
        assert f"left out: {images.name(index)}" in caplog.text
    assert "5 of 10 images cannot be read and are left out" in caplog.text


def test_another_pass_counts_anew(images):
    damage(images, 3)
    found, batches = once(images)
    repaired = Image.fromarray(np.full((4, 4), 3, np.uint8))
    repaired.save(images.name(3))
    assert [ids.tolist() for ids, *_ in batches.each_once()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches.left_out() == [] and found[0][0] == [0, 1, 2]


def test_in_training_another_one_does(images):
    damage(images, 1)
    ((ids, values, targets), *_), batches = once(images, replace=True)
    assert ids == [0, 1, 2, 3] and values[1] != 1 and batches.left_out() == []
    assert targets[1] == values[1] % 2


def test_a_published_set_ends_the_run(images):
    damage(images, 1, 2)
    images.published = "Set-A"
    _, batches = once(images)
    with pytest.raises(RunError, match=r"Set-A: 2 of 10 images cannot be read .*1\.png, .*2\.png"):
        batches.left_out()
    assert leave_out(images, []) == []


# ------------------------------------------------------------------------------- published sets


def test_published_sets_are_known_by_their_size_and_synsets():
    for name, published in TEST_SETS.items():
        key = published.num_images, len(synsets(published.synsets))
        assert PUBLISHED[key].startswith(name)
        folders = list(synsets(published.synsets))
        assert published_set(key[0], folders) == PUBLISHED[key]
        assert published_set(key[0] - 1, folders) == published_set(key[0], folders[1:]) == ""
        assert published_set(key[0], ["cat", *folders[1:]]) == ""


def test_folders_and_parts_of_them(tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, (2, 2), "two")
    for name in ("n00000001", "n00000002"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "a.png")
    images = load_test_folder(str(tmp_path), ["n00000001", "n00000002"], 1)
    assert images.published == "two" and Subset(images, [0]).published == ""


def test_a_test_set_may_number_its_folders(tmp_path):
    """By the places of the sorted names, as ImageNet-V2 does; mixed with names it may not."""
    for place in ("0", "1"):
        (tmp_path / place).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / place / "a.png")
    assert load_test_folder(str(tmp_path), ["cat", "dog"], 1).targets.tolist() == [0, 1]
    (tmp_path / "cat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "cat" / "a.png")
    with pytest.raises(UsageError, match="lacks"):
        load_test_folder(str(tmp_path), ["cat", "dog"], 1)


def test_ade20ks_validation_set_is_known(tmp_path, monkeypatch):
    for split, count in (("validation", 2), ("training", 2)):
        for kind in ("images", "annotations"):
            folder = tmp_path / kind / split
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (2, 2), 1).save(folder / f"{i}.png")
    names = [f"c{i}" for i in range(150)]
    assert load_mapped_images(str(tmp_path), "validation", Labels(names), 1).published == ""
    for i in range(2, 2000):
        for kind in ("images", "annotations"):
            os.link(tmp_path / kind / "validation" / "0.png",
                    tmp_path / kind / "validation" / f"{i}.png")  # fmt: skip
    images = load_mapped_images(str(tmp_path), "validation", Labels(names), 1)
    assert images.published == "ADE20K's validation set"
    assert [os.path.basename(path) for path in images.files(0)] == ["0.png", "0.png"]
    assert load_mapped_images(str(tmp_path), "validation", Labels(names[1:]), 1).published == ""


# --------------------------------------------------------------------------------- what files are


def test_a_digest_of_files_follows_sizes_and_times(images):
    before, part = made_of(images), made_of(images, [0, 1])
    assert before == made_of(images) and part == made_of(Subset(images, [0, 1]))
    status = os.stat(images.name(5))
    os.utime(images.name(5), ns=(0, status.st_mtime_ns - 5 * 10**9))
    assert made_of(images) != before and made_of(images, [0, 1]) == part
    os.utime(images.name(5), ns=(0, status.st_mtime_ns))
    assert made_of(images) == before
    with open(images.name(5), "ab") as file:
        file.write(b" ")
    os.utime(images.name(5), ns=(0, status.st_mtime_ns))
    assert made_of(images) != before
    os.unlink(images.name(5))
    assert made_of(images) != before
    arrays = ArrayImages("x", np.zeros((3, 2, 2), np.uint8), np.zeros(3), 1)
    assert made_of(arrays) == made_of(Subset(arrays, [1])) and torch.is_tensor(arrays.read(0))
