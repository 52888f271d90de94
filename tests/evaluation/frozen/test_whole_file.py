"""Features in one file: what numpy and safetensors read, also where the disk is tight."""

import os
from collections import namedtuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from util.data.datasets import ArrayImages
from util.errors import RunError
from util.evaluation.frozen import features, whole_file
from util.evaluation.frozen.features import FeatureStore
from util.evaluation.frozen.whole_file import NAME, WholeFile, map_whole, write_whole

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Maps of 21 images in parts of eight, of which images 3 and 8 to 15 could not be read."""
    monkeypatch.setattr(features, "SHARD", 8)
    rng = np.random.default_rng(0)
    images = ArrayImages(
        "noise", rng.integers(0, 256, (21, 4, 4), dtype=np.uint8), np.arange(21), 1
    )
    read = ArrayImages.read

    def fails(self, index):
        if index == 3 or 8 <= index < 16:
            raise OSError("damaged")
        return read(self, index)

    monkeypatch.setattr(ArrayImages, "read", fails)
    store = FeatureStore(str(tmp_path / "parts"), {}, images, "fp16", flag="OUT")
    store.extract(
        lambda imgs, _: {NAME: imgs[:, 0, :2].float()},
        lambda image: image,
        torch.device("cpu"),
        batch_size=4,
        max_bad_images=9,
    )
    expected = torch.stack([read(images, i)[0, :2] for i in store.ids()]).half()
    return store, expected


@pytest.mark.parametrize("is_tight", [False, True])
@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_rows_are_the_readable_images_in_order(kept, kind, is_tight, tmp_path, monkeypatch):
    store, expected = kept
    if is_tight:
        monkeypatch.setattr(whole_file.shutil, "disk_usage", lambda path: Usage(1, 1, 0))
    path = str(tmp_path / f"out.{kind}")
    write_whole(store, NAME, path, kind)
    if kind == "npy":
        assert torch.equal(torch.from_numpy(np.load(path)), expected)
    else:
        found = load_file(path)
        assert torch.equal(found[NAME], expected) and len(found) == 2
        assert found["labels"].tolist() == store.ids().tolist()
    assert torch.equal(torch.from_numpy(np.array(map_whole(path))), expected)
    assert bool(store.parts(NAME)) != is_tight and sorted(os.listdir(tmp_path)) == [
        f"out.{kind}", "parts"]  # fmt: skip


def test_a_full_disk_leaves_no_file_and_tight_parts_are_computed_anew(kept, tmp_path, monkeypatch):
    store, _ = kept
    monkeypatch.setattr(whole_file.shutil, "disk_usage", lambda path: Usage(1, 1, 0))
    load = np.load

    def fails_at_the_last(path, **options):
        if path.endswith("features-00002.npy"):
            raise OSError(28, "No space left on device")
        return load(path, **options)

    monkeypatch.setattr(whole_file.np, "load", fails_at_the_last)
    whole = WholeFile(str(tmp_path / "out.npy"), str(tmp_path / "out"), "npy")
    with pytest.raises(RunError, match=r"out.npy cannot be written \(No space left"):
        whole.write(store, store.images, {})
    monkeypatch.setattr(whole_file.np, "load", load)
    assert sorted(os.listdir(tmp_path)) == ["parts"]
    assert store._to_do().keys() == {0, 1}  # the first was written, and 1 has damaged images
