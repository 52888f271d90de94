"""Hugging Face's files as a map, against what `datasets` reads of them; columns, labels, splits."""

import io
import json
import os
import pickle
from argparse import Namespace

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import ipc, parquet

from util.data import hugging_face, kept_index
from util.data.any_images import source_of
from util.data.datasets import load_images
from util.data.image_list import listed_positions
from util.errors import UsageError

CLASSES = ["zebra", "ape", "cat"]  # in no order


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(kept_index, "SETTLED", 0)


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def features(**columns) -> dict:
    about = {"image": {"_type": "Image"}} | columns
    return {b"huggingface": json.dumps({"info": {"features": about}}).encode()}


NAMED = {"label": {"names": CLASSES, "_type": "ClassLabel"}}


def table(values=range(4), about=None, **columns) -> pyarrow.Table:
    """Images of these values, labelled by the values modulo 3."""
    images = [None if v is None else {"bytes": png(v), "path": f"{v}.png"} for v in values]
    columns = columns or {"label": [(v or 0) % 3 for v in values]}
    schema = features(**NAMED) if about is None else about
    return pyarrow.table({"image": images} | columns).replace_schema_metadata(schema)


def write(path, one: pyarrow.Table, rows: int = 100):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(one, path, row_group_size=rows)
    else:
        with ipc.new_stream(str(path), one.schema) as stream:
            stream.write_table(one, max_chunksize=rows)
    return path


def load(path, split="train", **changes):
    options = dict(subset_file="", train_fraction=1.0, download=False, in_chans=3) | changes
    options |= dict(mean=[0.5] * 3, std=[0.5] * 3)
    return load_images(Namespace(dataset="hugging_face", data_path=str(path), **options), split)


def values(images) -> list[int]:
    return [int(images.read(index)[0, 0, 0]) for index in range(len(images))]


# -------------------------------------------------------------------------- datasets, the original


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """(folder, DatasetDict): saved by `datasets` as Arrow in saved/, as Parquet in hub/."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("hf")
    rng = np.random.default_rng(0)
    about = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES))

    def split(count: int):
        pixels = [Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)) for _ in range(count)]
        labels = [i % 3 for i in range(count)]
        return datasets.Dataset.from_dict({"image": pixels, "label": labels}, features=about)

    sets = datasets.DatasetDict(train=split(250), validation=split(6), test=split(3))
    sets.save_to_disk(str(root / "saved"), num_shards={"train": 3, "validation": 1, "test": 1})
    for name, one in sets.items():
        (root / "hub" / "data").mkdir(parents=True, exist_ok=True)
        one.to_parquet(str(root / "hub" / "data" / f"{name}-00000-of-00001.parquet"))
    sets["train"].map(lambda row: row)  # what it keeps beside them is no part of the set
    return root, sets


@pytest.mark.parametrize("form", ["saved", "hub"])
def test_images_and_labels_are_those_of_datasets(original, form):
    root, sets = original
    for split, name in (("train", "train"), ("val", "validation")):
        images = load(root / form, split)
        assert images.classes == CLASSES and images.targets.tolist() == sets[name]["label"]
        order = np.random.default_rng(0).permutation(len(images))
        for index in order.tolist():
            expected = np.asarray(sets[name][index]["image"]).transpose(2, 0, 1)
            assert np.array_equal(images.read(index).numpy(), expected)


def test_files_of_other_classes_or_types_are_not_joined(tmp_path):
    """Of which the numbers mean others: the image would get another class's name."""
    other = {"label": {"names": CLASSES[::-1], "_type": "ClassLabel"}}
    for name, second in {
        "classes": table(about=features(**other)), "text": table(label=["ape"] * 4),
        "float": table(about=features(), label=[0.0, 1.0, 2.0, 0.0]),
    }.items():  # fmt: skip
        folder = tmp_path / name
        write(folder / "train-a.parquet", table())
        write(folder / "train-b.parquet", second)
        with pytest.raises(UsageError, match=r"train-b.parquet .*than .*train-a.parquet"):
            load(folder)


def test_each_row_has_a_name_of_its_own(tmp_path):
    """The files whose basenames were kept lay in folders of classes."""
    rows = [{"bytes": png(v), "path": name} for v, name in enumerate(["0.png", "0.png", "1.png"])]
    one = table(range(3)).set_column(0, "image", pyarrow.array(rows))
    images = load(write(tmp_path / "train.parquet", one))
    names = [images.relative_name(i) for i in range(3)]
    assert names == [f"train.parquet/{n}" for n in ("0000000-0.png", "0000001-0.png", "1.png")]
    (tmp_path / "list.txt").write_text("train.parquet/1.png\n0000001-0.png\n")
    assert listed_positions(images, str(tmp_path / "list.txt"), "--subset_file") == [2, 1]


def test_what_map_leaves_beside_a_saved_set_is_passed_over(original, tmp_path):
    import shutil

    root, _ = original
    shutil.copytree(root / "saved" / "train", tmp_path / "train")
    write(tmp_path / "train" / "cache-0123.arrow", table())
    assert len(load(tmp_path)) == 250
    state = tmp_path / "train" / "state.json"
    about = json.loads(state.read_text())
    state.write_text(json.dumps(about | {"_indices_data_files": [{"filename": "x"}]}))
    with pytest.raises(UsageError, match="flatten_indices"):
        load(tmp_path)
    state.write_text("{")
    with pytest.raises(UsageError, match=r"state\.json is damaged"):
        load(tmp_path)


# ------------------------------------------------------------------------------------------- a map


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("rows", [3, 100])
def test_any_place_of_several_files(tmp_path, suffix, rows):
    for file in range(3):
        start = 60 * file
        write(tmp_path / f"train-{file}{suffix}", table(range(start, start + 50)), rows)
    images = load(tmp_path)
    expected = [60 * file + i for file in range(3) for i in range(50)]
    order = np.random.default_rng(0).permutation(150).tolist()
    assert [int(images.read(i)[0, 0, 0]) for i in order] == [expected[i] for i in order]
    assert images.name(51) == str(tmp_path / f"train-1{suffix}" / "61.png")
    assert images.relative_name(51) == f"train-1{suffix}/61.png"
    assert images.files(51) == (str(tmp_path / f"train-1{suffix}"),)
    (tmp_path / "list").write_text("61.png\n3.png\n")
    assert listed_positions(images, str(tmp_path / "list"), "--x") == [51, 3]


def test_an_arrow_file_with_a_footer(tmp_path):
    with ipc.new_file(str(tmp_path / "train.arrow"), table().schema) as writer:
        writer.write_table(table())
    assert values(load(tmp_path)) == [0, 1, 2, 3]


def test_the_second_start_reads_no_column(tmp_path, monkeypatch):
    write(tmp_path / "train.parquet", table())
    before = load(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(hugging_face, "column_values", None)
        again = load(tmp_path)
    assert values(again) == values(before) and again.targets.tolist() == before.targets.tolist()
    write(tmp_path / "train.parquet", table([9, 8]))
    assert values(load(tmp_path)) == [9, 8]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_file_that_changes_in_a_run_is_not_read_wrongly(tmp_path, suffix):
    path = write(tmp_path / f"train{suffix}", table())
    images = load(tmp_path)
    path.write_bytes(path.read_bytes()[::-1])
    hugging_face._unpacked.cache_clear()  # the page that the start has read
    with pytest.raises(ValueError, match=r"train.*: its file has changed since the run began"):
        images.read(0)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_rows_without_an_image_are_unreadable(tmp_path, suffix):
    write(tmp_path / f"train{suffix}", table([1, None, 2]))
    images = load(tmp_path)
    assert [int(images.read(i)[0, 0, 0]) for i in (0, 2)] == [1, 2]
    with pytest.raises(ValueError, match=r"train.*/0000001: its row has no bytes"):
        images.read(1)


def test_as_any_images_of_whichever_split(tmp_path):
    """As `tools.features` takes them."""
    for split in ("train", "val"):
        write(tmp_path / f"{split}.parquet", table())
    assert source_of(str(tmp_path)) == source_of(f"{tmp_path}/val.parquet") == "hugging_face"
    assert len(load(tmp_path, "any")) == 8


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_rows_may_name_files(tmp_path, suffix):
    """As `to_parquet` writes folders of images: paths, no bytes."""
    (tmp_path / "deep").mkdir()
    for i in range(3):
        (tmp_path / "deep" / f"{i}.png").write_bytes(png(i))
    names = ["deep/0.png", str(tmp_path / "deep" / "1.png"), "deep/2.png", "deep/3.png"]
    rows = [{"bytes": None, "path": name} for name in names]
    one = pyarrow.table({"image": pyarrow.array(rows, table().schema.field("image").type)})
    write(tmp_path / f"train{suffix}", one)
    images = load(tmp_path, "pretrain")
    assert [int(images.read(i)[0, 0, 0]) for i in range(3)] == [0, 1, 2]
    assert images.files(2) == (str(tmp_path / f"train{suffix}"), str(tmp_path / "deep" / "2.png"))
    with pytest.raises(FileNotFoundError, match=r"deep/3\.png"):
        images.read(3)


def test_read_by_forked_processes(tmp_path):
    from torch.utils.data import DataLoader

    write(tmp_path / "train.parquet", table(range(40)), 7)
    images = load(tmp_path)
    images.read(0)

    class Read(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return images.read(index)

    batches = torch.cat(list(DataLoader(Read(), 5, num_workers=2)))
    assert batches[:, 0, 0, 0].tolist() == list(range(40))


# ---------------------------------------------------------------------------------------- columns


def test_bytes_without_a_struct(tmp_path):
    one = pyarrow.table({"picture": [png(3), png(4)], "class": ["b", "a"]})
    write(tmp_path / "train.parquet", one)
    write(tmp_path / "val.arrow", one)
    for split in ("train", "val"):
        images = load(tmp_path, split)
        assert values(images) == [3, 4] and images.classes == ["a", "b"]
        assert images.targets.tolist() == [1, 0]


TWO = {"fine": [0, 1, 2, 0], "coarse": [1, 1, 0, 0]}
ABOUT_TWO = features(fine=NAMED["label"], coarse={"names": ["x", "y"], "_type": "ClassLabel"})


def test_one_of_two_columns_of_classes_is_named(tmp_path):
    write(tmp_path / "train.parquet", table(about=ABOUT_TWO, **TWO))
    with pytest.raises(UsageError, match=r"\(fine, coarse\): name one with --label_column"):
        load(tmp_path)
    assert load(tmp_path, "pretrain").targets.tolist() == [-1] * 4
    images = load(tmp_path, label_column="coarse")
    assert images.classes == ["x", "y"] and images.targets.tolist() == [1, 1, 0, 0]
    assert load(tmp_path, label_column="fine").classes == CLASSES


def test_one_of_two_columns_of_images_is_named(tmp_path):
    one = table().append_column("mask", pyarrow.array([{"bytes": png(9)}] * 4))
    one = one.rename_columns(["shown", "label", "mask"])
    write(tmp_path / "train.parquet", one.replace_schema_metadata(features(**NAMED)))
    with pytest.raises(UsageError, match=r"\(shown, mask\): name one with --image_column"):
        load(tmp_path)
    assert values(load(tmp_path, image_column="mask")) == [9] * 4
    assert values(load(tmp_path, image_column="shown")) == [0, 1, 2, 3]
    for given, words in (({"image_column": "label"}, "no images in that column .*shown or mask"),
                         ({"label_column": "x"}, "no such column .*label")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            load(tmp_path, image_column=given.pop("image_column", "mask"), **given)


@pytest.mark.parametrize(
    ("columns", "about", "classes", "targets"),
    [
        ({"label": [2, 0, 2, 1]}, {}, ["0", "1", "2"], [2, 0, 2, 1]),
        ({"target": list("bcab")}, {}, ["a", "b", "c"], [1, 2, 0, 1]),
        ({"text": list("abcd"), "label": [1, 1, 0, 0]}, {}, ["0", "1"], [1, 1, 0, 0]),
        ({"label": [0, 1, 1, 0]},
         features(label={"names": ["crane", "crane"], "_type": "ClassLabel"}),
         ["crane (0)", "crane (1)"], [0, 1, 1, 0]),
    ],
)  # fmt: skip
def test_labels(tmp_path, columns, about, classes, targets):
    write(tmp_path / "train.arrow", table(about=about, **columns))
    images = load(tmp_path)
    assert images.classes == classes and images.targets.tolist() == targets


@pytest.mark.parametrize(
    ("one", "split", "words"),
    [
        (table(label=[0, 1, -1, 2]), "train", "1 of 4 images have no label .*2.png"),
        (table(label=[0, 1, 5, 2]), "train", "the label 5, and names of 3 classes"),
        (
            table(about={}, text=list("abcd")),
            "train",
            r"certain .*: text\): name one with --label_column",
        ),
        (pyarrow.table({"label": [1]}), "train", r"no column of images.*\(its columns: label\)"),
        (pyarrow.table({"image": [[1, 2]], "label": [1]}), "train", "lists of pixels"),
        (table().slice(0, 0), "pretrain", "hold no image"),
    ],
)
def test_what_is_refused(tmp_path, one, split, words):
    write(tmp_path / "train.parquet", one)
    with pytest.raises(UsageError, match=words):
        load(tmp_path, split)


def test_sounds_have_bytes_too(tmp_path):
    about = features(sound={"_type": "Audio"}, **NAMED)
    sounds = pyarrow.array([{"bytes": b"x", "path": ""}] * 4)
    one = table(about=about).append_column("sound", sounds)
    write(tmp_path / "train.parquet", one.replace_schema_metadata(about))
    assert values(load(tmp_path)) == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------- files


def test_splits(tmp_path):
    for name in ("train/0000.parquet", "validation/0000.parquet", "test/0000.parquet"):
        write(tmp_path / name, table([len(name)], label=[0]))
    assert values(load(tmp_path, "val")) == [len("validation/0000.parquet")]
    (tmp_path / "validation" / "0000.parquet").unlink()
    assert values(load(tmp_path, "val")) == [len("test/0000.parquet")]
    both = f"{tmp_path}/train::{tmp_path}/test/*.parquet"
    assert [values(load(both, split)) for split in ("train", "val")] == [[18], [17]]


def test_classes_of_both_splits_are_the_same(tmp_path):
    write(tmp_path / "train.parquet", table())
    other = features(label={"names": CLASSES[::-1], "_type": "ClassLabel"})
    write(tmp_path / "val.parquet", table(about=other))
    with pytest.raises(UsageError, match="other names or numbers"):
        load(tmp_path, "val")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_damaged_files_are_named(tmp_path, suffix):
    path = write(tmp_path / f"train{suffix}", table())
    whole = path.read_bytes()
    for damaged in (b"", b"words" * 100, whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=rf"train\{suffix} is no whole .*: fetch it again"):
            load(tmp_path)


def test_compressed_arrow_is_refused(tmp_path):
    options = ipc.IpcWriteOptions(compression="zstd")
    with ipc.new_stream(str(tmp_path / "train.arrow"), table().schema, options=options) as stream:
        stream.write_table(table())
    with pytest.raises(UsageError, match=r"train\.arrow is a compressed Arrow file"):
        load(tmp_path)


def test_without_pyarrow_one_line_says_so(tmp_path, monkeypatch):
    import sys

    write(tmp_path / "train.parquet", table())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pip install pyarrow"):
        load(tmp_path)


def test_the_columns_flags_are_of_this_source_alone(tmp_path):
    args = Namespace(dataset="digits", data_path="", in_chans=1, download=False, label_column="x")
    with pytest.raises(UsageError, match="--dataset hugging_face alone"):
        load_images(args, "train")


def test_what_is_kept_open_is_not_handed_on(tmp_path):
    """Spawned processes get a set by pickling, which no cache of pages may hinder."""
    write(tmp_path / "train.parquet", table())
    images = load(tmp_path)
    images.read(0)
    again = pickle.loads(pickle.dumps(images))
    assert values(again) == [0, 1, 2, 3] and os.path.exists(again.packed.paths[0])
