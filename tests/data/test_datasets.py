"""Data sets from files of the published formats, subsets, and what happens to bad images."""

import argparse
import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from util.data import datasets
from util.data.datasets import DATASETS, Subset, load_images
from util.data.transformed import TransformedImages
from util.data.transforms import AutoAugment, CropAndFlip, ResizeCenterCrop
from util.errors import UsageError

RNG = np.random.default_rng(0)


def load(dataset, split="train", data_path="", in_chans=None, **changes):
    options = dict(subset_file="", train_fraction=1.0, download=False) | changes
    in_chans = in_chans or DATASETS[dataset].in_chans
    args = argparse.Namespace(
        dataset=dataset, data_path=str(data_path), in_chans=in_chans, **options
    )
    return load_images(args, split)


# ------------------------------------------------------------------------------------- the sources


def test_the_tested_digits_are_by_other_writers():
    form = np.tile(np.arange(10), 3)  # how each writer's form begins
    targets = load_digits().target
    starts = [i for i in range(len(targets) - 30) if (targets[i : i + 30] == form).mean() > 0.9]
    assert starts[0] == 0 and np.diff(starts[:12]).min() > 120
    assert len(load("digits", "train")) in starts


def test_digits_are_split_once_and_for_all():
    train, val = load("digits", "train"), load("digits", "val")
    assert (len(train), len(val)) == (1415, 382) and len(train.classes) == 10
    assert np.bincount(val.targets).min() >= 20
    digits = load_digits()
    both = np.concatenate([train.images, val.images])
    original = (digits.images * 255 / 16).round()
    assert np.array_equal(both, original)
    assert np.array_equal(load("digits", "pretrain").images, train.images)
    image = train.read(3)
    assert image.shape == (1, 8, 8) and image.dtype == torch.uint8
    assert torch.equal(load("digits", in_chans=3).read(3), image.expand(3, -1, -1))


@pytest.mark.parametrize("layout", ["gz", "raw"])
def test_fashion_mnist_from_idx_files(tmp_path, layout):
    arrays = {}
    folder = tmp_path if layout == "gz" else tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", 30), ("t10k", 20)):
        images = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        arrays[stem] = images, labels
        for name, array in ((f"{stem}-images-idx3-ubyte", images),
                            (f"{stem}-labels-idx1-ubyte", labels)):  # fmt: skip
            data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            data += array.tobytes()
            path = folder / (name + (".gz" if layout == "gz" else ""))
            path.write_bytes(gzip.compress(data) if layout == "gz" else data)
    for split, stem in (("pretrain", "train"), ("train", "train"), ("val", "t10k")):
        dataset = load("fashion_mnist", split, tmp_path)
        assert np.array_equal(dataset.images, arrays[stem][0])
        assert np.array_equal(dataset.targets, arrays[stem][1])
        assert np.array_equal(dataset.read(5)[0], arrays[stem][0][5])


def test_download_fetches_nothing_where_debians_fashion_mnist_lies(tmp_path, monkeypatch):
    def fetch(folder, download):
        raise RuntimeError("asked for")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fetch)
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", str(tmp_path))
    with pytest.raises(UsageError, match="train-images"):  # it looks there
        load("fashion_mnist", "train", download=True)
    for folder in (str(tmp_path / "elsewhere"), ""):
        monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", str(tmp_path / "none"))
        with pytest.raises(UsageError, match="asked for"):
            load("fashion_mnist", "train", folder, download=True)


def test_fashion_mnist_that_is_missing_or_damaged(tmp_path):
    with pytest.raises(UsageError, match=r"--data_path .*train-images"):
        load("fashion_mnist", "train", tmp_path)
    pixels = RNG.integers(0, 256, 784, dtype=np.uint8).tobytes()
    whole = gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, 1, 28, 28) + pixels)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    for damaged in (b"", b"text", whole[:400], whole[:10] + b"\xff" * 99, gzip.compress(b"x")):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="damaged"):
            load("fashion_mnist", "train", tmp_path)


def test_cifar10_from_torchvisions_files(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = RNG.integers(0, 256, (10, 3 * 32 * 32), dtype=np.uint8)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        record = {"data": rows, "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(record))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    train, val = load("cifar10", "train", tmp_path), load("cifar10", "val", tmp_path)
    assert (len(train), len(val), len(train.classes)) == (50, 10, 10)
    assert np.array_equal(val.read(4), rows[4].reshape(3, 32, 32))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_torchvision_sets_that_are_missing(tmp_path, name):
    with pytest.raises(UsageError, match=f"--data_path {tmp_path}"):
        load(name, "train", tmp_path)


def test_image_folder(image_tree):
    train, val = load("image_folder", "train", image_tree), load("image_folder", "val", image_tree)
    assert (len(train), len(val), train.classes) == (12, 4, ["a", "b"])
    assert train.targets.tolist() == [0] * 6 + [1] * 6
    assert train.name(7) == f"{image_tree}/train/b/b_1.png"
    with Image.open(train.name(7)) as image:
        assert np.array_equal(train.read(7).permute(1, 2, 0), np.asarray(image))


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, value, value)).save(path)


def test_val_takes_the_class_numbers_of_train(tmp_path):
    for name in ("train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png", "val/a/1.png"):
        save(tmp_path / name)
    val = load("image_folder", "val", tmp_path)
    assert val.classes == ["a", "b", "c"]
    assert val.targets.tolist() == [0, 2]
    save(tmp_path / "val/unknown/1.png")
    with pytest.raises(UsageError, match="unknown"):
        load("image_folder", "val", tmp_path)


def test_what_is_no_class_folder_becomes_no_class(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("cat", "dog", "eel"):
        save(tmp_path / f"train/{name}/1.png")
        save(tmp_path / f"val/{name}/1.png")
    for name in ("__MACOSX/cat/1.png", "@eaDir/x.png", "cat/@eaDir/1.png/thumb.png",
                 ".ipynb_checkpoints/1.png", "lost+found/1.png"):  # fmt: skip
        save(tmp_path / "train" / name)
        save(tmp_path / "val" / name)
    (tmp_path / "train/empty/deeper").mkdir(parents=True)
    (tmp_path / "train/notes").mkdir()
    (tmp_path / "train/notes/a.txt").touch()
    for split in ("train", "val"):
        images = load("image_folder", split, tmp_path)
        assert images.classes == ["cat", "dog", "eel"] and images.targets.tolist() == [0, 1, 2]
    assert "5 junk folders" in caplog.messages[0]
    assert "2 folders without an image (empty, notes), 1 file (1 .txt)" in caplog.messages[0]
    assert len(caplog.messages) == 2  # a line for each split


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(UsageError, match=r"--data_path is missing"):
        load("image_folder")
    with pytest.raises(UsageError, match=r"--data_path .*absent"):
        load("image_folder", data_path=tmp_path / "absent")
    with pytest.raises(UsageError, match="no train/"):
        load("image_folder", data_path=tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(UsageError, match="no image"):
        load("image_folder", data_path=tmp_path)
    with pytest.raises(UsageError, match="no image"):
        load("flat", "pretrain", tmp_path)
    save(tmp_path / "train/loose.png")
    with pytest.raises(UsageError, match=r"no class folder \(loose.png\)"):
        load("image_folder", data_path=tmp_path)


def test_flat_takes_any_tree_without_labels(image_tree):
    images = load("flat", "pretrain", image_tree)
    assert len(images) == 16 and (images.targets == -1).all() and images.classes == []
    with pytest.raises(UsageError, match="no labels"):
        load("flat", "train", image_tree)


# ----------------------------------------------------------------------------------------- subsets


def test_train_fraction_leaves_the_test_split_alone():
    assert 140 <= len(load("digits", train_fraction=0.1)) <= 148
    assert len(load("digits", "val", train_fraction=0.1)) == 382


def test_a_published_list_names_files_or_class_and_file(tmp_path):
    for wnid in ("n01440764", "n01443537"):
        for i in (10026, 10027):
            save(tmp_path / "train" / wnid / f"{wnid}_{i}.JPEG")
            save(tmp_path / "train" / wnid / f"{i}.JPEG")
    lists = {
        "names.txt": "n01440764_10026.JPEG\nn01443537_10027.JPEG\n\n",
        "paths.txt": "n01440764/n01440764_10026.JPEG\nn01443537/n01443537_10027.JPEG",
        "marked.txt": "\ufeffn01440764_10026.JPEG\r\nn01443537_10027.JPEG\r\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_bytes(text.encode())
        dataset = load("image_folder", data_path=tmp_path, subset_file=str(tmp_path / name))
        assert [dataset.name(i).rsplit("/")[-1] for i in range(2)] == [
            "n01440764_10026.JPEG",
            "n01443537_10027.JPEG",
        ]
        assert dataset.targets.tolist() == [0, 1] and len(dataset.classes) == 2

    bad = tmp_path / "bad.txt"
    for text, message in (
        ("n01440764_10026.JPEG\nn01440764_99.JPEG", "1 of 2.*n01440764_99"),
        ("", "is empty"),
        ("10026.JPEG", "more than one"),
    ):
        bad.write_text(text)
        with pytest.raises(UsageError, match=f"--subset_file.*{message}"):
            load("image_folder", data_path=tmp_path, subset_file=str(bad))
    with pytest.raises(UsageError, match=r"--subset_file.*absent"):
        load("image_folder", data_path=tmp_path, subset_file=str(tmp_path / "absent"))


# -------------------------------------------------------------------------------------- bad images


def bad_tree(root):
    for i in range(8):
        save(root / f"{i}.png", 10 * i)
    (root / "3.png").write_text("not an image")
    return load("flat", "pretrain", root)


def test_a_bad_image_is_replaced_always_by_the_same_one(tmp_path):
    images = bad_tree(tmp_path)
    data = TransformedImages(images, ResizeCenterCrop((4, 4), 1.0), seed=5)
    picture, target, bad = data[0, 3]
    assert bad == 3 and target == -1 and picture.shape == (3, 4, 4)
    assert picture.unique().item() % 10 == 0 and picture.unique().item() != 30
    for epoch in (0, 1, 7):
        assert torch.equal(data[epoch, 3][0], picture)
    assert [data[0, i][2] for i in range(8)] == [-1, -1, -1, 3, -1, -1, -1, -1]


def test_nothing_but_bad_images(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_text("not an image")
    data = TransformedImages(load("flat", "pretrain", tmp_path), lambda image: image, seed=0)
    with pytest.raises(UsageError, match=r"--data_path.*|1\.png"):
        data[0, 1]


def test_an_error_in_the_augmentation_is_no_bad_image(tmp_path):
    def broken(image):
        raise ValueError("a bug")

    save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="a bug") as error:
        TransformedImages(load("flat", "pretrain", tmp_path), broken, seed=0)[0, 0]
    notes = getattr(error.value, "__notes__", ["with the image", "1.png"])  # from Python 3.11 on
    assert "with the image" in notes[0] and "1.png" in notes[-1]


def test_augmentation_is_a_function_of_seed_epoch_and_index(image_tree):
    images = load("image_folder", data_path=image_tree)
    augment = AutoAugment("rand-m9-mstd0.5-inc1", (8, 8), (0.5, 0.5, 0.5))
    transform = CropAndFlip((8, 8), 0.2, True, augment=augment)
    data = TransformedImages(images, transform, seed=1)
    first = data[2, 4][0]
    data[0, 1]
    torch.manual_seed(99)
    assert torch.equal(data[2, 4][0], first)
    assert not torch.equal(data[3, 4][0], first)
    assert not torch.equal(TransformedImages(images, transform, seed=2)[2, 4][0], first)


def test_a_subset_of_a_subset():
    images = load("digits")
    part = Subset(Subset(images, [5, 9, 11]), [2, 0])
    assert part.name(0) == images.name(11) and part.targets.tolist() == list(
        images.targets[[11, 5]]
    )
    assert np.array_equal(part.read(1)[0], images.images[5])
