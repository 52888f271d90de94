"""Tar shards as a map: what tarfile reads in order, at any place; labels; what is refused."""

import io
import json
import os
import tarfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from util.data import kept_index, packed_files
from util.data.datasets import load_images
from util.data.image_list import listed_positions
from util.errors import UsageError

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(kept_index, "SETTLED", 0)


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def tar(path, members: dict[str, bytes | str | dict | int], form=tarfile.GNU_FORMAT):
    """Write a tar of PNGs of a value (int), texts, JSON or bytes; for None a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, content = tarfile.DIRTYPE, b""
            content = png(content) if isinstance(content, int) else content
            content = json.dumps(content) if isinstance(content, dict) else content
            content = content.encode() if isinstance(content, str) else content
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def load(path, split="pretrain", in_chans=3, **changes):
    options = dict(subset_file="", train_fraction=1.0, download=False) | changes
    options |= dict(mean=[0.5] * 3, std=[0.5] * 3)
    args = Namespace(dataset="shards", data_path=str(path), in_chans=in_chans, **options)
    return load_images(args, split)


def values(images) -> list[int]:
    return [int(images.read(index)[0, 0, 0]) for index in range(len(images))]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("names", ["short", "long" * 60, "ü"])
def test_every_image_is_read_at_its_place(tmp_path, form, names):
    if form == tarfile.USTAR_FORMAT and len(names) > 100:
        pytest.skip("the format has no such names")
    for shard in range(3):
        members = {"./": None} | {f"./{names}{i}.png": 10 * shard + i for i in range(5)}
        tar(tmp_path / f"train-{shard}.tar", members, form)
    images = load(tmp_path)
    assert values(images) == [*range(5), *range(10, 15), *range(20, 25)]
    order = np.random.default_rng(0).permutation(15)
    assert [int(images.read(i)[0, 0, 0]) for i in order] == [values(images)[i] for i in order]
    assert images.name(6) == str(tmp_path / "train-1.tar" / f"{names}1.png")
    assert images.relative_name(6) == f"train-1.tar/{names}1.png"
    assert images.files(6) == (str(tmp_path / "train-1.tar"),)


def test_a_file_under_two_names_is_two_images(tmp_path, caplog):
    """As tar stores hard links, of labels too; links to what may not be there are told of."""
    path = tar(tmp_path / "a.tar", {"a/1.png": 5, "a/1.cls": "x", "b/2.png": 9})
    with tarfile.open(path, "a") as file:
        for name, target, kind in (
            ("b/1.png", "./a/1.png", tarfile.LNKTYPE), ("b/1.cls", "a/1.cls", tarfile.LNKTYPE),
            ("b/2.cls", "a/1.cls", tarfile.LNKTYPE), ("c/3.png", "../a/1.png", tarfile.SYMTYPE),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            file.addfile(member)
    with caplog.at_level("WARNING"):
        images = load(path, "train")
    assert sorted(values(images)) == [5, 5, 9] and images.classes == ["x"]
    assert "1 links or sparse files are passed over" in caplog.text


def test_the_second_start_reads_no_shard(tmp_path, monkeypatch):
    tar(tmp_path / "train-0.tar", {"a.png": 1, "a.cls": "1", "b.png": 2, "b.cls": "0"})
    before = load(tmp_path, "train")
    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", None)
        again = load(tmp_path, "train")
    assert values(again) == values(before) == [1, 2]
    assert again.targets.tolist() == before.targets.tolist() == [1, 0]
    tar(tmp_path / "train-0.tar", {"b.png": 2, "b.cls": "0", "c.png": 3, "c.cls": "1"})
    assert values(load(tmp_path, "train")) == [2, 3]


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_shard_that_changes_in_a_run_is_not_read_wrongly(tmp_path, is_open, in_place):
    path = tar(tmp_path / "train-0.tar", {"a.png": 1, "b.png": 2})
    images = load(tmp_path)
    packed_files.opened.cache_clear()
    if is_open:
        images.read(0)
    if not in_place:
        path.unlink()
    tar(path, {"b.png": 2, "a.png": 1})
    if is_open and not in_place:  # it has the old file still
        assert values(images) == [1, 2]
    else:
        with pytest.raises(ValueError, match="has changed since the run began"):
            images.read(0)
    assert values(load(tmp_path)) == [2, 1]


# ---------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (lambda i: {"cls": str(i)}, ["0", "1", "2"]),
        (lambda i: {"cls": f" {i}\n"}, ["0", "1", "2"]),
        (lambda i: {"cls": "cab"[i]}, ["a", "b", "c"]),
        (lambda i: {"json": {"label": i}}, ["0", "1", "2"]),
        (lambda i: {"json": {"label": i, "class_name": "cab"[i]}}, ["c", "a", "b"]),
        (lambda i: {"json": {"class_name": "cab"[i]}}, ["a", "b", "c"]),
        (lambda i: {"cls": str(i), "json": {"label": 7, "class_name": "cab"[i]}}, ["c", "a", "b"]),
    ],
)
def test_labels_stand_in_files_beside(tmp_path, label, classes):
    for split, order in (("train", (2, 0, 1, 0)), ("val", (1, 2))):
        members = {}
        for place, i in enumerate(order):
            members[f"{place}.png"] = i
            for suffix, content in label(i).items():
                members[f"{place}.{suffix}"] = content
        tar(tmp_path / f"x-{split}-00.tar", members)
    for split in ("train", "val"):
        images = load(tmp_path, split)
        assert images.classes == classes
        words = [str(i) if classes == ["0", "1", "2"] else "cab"[i] for i in values(images)]
        assert [classes[target] for target in images.targets] == words


@pytest.mark.parametrize("name", ["{}/{}.png", "deep/{}/{}.png", "{}_{}.png"])
def test_labels_stand_in_names(tmp_path, name):
    synsets = ["n01440764", "n01443537"]
    members = {name.format(synsets[i % 2], i): i for i in range(4)}
    tar(tmp_path / "train.tar", members)
    tar(tmp_path / "val.tar", {name.format(synsets[1], 9): 9})
    images, val = load(tmp_path, "train"), load(tmp_path, "val")
    assert images.classes == val.classes == synsets and val.targets.tolist() == [1]
    assert [value % 2 for value in values(images)] == images.targets.tolist()


def test_numbers_have_the_names_of_their_synsets(tmp_path):
    tar(tmp_path / "train.tar", {"n01440764_1.png": 1, "n01440764_1.cls": "1",
                                 "n01443537_2.png": 2, "n01443537_2.cls": "0"})  # fmt: skip
    assert load(tmp_path, "train").classes == ["n01443537", "n01440764"]
    # Of two names for a number neither is believed.
    tar(tmp_path / "train.tar", {"n01440764_1.png": 1, "n01440764_1.cls": "1",
                                 "n01443537_2.png": 2, "n01443537_2.cls": "1"})  # fmt: skip
    assert load(tmp_path, "train").classes == ["0", "1"]


def test_a_sample_may_hold_more(tmp_path):
    tar(tmp_path / "train.tar", {"1.seg.png": 9, "1.png": 1, "1.txt": "a", "1.cls": "0",
                                 "__MACOSX/._1.png": b"", "2.txt": "none"})  # fmt: skip
    assert values(load(tmp_path, "train")) == [1]
    tar(tmp_path / "train.tar", {"1.a.png": 1, "1.b.png": 2})  # names with dots, no keys
    assert values(load(tmp_path)) == [1, 2]
    tar(tmp_path / "train.tar", {"1.png": 1, "1.jpg": b""})
    with pytest.raises(UsageError, match=r"more than one image under a key \(1\.png, 1\.jpg\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        ({"1.png": 1}, {"1.png": 1, "1.cls": "0"}, "1 of 1 images have no label .*1.png"),
        ({"1.png": 1, "1.cls": "0"}, {"1.png": 1, "1.cls": "3"}, "1 labels .*lacks .3."),
        ({"1.png": 1, "1.cls": "a"}, {"1.png": 1, "1.cls": "3"}, "numbers, and the other's"),
        ({"1.png": 1, "1.cls": "99999999"}, {"1.png": 1, "1.cls": "3"}, "the label 99999999"),
        ({"1.png": 1, "1.json": "{"}, {"1.png": 1, "1.cls": "3"}, "1.json is no JSON"),
        ({"1.txt": "a"}, {"1.png": 1}, "hold no image"),
    ],
)
def test_labels_that_are_refused(tmp_path, train, val, words):
    tar(tmp_path / "train.tar", train)
    tar(tmp_path / "val.tar", val)
    with pytest.raises(UsageError, match=words):
        [load(tmp_path, split) for split in ("train", "val")]


# ----------------------------------------------------------------------------------- files, splits


@pytest.mark.parametrize(
    "pattern",
    ["train-{00..11}.tar", "train-*.tar", "train-{00,0[1-9],1?}.tar",
     "train-0{0..9}.tar::train-1{0..1}.tar"],
)  # fmt: skip
def test_patterns(tmp_path, pattern):
    for shard in range(12):
        tar(tmp_path / f"train-{shard:02d}.tar", {f"{shard}.png": shard})
    path = "::".join(str(tmp_path / part) for part in pattern.split("::"))
    assert values(load(path)) == list(range(12))
    with pytest.raises(UsageError, match="of the val split"):
        load(path, "val")


@pytest.mark.parametrize(
    ("train", "val"),
    [("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"), ("train/0.tar", "val/0.tar"),
     ("training/0.tar", "test/0.tar"), ("0.tar", "valid.tar"),
     ("retrain-trainer.tar", "x_val.tar")],
)  # fmt: skip
def test_a_shards_split_is_in_its_name(tmp_path, train, val):
    root = tmp_path / "test" / "data"  # what lies above says nothing
    tar(root / train, {"1.png": 1, "1.cls": "0"})
    tar(root / val, {"2.png": 2, "2.cls": "0"})
    assert [values(load(root, split)) for split in ("pretrain", "train", "val")] == [[1], [1], [2]]
    both = f"{root / train}::{root / val}"
    assert [values(load(both, split)) for split in ("train", "val")] == [[1], [2]]


def test_files_that_are_missing_are_named(tmp_path):
    for path, words in (
        ("", "--data_path is missing"), (tmp_path, "has no .tar file"),
        (tmp_path / "train-{000..002}.tar", r"there is no .*train-000\.tar \(3 of 3"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            load(path)


def damaged(whole: bytes, kind: str) -> bytes:
    return {
        "empty": b"", "text": b"words" * 300, "cut in a file": whole[: 512 * 4 + 100],
        "cut in a header": whole[: 512 * 2 + 100], "zeros": whole[:1024] + bytes(2048),
        "flipped": whole[: 512 * 2 + 20] + b"?" + whole[512 * 2 + 21 :],
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["empty", "text", "cut in a file", "cut in a header", "flipped"])
def test_damaged_shards_are_refused(tmp_path, kind):
    path = tar(tmp_path / "train.tar", {f"{i}.png": b"\x89PNG" + bytes(400) for i in range(4)})
    path.write_bytes(damaged(path.read_bytes(), kind))
    with pytest.raises(UsageError, match=r"train\.tar is no whole plain tar"):
        load(tmp_path)


def test_compressed_shards_are_refused(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w:gz") as file:
        file.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(UsageError, match=r"train\.tar is no whole plain tar .*unpack"):
        load(tmp_path)


def test_an_unreadable_image_is_named(tmp_path):
    tar(tmp_path / "train.tar", {"a/1.png": b"none", "a/2.png": 2})
    images = load(tmp_path)
    with pytest.raises(OSError, match=r"cannot identify image file '.*train\.tar/a/1\.png'"):
        images.read(0)
    assert images.name(0).endswith("train.tar/a/1.png") and int(images.read(1)[0, 0, 0]) == 2


def test_lists_name_images_in_shards(tmp_path):
    for shard in range(2):
        tar(tmp_path / f"train-{shard}.tar", {f"c{shard}/{i}.png": i for i in range(3)})
    images = load(tmp_path, "train")
    (tmp_path / "list").write_text("c1/2.png\ntrain-0.tar/c0/1.png\n")
    assert listed_positions(images, str(tmp_path / "list"), "--x") == [5, 1]
    assert values(load(tmp_path, "train", subset_file=str(tmp_path / "list"))) == [2, 1]


def test_more_shards_than_may_be_open(tmp_path):
    import resource

    for shard in range(160):
        tar(tmp_path / f"train-{shard:03d}.tar", {"1.png": shard})
    images = load(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 140, before[1]))
    try:
        assert values(images) == list(range(160))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_read_by_forked_processes(tmp_path):
    from torch.utils.data import DataLoader

    tar(tmp_path / "train.tar", {f"{i}.png": i for i in range(40)})
    images = load(tmp_path)
    images.read(0)  # its file is open when they are forked

    class Read(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return images.read(index)

    batches = torch.cat(list(DataLoader(Read(), 5, num_workers=2)))
    assert batches[:, 0, 0, 0].tolist() == list(range(40))
