"""Floats and 16 bits from the file to the network: nothing wraps, no pixel decides a scale."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

from tools import corrupt, statistics
from util.data.corruption.corruptions import Corruption
from util.data.datasets import FileImages
from util.data.dense.transforms import PhotometricDistortion
from util.data.robustness_sets import CorruptedImages
from util.data.transformed import TransformedImages
from util.data.transforms import AutoAugment, CropAndFlip, Normalize, ResizeCenterCrop
from util.data.value_scale import check_scale
from util.errors import UsageError

RNG = np.random.default_rng(0)
SIZE = 16


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


def folder(root, make, suffix=".npy", count=4):
    """train/ and val/ with two classes of images by `make(number)`."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            for i in range(count):
                write(root / split / name / f"{i}{suffix}", make(i))
    return root


def images(root, value_range=None):
    paths = [f"{name}/{i}.npy" for name in ("a", "b") for i in range(4)]
    found = FileImages(str(root / "train"), paths, [0] * 4 + [1] * 4, ["a", "b"], 1)
    found.value_range = value_range
    return found


def flags(mean=0.5, std=0.25):
    return argparse.Namespace(mean=[mean], std=[std])


def hounsfield(i):
    return RNG.normal(200, 400, (SIZE, SIZE)).astype(np.int16)


def unit(i):
    return RNG.random((SIZE, SIZE)).astype(np.float32)


def test_training_and_testing_see_the_same_numbers(tmp_path):
    """Of int16, which RandAugment turned by 256, so that a network was tested on others."""
    loaded = images(folder(tmp_path, hounsfield), (-1000, 1000))
    seen = [
        torch.stack([TransformedImages(loaded, view, 0)[0, i][0] for i in range(8)])
        for view in (CropAndFlip((SIZE, SIZE), 1.0, True), ResizeCenterCrop((SIZE, SIZE), 1.0))
    ]
    for imgs in seen:
        assert imgs.dtype == torch.float32
        assert imgs.mean() == pytest.approx(0.6, abs=0.02)
        assert imgs.std() == pytest.approx(0.2, abs=0.02)
    normal = Normalize([0.6], [0.2])(seen[0])
    assert abs(normal.mean()) < 0.1 and abs(normal.std() - 1) < 0.1


@pytest.mark.parametrize("make", [hounsfield, unit])
def test_rand_augment_is_refused_for_what_it_cannot_do(tmp_path, make):
    augment = AutoAugment("rand-m9", (SIZE, SIZE), [0.5])
    view = CropAndFlip((SIZE, SIZE), 1.0, False, augment=augment)
    with pytest.raises(UsageError, match=r"--aa rand-m9 works on 8 bits .* use --aa none"):
        TransformedImages(images(folder(tmp_path, make)), view, 0)[0, 1]


def test_colours_are_distorted_on_a_scale_of_0_to_1_only():
    labels = torch.zeros(8, 8, dtype=torch.int16)
    image = torch.rand(3, 8, 8)
    image[0, 0, 0] = 40.0  # one pixel decides nothing
    assert PhotometricDistortion()(image, labels)[0].shape == (3, 8, 8)
    for factor in (255, -1000):
        with pytest.raises(UsageError, match=r"--photometric .*--value_range, or use --no-photo"):
            PhotometricDistortion()(image * factor, labels)


def test_corruptions_take_floats_as_bytes_and_refuse_other_scales(tmp_path):
    loaded = images(folder(tmp_path, unit))
    corrupted = CorruptedImages(loaded, lambda image: image, Corruption("contrast", 1))
    assert corrupted.read(0).dtype == torch.uint8 and corrupted.read(0).float().std() > 5
    loaded = images(folder(tmp_path / "other", hounsfield))
    with pytest.raises(UsageError, match=r"--corrupt: .*a/0.npy .*another scale.*--value_range"):
        CorruptedImages(loaded, lambda image: image, Corruption("contrast", 1)).read(0)
    write(tmp_path / "deep.png", RNG.integers(0, 65536, (SIZE, SIZE)).astype(np.uint16))
    assert corrupt.load(str(tmp_path / "deep.png"), 1, True).dtype == np.uint8


# -------------------------------------------------------------------------------------- the scale


def test_numbers_far_from_mean_and_std_are_told_at_the_start(tmp_path):
    loaded = images(folder(tmp_path, hounsfield))
    with pytest.raises(UsageError, match=r"a/0.npy and others have numbers .*--value_range"):
        check_scale(loaded, flags())
    check_scale(loaded, flags(200, 400))
    loaded.value_range = (-1000, 3000)
    check_scale(loaded, flags())


def test_a_mostly_black_image_of_255_levels_is_told_and_a_hot_pixel_is_not(tmp_path):
    def sparse(i):
        return np.where(RNG.random((SIZE, SIZE)) < 0.15, 200.0, 0.0).astype(np.float32)

    def hot(i):
        image = unit(i)
        image[3, 4] = 60000.0
        return image

    with pytest.raises(UsageError, match="--value_range"):
        check_scale(images(folder(tmp_path / "sparse", sparse)), flags())
    check_scale(images(folder(tmp_path / "hot", hot)), flags())
    check_scale(images(folder(tmp_path / "dark", lambda i: unit(i) * 1e-3)), flags())


def test_unreadable_images_do_not_hide_the_others(tmp_path):
    root = folder(tmp_path, hounsfield)
    for name in ("a/0", "a/1", "b/2"):
        (root / f"train/{name}.npy").write_bytes(b"junk")
    with pytest.raises(UsageError, match=r"a/2.npy and others"):
        check_scale(images(root), flags())


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_statistics_of_floats_are_theirs(tmp_path, capsys, suffix):
    """0.45 it is, though every second image has a pixel above 1: it said 0.34."""

    def make(i):
        image = RNG.normal(0.45, 0.1, (SIZE, SIZE)).astype(np.float32).clip(0, 1)
        image[0, 0] = 1.5 if i % 2 else 0.45
        return image

    root = folder(tmp_path, make, suffix, count=20)
    words = ["--data_path", str(root), "--in_chans", "1", "--input_size", str(SIZE)]
    statistics.main(statistics.parse_args([*words, "--num_workers", "0"]))
    mean, std = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines()[-2:])
    assert mean == pytest.approx(0.45, abs=0.01) and std == pytest.approx(0.1, abs=0.015)


def test_statistics_in_other_units_are_those_to_give(tmp_path, capsys):
    root = folder(tmp_path, hounsfield, count=20)
    words = ["--data_path", str(root), "--in_chans", "1", "--input_size", str(SIZE)]
    statistics.main(statistics.parse_args([*words, "--num_workers", "0"]))
    mean, std = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines()[-2:])
    assert mean == pytest.approx(200, abs=20) and std == pytest.approx(400, abs=20)
    check_scale(images(root), flags(mean, std))


QUICK = ("--in_chans", 1, "--input_size", SIZE, "--model", "vit_tiny_patch4", "--max_steps", 1,
         "--batch_size", 4, "--num_workers", 0)  # fmt: skip


def test_the_mains_say_so_before_they_train(run_main_here, refuses, tmp_path):
    root = folder(tmp_path / "data", hounsfield)
    data = ("--data_path", root, *QUICK)
    refuses("main_finetune", *data, names=("--value_range", "--mean", "a/0.npy"))
    refuses("main_finetune", *data, "--value_range", -1000, 3000, names=("--aa", "--aa none"))
    own = ("--mean", 200, "--std", 400)
    refuses("main_linprobe", *data, names=("--value_range",))
    for scale in (("--value_range", -1000, 3000), own):
        done = run_main_here("main_finetune", *data, *scale, "--aa", "none")
        assert done.status == 0, done.err


def test_a_checkpoint_brings_its_value_range(run_main_here, tmp_path):
    root = folder(tmp_path / "data", hounsfield)
    trained = run_main_here(
        "main_pretrain", "--data_path", root, "--value_range", -1000, 3000,
        *(f"mimae_{word}" if word == "vit_tiny_patch4" else word for word in QUICK),
    )  # fmt: skip
    assert trained.status == 0, trained.err
    found = run_main_here(
        "main_linprobe", "--data_path", root, "--finetune", trained.folder / "checkpoint-last.pth",
        "--max_steps", 1, "--batch_size", 4, "--num_workers", 0,
    )  # fmt: skip
    assert found.status == 0, found.err
    assert "value_range -1000 3000 [checkpoint]" in " ".join(found.out.split())
