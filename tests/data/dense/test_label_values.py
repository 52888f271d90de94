"""What is told of label maps before training, and what is kept of them."""

import logging
import os

import numpy as np
import pytest
from PIL import Image

from util.data.dense import label_values
from util.data.dense.ade20k import Labels, load_mapped_images
from util.errors import UsageError

CLASSES = ["wall", "sky", "ball"]


def write(root, maps, split="training", suffix=".png"):
    for i, values in enumerate(maps):
        values = np.array(values, dtype=np.uint8)
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", values.shape[1::-1])
        image.save(root / "images" / split / f"{i}.png")
        Image.fromarray(values).save(root / "annotations" / split / f"{i}{suffix}")


@pytest.fixture
def told(tmp_path, monkeypatch, caplog):
    """(labels) -> the lines about tmp_path's training maps; its cache is its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO)

    def look(labels=None, split="training") -> str:
        caplog.clear()
        images = load_mapped_images(str(tmp_path), split, labels or Labels(CLASSES), 3)
        label_values.tell(images, split)
        return "\n".join(record.message for record in caplog.records)

    return look


def test_maps_with_all_classes_are_fine(told, tmp_path):
    write(tmp_path, [[[0, 1, 2]], [[3, 3, 1]]])
    assert told() == "in each of the 2 training maps: value 1 (wall)"


def test_classes_of_no_map_and_values_of_every_map(told, tmp_path):
    write(tmp_path, [[[0, 1, 2]], [[0, 2, 2]]])
    lines = told().splitlines()
    assert lines == [
        "value 3 (ball) is in no training map; is --first_class 0?",
        "in each of the 2 training maps: value 0 (nothing), value 2 (sky)",
    ]
    assert "first_class" not in told(Labels(["wall", "sky"]))
    assert "value 0 (wall) is in no" not in told(Labels(CLASSES, first_class=0))


def test_maps_that_count_from_one_are_not_of_first_class_0(told, tmp_path):
    write(tmp_path, [[[1, 2, 2]], [[2, 2, 1]]])
    assert "value 0 (wall) is in no training map; is --first_class 1?" in told(
        Labels(CLASSES, first_class=0)
    )


def test_masks_of_0_and_255_are_no_two_classes(told, tmp_path):
    write(tmp_path, [[[0, 255, 255]], [[255, 0, 0]]])
    line = told(Labels(["ground", "thing"], first_class=0)).splitlines()[0]
    assert line.startswith("value 1 (thing) is in no training map, and 255 is nothing")
    assert "--palette" in line


def test_many_absent_classes_take_one_line(told, tmp_path):
    write(tmp_path, [[[1, 1]]])
    line = told(Labels([f"c{i}" for i in range(150)])).splitlines()[0]
    assert "value 2 (c1), " in line and "and 144 more are in no training map" in line


def test_colours_are_told_by_name(told, tmp_path):
    palette = [((9, 9, 9), 0), ((0, 200, 0), 1), ((5, 0, 5), 2), ((0, 0, 0), -1)]
    write(tmp_path, [[[[9, 9, 9], [0, 0, 0]]], [[[9, 9, 9], [0, 200, 0]]]])
    assert told(Labels(CLASSES, 1, palette)).splitlines() == [
        "ball is in no training map",
        "in each of the 2 training maps: colour 9 9 9 (wall)",
    ]


@pytest.mark.parametrize(
    ("maps", "labels", "words"),
    [
        ([[[0, 0]], [[0, 255]]], Labels(CLASSES), ("no pixel of the 2 training maps",
                                                   "value 0 (nothing), value 255 (nothing)")),
        ([[[1, 2]], [[2, 9]]], Labels(CLASSES), ("1.png has the value 9 at row 0, column 1",)),
        ([[[1, 2]], [[2, 3]]], Labels(CLASSES[:2]), ("the value 3", "1 to 2", "--first_class")),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on(told, tmp_path, maps, labels, words):
    write(tmp_path, maps)
    with pytest.raises(UsageError) as caught:
        told(labels)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_maps_are_read_once_and_again_when_they_change(told, tmp_path, monkeypatch):
    write(tmp_path, [[[0, 1, 2]], [[3, 3, 1]], [[2, 2, 1]]])
    first, read = told(), []
    read_values = Labels.read_values

    def counted(self, path, content=None):
        read.append(os.path.basename(path))
        return read_values(self, path, content)

    monkeypatch.setattr(Labels, "read_values", counted)
    assert told() == first and read == ["0.png"]  # by the folder's own check of a first pair
    read.clear()
    write(tmp_path, [[[0, 1, 2]], [[2, 2, 1]]])
    os.utime(tmp_path / "annotations" / "training" / "0.png", ns=(1, 1))
    assert "value 3 (ball) is in no training map" in told()
    assert sorted(read) == ["0.png", "0.png", "1.png"]
    (cache,) = (tmp_path / "cache" / "mi-mae").iterdir()
    for damage in ("no JSON", '{"1.png": 5}', "[1]"):
        cache.write_text(damage)
        read.clear()
        assert "value 3" in told() and len(read) == 4


def test_without_a_place_to_keep_them_they_are_read_all_the_same(told, tmp_path, monkeypatch):
    write(tmp_path, [[[0, 1, 2, 3]]])
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert told() == ""


def test_an_unreadable_map_is_left_to_who_needs_it(told, tmp_path):
    write(tmp_path, [[[0, 1, 2, 3]], [[1]], [[1]]])
    (tmp_path / "annotations" / "training" / "2.png").write_bytes(b"no image")
    assert told() == "in each of the 2 training maps: value 1 (wall)"
