"""Features on the disk: the same bytes whoever computes them, and gone on with where it stopped."""

import os

import numpy as np
import pytest
import torch

from util.data.datasets import ArrayImages
from util.errors import RunError, UsageError
from util.evaluation.frozen import features
from util.evaluation.frozen.features import FeatureStore, images_checksum

CPU = torch.device("cpu")


@pytest.fixture
def images(monkeypatch):
    monkeypatch.setattr(features, "SHARD", 8)
    rng = np.random.default_rng(0)
    return ArrayImages("noise", rng.integers(0, 256, (21, 4, 4), dtype=np.uint8), np.arange(21), 1)


def encode(imgs, detailed):
    found = {"mean": imgs.float().mean((2, 3))}
    return found | ({"pixels": imgs.flatten(1)} if detailed else {})


def store(folder, images, about=None, **options):
    return FeatureStore(str(folder), about or {"encoder": "a"}, images, "fp32", **options)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def test_features_are_in_the_sets_order_and_details_of_the_first_shards(images, tmp_path):
    kept = store(tmp_path, images, detailed=9)
    kept.extract(encode, lambda image: image, CPU, batch_size=4)
    expected = torch.stack([images.read(i).float().mean((1, 2)) for i in range(21)])
    torch.testing.assert_close(kept.read("mean"), expected)
    assert kept.read("pixels", in_detail=True).shape == (16, 16)  # two shards of eight
    assert kept.targets().tolist() == list(range(21))


def test_an_interrupted_extraction_goes_on_and_leaves_the_same_bytes(images, tmp_path):
    whole = store(tmp_path / "whole", images)
    whole.extract(encode, lambda image: image, CPU, batch_size=4, num_workers=1)

    def dies_in_the_second_shard(imgs, detailed):
        if imgs.float().mean() == dies_at:
            raise KeyboardInterrupt
        return encode(imgs, detailed)

    dies_at = torch.stack([images.read(i) for i in range(12, 16)]).float().mean()
    cut = store(tmp_path / "cut", images)
    with pytest.raises(KeyboardInterrupt):
        cut.extract(dies_in_the_second_shard, lambda image: image, CPU, batch_size=4)
    assert len([name for name in os.listdir(tmp_path / "cut") if "targets" in name]) == 1
    seen = []
    again = store(tmp_path / "cut", images)
    again.extract(
        lambda imgs, d: seen.append(len(imgs)) or encode(imgs, d), lambda image: image, CPU, 4
    )
    assert sum(seen) == 13  # the first shard is not computed again
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_features_of_another_encoder_or_set_are_refused(images, tmp_path):
    store(tmp_path, images)
    store(tmp_path, images)  # the same again
    with pytest.raises(UsageError, match=r"holds other features \(encoder differ"):
        store(tmp_path, images, {"encoder": "b"})
    with pytest.raises(UsageError, match="dtype differ"):
        FeatureStore(str(tmp_path), {"encoder": "a"}, images, "fp16")


def test_a_full_disk_is_one_line_and_what_is_whole_stays(images, tmp_path, monkeypatch):
    kept = store(tmp_path, images)
    save, calls = np.save, []

    def full_at_the_third(file, array):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        save(file, array)

    monkeypatch.setattr(np, "save", full_at_the_third)
    with pytest.raises(RunError, match="No space left on device"):
        kept.extract(encode, lambda image: image, CPU, batch_size=8)
    assert sorted(os.listdir(tmp_path)) == ["about.json", "mean-00000.npy", "targets-00000.npy"]


def test_a_sets_checksum_is_of_names_and_labels(images):
    other = ArrayImages("noise", images.images, images.targets[::-1].copy(), 1)
    assert images_checksum(images) == images_checksum(images) != images_checksum(other)
