"""Clip art: no series on both sides of the split, whatever lies in the folder."""

import argparse
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from util.data import openclipart
from util.data.datasets import load_images
from util.data.openclipart import fitted, load_drawings
from util.errors import UsageError

CLASSES = ("animals", "food", "tools")


def drawing(seed: int) -> Image.Image:
    """Some shapes on nothing, as no other seed has them."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        corners = np.sort(rng.integers(0, 64, (2, 2)), 0).ravel().tolist()
        colour = (*rng.integers(0, 200, 3).tolist(), 255)
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(corners, fill=colour)
    return image


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three classes of 40 drawings, a folder of few, series of all kinds and links."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(openclipart, "MIN_LISTED", 30)
    root = tmp_path / "png"
    for number, top in enumerate((*CLASSES, "unsorted", "few")):
        (root / top / "deep").mkdir(parents=True)
        for i in range(40 if top != "few" else 5):
            name = f"{top}/{'deep/' if i % 2 else ''}{chr(97 + i % 26)}{'xyz'[i // 26]}.png"
            drawing(100 * number + i).save(root / name)
    white = Image.new("RGBA", (64, 64), "white")
    lighter = Image.blend(Image.alpha_composite(white, drawing(0)), white, 0.3)
    lighter.save(root / "food" / "lighter.png")  # as animals/ax.png
    drawing(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "tools" / "mirrored.png")
    for i in range(12):
        drawing(900 + i).save(root / "tools" / f"series_{i:02d}.png")
    os.symlink("../animals/ex.png", root / "food" / "linked.png")  # in two classes
    os.symlink("gx.png", root / "animals" / "again.png")
    return root


def by_name(path, *splits) -> dict:
    found = {}
    for split in splits:
        drawings = load_drawings(split, str(path))
        rows = zip(drawings.names, drawings.images, drawings.targets, strict=True)
        found[split] = {str(name): (image, target) for name, image, target in rows}
    return found


def test_a_series_is_on_one_side_and_is_tested_once(folder):
    parts = by_name(folder, "pretrain", "train", "val")
    assert len(parts["val"]) > 30 and len(parts["train"]) > 30
    assert not parts["val"].keys() & parts["pretrain"].keys()
    assert parts["train"].keys() <= parts["pretrain"].keys()
    for pair in ({"animals/ax.png", "food/lighter.png"}, {"animals/cx.png", "tools/mirrored.png"}):
        assert not (pair & parts["val"].keys() and pair & parts["pretrain"].keys())
        assert len(pair & parts["val"].keys()) <= 1
    series = {f"tools/series_{i:02d}.png" for i in range(12)}  # alike by their names alone
    assert series <= parts["train"].keys()  # too large a group to be tested


def test_large_series_are_thinned(folder, monkeypatch):
    monkeypatch.setattr(openclipart, "MAX_OF_GROUP", 5)
    train = by_name(folder, "train")["train"]
    assert sum(name.startswith("tools/series") for name in train) == 5


def test_labels_are_the_folders_that_are_large_enough(folder):
    parts = by_name(folder, "pretrain", "train", "val")
    assert load_drawings("train", str(folder)).classes == list(CLASSES)
    for name, (_, target) in (parts["train"] | parts["val"]).items():
        assert name.split("/")[0] == CLASSES[target]
    rest = parts["pretrain"].keys() - parts["train"].keys()
    assert all(parts["pretrain"][name][1] == -1 for name in rest)
    tops = {name.split("/")[0] for name in rest}
    assert tops == {"unsorted", "few", "animals"}  # one drawing of animals is food's, too
    assert "animals/ex.png" in rest
    both = parts["pretrain"].keys() | parts["val"].keys()
    # A drawing that is linked counts once, under its first name.
    assert len({"animals/gx.png", "animals/again.png"} & both) <= 1
    assert "food/linked.png" not in both


def test_finer_labels_are_folders_within_a_class_and_the_split_is_the_same(folder, monkeypatch):
    monkeypatch.setattr(openclipart, "MIN_FINE", 3)
    os.symlink("deep/bx.png", folder / "animals" / "shallow.png")  # in no folder within alone
    (folder / "tools" / "small").mkdir()
    drawing(8000).save(folder / "tools" / "small" / "one.png")
    finer = [load_drawings(split, str(folder), is_fine=True) for split in ("pretrain", "val")]
    coarse = [load_drawings(split, str(folder)) for split in ("pretrain", "val")]
    for drawings in finer:
        assert drawings.classes == [f"{top}/deep" for top in CLASSES]
        for name, target in zip(drawings.names, drawings.targets, strict=True):
            inside = os.path.dirname(name) in drawings.classes and name != "animals/deep/bx.png"
            assert target == (drawings.classes.index(os.path.dirname(name)) if inside else -1)
    assert list(finer[0].names) == list(coarse[0].names)
    assert set(finer[1].names) < set(coarse[1].names) and (finer[1].targets >= 0).all()
    monkeypatch.setattr(openclipart, "MIN_FINE", 1000)
    with pytest.raises(UsageError, match="no folder within a class has 1000 drawings"):
        load_drawings("train", str(folder), is_fine=True)


def test_the_split_follows_from_the_names_alone(folder, tmp_path):
    before = by_name(folder, "pretrain", "val")
    shutil.copytree(folder, tmp_path / "other", symlinks=True)
    drawing(5000).save(tmp_path / "other" / "tools" / "new one.png")
    after = by_name(tmp_path / "other", "pretrain", "val")
    for split in before:
        assert before[split].keys() == after[split].keys() - {"tools/new one.png"}


def test_drawings_lie_on_white_in_a_square(tmp_path):
    Image.new("RGBA", (100, 50), (255, 0, 0, 128)).save(tmp_path / "wide.png")
    image = fitted(str(tmp_path / "wide.png"))
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert (image[:5] == 255).all() and (image[-5:] == 255).all()
    assert np.abs(image[10:22].astype(int) - [255, 127, 127]).max() <= 1
    assert np.array_equal(image, image[::-1])  # in the middle
    Image.new("L", (8, 8), 10).save(tmp_path / "small.png")
    assert (fitted(str(tmp_path / "small.png")) == 10).all()


def test_what_cannot_be_read_is_left_out(folder, monkeypatch):
    (folder / "food" / "damaged.png").write_bytes(b"no image")
    monkeypatch.setattr(openclipart, "MAX_PIXELS", 64 * 64)
    Image.new("RGB", (65, 64)).save(folder / "food" / "large.png")
    names = by_name(folder, "pretrain", "val")
    names = names["pretrain"].keys() | names["val"].keys()
    assert len(names) > 100
    assert not names & {"food/damaged.png", "food/large.png"}


def test_drawings_are_decoded_once(folder, tmp_path, monkeypatch):
    first = load_drawings("train", str(folder))
    (kept,) = (tmp_path / "cache" / "mimae").iterdir()
    monkeypatch.setattr(openclipart, "fitted", lambda path: pytest.fail("decoded again"))
    again = load_drawings("train", str(folder))
    assert np.array_equal(first.images, again.images) and list(first.names) == list(again.names)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(openclipart, "MIN_LISTED", 30)
    kept.write_bytes(b"damaged")
    assert np.array_equal(first.images, load_drawings("train", str(folder)).images)
    assert kept.stat().st_size > 1000  # whole again
    drawing(7000).save(folder / "food" / "changed.png")  # another listing
    load_drawings("train", str(folder))
    assert len(list(kept.parent.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_no_error(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load_drawings("train", str(folder)).names) > 30


@pytest.mark.parametrize("wrong", ["absent", "empty"])
def test_a_folder_without_drawings(tmp_path, monkeypatch, wrong):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"openclipart-png") as found:
        load_drawings("train", str(tmp_path / wrong))
    assert "--data_path" in str(found.value) and "\n" not in str(found.value)
    monkeypatch.setattr(openclipart, "DEBIAN_FOLDER", str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="apt install openclipart-png"):
        load_drawings("train", "")


@pytest.mark.parametrize("is_fine", [False, True])
def test_as_a_data_set(folder, is_fine, monkeypatch):
    monkeypatch.setattr(openclipart, "MIN_FINE", 3)
    options = dict(subset_file="", train_fraction=1.0, download=False, in_chans=3)
    name = "openclipart_fine" if is_fine else "openclipart"
    args = argparse.Namespace(dataset=name, data_path=str(folder), **options)
    for split in ("pretrain", "train", "val"):
        images, drawings = load_images(args, split), load_drawings(split, str(folder), is_fine)
        assert images.classes == [f"{top}/deep" if is_fine else top for top in CLASSES]
        assert np.array_equal(images.targets, drawings.targets)
        image = images.read(3)
        assert image.dtype == torch.uint8
        assert torch.equal(image, torch.from_numpy(drawings.images[3]).permute(2, 0, 1))


PACKAGE = os.path.isdir(openclipart.DEBIAN_FOLDER)


@pytest.mark.slow
@pytest.mark.skipif(not PACKAGE, reason="Debian's openclipart-png is not installed")
def test_the_package_has_no_test_drawing_that_is_like_a_training_one():
    """Of all pairs, mirrored or not: the correlation of grey images at 16 x 16 pixels."""
    train, val = (load_drawings(split, "") for split in ("pretrain", "val"))
    assert len(val.classes) == 11 and 1600 < len(val.names) < 1750 and len(train.names) > 2500
    finer = load_drawings("val", "", is_fine=True)
    assert len(finer.classes) == 12 and 380 < len(finer.names) < 430

    def centred(images):
        grey = images.astype(np.float64) @ [0.299, 0.587, 0.114]
        grey = grey.reshape(-1, 16, 2, 16, 2).mean((2, 4)).reshape(len(images), -1)
        grey -= grey.mean(1, keepdims=True)
        return grey / np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-3)

    for images in (val.images, val.images[:, :, ::-1]):
        assert (centred(images) @ centred(train.images).T).max() < 0.901
