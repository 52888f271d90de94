"""Features on the disk: the same bytes whoever computes them, and gone on with where it stopped."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from util.data.datasets import ArrayImages, FileImages
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
        lambda imgs, d: seen.append(len(imgs)) or encode(imgs, d),
        lambda image: image,
        CPU,
        batch_size=4,
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


# --------------------------------------------------------------------------------- damaged files


@pytest.fixture
def files(monkeypatch, tmp_path):
    """Twenty-one image files, in shards of eight; image i has the value 10 · i."""
    monkeypatch.setattr(features, "SHARD", 8)
    (tmp_path / "files").mkdir()
    found = FileImages(str(tmp_path / "files"), [f"{i}.png" for i in range(21)],
                       np.arange(21), [], 1)  # fmt: skip
    for i in range(21):
        write(found, i)
    return found


def write(files, index, value=None):
    value = 10 * index if value is None else value
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(files.name(index))


def extracted(folder, files, seen=None, **options):
    kept = store(folder, files, **options)

    def count_and_encode(imgs, detailed):
        if seen is not None:
            seen.extend((imgs[:, 0, 0, 0] // 10).tolist())
        return encode(imgs, detailed)

    kept.extract(count_and_encode, lambda image: image, CPU, batch_size=4, max_bad_images=10)
    return kept


def test_unreadable_images_have_no_features_and_repaired_ones_are_computed_anew(
    files, tmp_path, caplog
):
    """A part of a batch, a whole one, and a whole shard, the last."""
    whole = extracted(tmp_path / "whole", files, detailed=21)
    bad = [2, 4, 5, 6, 7, *range(16, 21)]
    for index in bad:
        with open(files.name(index), "wb") as file:
            file.write(b"no image")
    kept = extracted(tmp_path / "kept", files, detailed=21)
    rest = [i for i in range(21) if i not in bad]
    assert kept.left_out == bad and kept.ids().tolist() == rest == kept.targets().tolist()
    assert torch.equal(kept.read("mean"), whole.read("mean")[rest])
    assert torch.equal(kept.read("pixels", in_detail=True), whole.read("pixels")[rest])
    assert kept.targets(in_detail=True).tolist() == rest
    assert torch.equal(kept.rows("mean")[9], whole.rows("mean")[9])
    assert kept.digest() != whole.digest() and "10 of 21 images cannot be read" in caplog.text
    assert f"left out: {files.name(16)}" in caplog.text

    for index in bad:
        write(files, index)
    seen = []
    again = extracted(tmp_path / "kept", files, seen, detailed=21)
    assert sorted(seen) == [*range(8), *range(16, 21)] and again.left_out == []
    for name in os.listdir(tmp_path / "whole"):
        if not name.startswith("made_of"):  # the files are of another time
            mine, first = ((tmp_path / f / name).read_bytes() for f in ("kept", "whole"))
            assert mine == first, name
    extracted(tmp_path / "kept", files, seen := [])
    assert seen == []


def test_features_of_files_that_have_changed_are_computed_anew(files, tmp_path, caplog):
    caplog.set_level("INFO")
    first = extracted(tmp_path / "kept", files)
    os.utime(files.name(3), (1, 1))
    write(files, 12, 200)
    os.utime(files.name(12), (2, 2))
    seen = []
    again = extracted(tmp_path / "kept", files, seen)
    assert sorted(seen) == [*range(12), 13, 14, 15, 20] and "2 of 3 parts" in caplog.text
    assert again.read("mean")[12] == 200 and again.made_of() != first.digest()


def test_an_image_that_could_not_be_read_is_tried_again(files, tmp_path, monkeypatch):
    """Its file has not changed: a network disk had failed."""
    read = FileImages.read

    def fails(self, index):
        if index == 9:
            raise OSError("Input/output error")
        return read(self, index)

    monkeypatch.setattr(FileImages, "read", fails)
    assert extracted(tmp_path / "kept", files).left_out == [9]
    monkeypatch.setattr(FileImages, "read", read)
    assert extracted(tmp_path / "kept", files, seen := []).left_out == []
    assert sorted(seen) == list(range(8, 16))


def test_of_a_published_set_there_are_no_features_without_all_images(files, tmp_path):
    files.published = "Set-A"
    with open(files.name(20), "wb") as file:
        file.write(b"no image")
    with pytest.raises(RunError, match=r"Set-A: 1 of 21 images cannot be read .*20\.png"):
        extracted(tmp_path / "kept", files)
    write(files, 20)
    assert len(extracted(tmp_path / "kept", files, seen := []).targets()) == 21
    assert seen == [16, 17, 18, 19, 20]
