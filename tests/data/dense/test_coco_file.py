"""COCO's JSON as tools write it: what is read, what is made of it and named, what is refused."""

import json

import numpy as np
import pytest
from coco_files import BOX, NOTHING, annotation, content, lines_with, load, write_images

from util.data.dense.jitter import View
from util.data.dense.rle import compress_counts, encode_rle, segmentation
from util.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path)
    return tmp_path


# ------------------------------------------------------------------- what single annotations lack


RING = np.zeros((8, 12), dtype=bool)
RING[1:6, 2:8] = True
RING[3, 4] = False
LEFT_OUT = {
    "of an image that is not listed": [annotation(10, 3), annotation(11, 4)],
    "without a bbox of four numbers and without a mask": [
        annotation(20, bbox=None, segmentation=None),
        annotation(21, bbox=[1, 2, "x", 4], segmentation=[[1, 2, 3]]),
        annotation(22, bbox={"x": 1}, segmentation=NOTHING), annotation(23, bbox=3, segmentation=7),
    ],
    "RLE is not of its image's size": [annotation(50, segmentation=encode_rle(RING[1:]))],
}  # fmt: skip
NOT_TRAINED_ON = {
    "box has no area": [annotation(70, bbox=[2, 1, 0, 5], segmentation=None)],
    "box is outside": [
        annotation(80, bbox=[12, 1, 6, 5], segmentation=[]),
        annotation(81, bbox=[-9, 1, 6, 5], segmentation=NOTHING),
    ],
}
BOX_FROM_MASK = {
    "without a bbox of four numbers, which": [
        annotation(90, bbox=NOTHING), annotation(91, bbox=None), annotation(92, bbox=[]),
        annotation(93, bbox=[1, None, 2, 3]), annotation(94, bbox=[1, 2, float("nan"), 3]),
        annotation(95, bbox="2 1 6 5"), annotation(96, bbox=[[2, 1, 6, 5]]),
        annotation(97, bbox=[True, True, 6, 5]),
    ],
    "box has no area, which": [annotation(100, bbox=[0, 0, 0, 0])],
    "box is outside of its image, which": [annotation(110, bbox=[12, 1, 6, 5])],
    "within the image's first pixel": [annotation(120, bbox=[0.17, 0.12, 0.5, 0.6])],
}  # fmt: skip


def test_what_cannot_be_used_is_left_out_named_and_counted(folder, caplog):
    data = content([annotation(1), *(a for group in LEFT_OUT.values() for a in group)])
    images, _ = load(folder, data)
    assert images.objects(0) == [(1, BOX, True)]
    for problem, group in LEFT_OUT.items():
        (line,) = lines_with(caplog, f"{problem}, left out")
        assert f"{len(group)} annotations" in line and f"the first: {group[0]['id']}" in line
    _, truth = load(folder, data, "val")
    assert [about["id"] for about in truth["annotations"]] == [1]


def test_what_is_not_in_the_image_counts_in_an_evaluation_alone(folder, caplog):
    group = [a for group in NOT_TRAINED_ON.values() for a in group]
    images, _ = load(folder, content([annotation(1), *group]))
    assert len(images.objects(0)) == 1
    for problem in NOT_TRAINED_ON:
        assert len(lines_with(caplog, problem)) == 1
    _, truth = load(folder, content([annotation(1), *group]), "val")
    assert [about["bbox"] for about in truth["annotations"][1:]] == [a["bbox"] for a in group]


def test_a_box_that_is_none_is_taken_from_its_mask(folder, caplog):
    group = [a for group in BOX_FROM_MASK.values() for a in group]
    images, _ = load(folder, content(group))
    assert len(images.objects(0)) == len(group)
    for problem, those in BOX_FROM_MASK.items():
        (line,) = lines_with(caplog, problem)
        assert f"{len(those)} annotations" in line and "taken from the mask" in line
    _, truth = load(folder, content(group), "val")
    assert all(about["bbox"] == [2, 1, 6, 5] for about in truth["annotations"])
    ring = annotation(1, bbox=None, segmentation=encode_rle(RING))
    assert load(folder, content([ring]), "val")[1]["annotations"][0]["bbox"] == [2, 1, 6, 5]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (1, 1), (None, 0), (NOTHING, 0), (False, 0), (True, 1), ("0", 0), ("1", 1), (1.0, 1),
     ("true", 1), ("False", 0), ("", 0)],
)  # fmt: skip
def test_crowds_by_whatever_says_so(folder, caplog, value, expected):
    data = content([annotation(1, 5), annotation(2, iscrowd=value)])
    assert len(load(folder, data)[0].objects(0)) == 1 - expected
    _, truth = load(folder, data, "val")
    assert truth["annotations"][1]["iscrowd"] == expected and not caplog.records


@pytest.mark.parametrize("value", ["yes", 2, -1, [1], {}, 0.5])
def test_what_says_nothing_about_crowds_is_named(folder, caplog, value):
    assert len(load(folder, content([annotation(2, iscrowd=value)]))[0].objects(0)) == 1
    (line,) = lines_with(caplog, "neither 0 nor 1")
    assert "1 annotations" in line


@pytest.mark.parametrize(
    ("value", "expected", "is_named"),
    [(28, 28, False), (28.5, 28.5, False), ("28.5", 28.5, False), (None, 30, False),
     (NOTHING, 30, False), ("", 30, True), (True, 30, True), (0, 30, True), (-4, 30, True),
     (float("nan"), 30, True), ([30], 30, True), ("big", 30, True)],
)  # fmt: skip
def test_an_area_that_is_none_is_the_masks(folder, caplog, value, expected, is_named):
    for changes in ({}, {"bbox": [1, 0, 8, 7]}):
        data = content([annotation(1, area=value, **changes)])
        (about,) = load(folder, data, "val")[1]["annotations"]
        assert about["area"] == expected
    assert bool(lines_with(caplog, "area is no positive number")) == is_named
    (about,) = load(folder, content([annotation(1, area=None, segmentation=None)]), "val")[1][
        "annotations"
    ]
    assert about["area"] == 30


# ---------------------------------------------------------------------------------------- masks


BAD_POLYGONS = [
    [1, 2, 3], [], None, 5, "abc", {}, [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, None, 5, 6],
    [1, 2, 3, "x", 5, 6], [1, 2, float("nan"), 4, 5, 6], [1, 2, float("inf"), 4, 5, 6],
    [[1, 2], [3], [4, 5]], [1, 2, {}, 4, 5, 6], [10**400, 2, 3, 4, 5, 6],
]  # fmt: skip


def shown(value) -> str:
    """A case's name, the same in each process of the tests."""
    return "nothing" if value is NOTHING else str(value)


@pytest.mark.parametrize("bad", BAD_POLYGONS, ids=lambda bad: str(bad)[:20])
def test_a_bad_polygon_among_good_ones_is_dropped_and_not_its_object(folder, caplog, bad):
    data = content([annotation(1, segmentation=[BOX[0], bad]), annotation(2)])
    images, _ = load(folder, data)
    assert images.objects(0) == [(1, BOX, True), (1, BOX, True)]
    (line,) = lines_with(caplog, "the others are kept")
    assert "1 annotations" in line and "the first: 1" in line
    # None but a bad one: what is left is its box.
    images, _ = load(folder, content([annotation(1, segmentation=[bad, bad]), annotation(2)]))
    assert [has_mask for _, _, has_mask in images.objects(0)] == [False, True]
    assert len(lines_with(caplog, "are no lists of x and y")) == 1


@pytest.mark.parametrize(
    "form",
    [BOX[0], [[str(x) for x in BOX[0]]], [[2, 1], [8, 1], [8, 6], [2, 6]],
     [[[2, 1], [8, 1], [8, 6], [2, 6]]]],
    ids=["flat", "texts", "points", "polygons of points"],
)  # fmt: skip
def test_polygons_as_some_tools_write_them(folder, caplog, form):
    images, _ = load(folder, content([annotation(1, segmentation=form)]))
    assert images.objects(0) == [(1, BOX, True)] and not caplog.records


def test_run_lengths_are_read_in_all_forms(folder, caplog):
    rle = encode_rle(RING)
    texts = rle | {"counts": compress_counts(rle["counts"])}
    floats = {"size": [8.0, 12.0], "counts": [float(count) for count in rle["counts"]]}
    forms = [rle, texts, floats]
    images, _ = load(folder, content([annotation(i, segmentation=f) for i, f in enumerate(forms)]))
    view = View((8, 12), (8, 12), 0, 0, (8, 12), flipped=False)
    assert all(np.array_equal(view.mask(form), RING) for _, form, _ in images.objects(0))
    assert len(images.objects(0)) == 3 and not caplog.records


BAD_RLES = [
    {"size": [8, 12], "counts": [3]}, {"size": [8, 12]}, {"counts": [96]}, {"size": 96},
    {"size": [8, 12], "counts": None}, {"size": [8, 12], "counts": 96},
    {"size": [8, 12], "counts": {}}, {"size": [8, 12], "counts": True},
    {"size": [8, 12], "counts": ["96"]}, {"size": [8, 12], "counts": [[96]]},
    {"size": [8, 12], "counts": [95.5, 0.5]}, {"size": [8, 12], "counts": [97, -1]},
    {"size": [8, 12], "counts": [10**30]}, {"size": [8, 12], "counts": [None, 96]},
    {"size": None, "counts": "X"}, {"size": "8 12", "counts": "X"}, {"size": [8], "counts": "X"},
    {"size": [8, 12, 3], "counts": "X"}, {"size": [None, 12], "counts": "X"},
    {"size": {"h": 8}, "counts": "X"}, {"size": [8, 12], "counts": ""},
    {"size": [8, 12], "counts": "X"}, {"size": [8, 12], "counts": "äö"},
    {"size": [8, 12], "counts": "P" * 4000}, {"size": [8, 12], "counts": "\\u0000!"},
]  # fmt: skip


@pytest.mark.parametrize("bad", [*BAD_RLES, "a text", 7, True], ids=lambda bad: str(bad)[:40])
def test_a_damaged_mask_leaves_its_object_the_box(folder, caplog, bad):
    data = content([annotation(1, segmentation=bad), annotation(2)])
    images, _ = load(folder, data)
    assert images.objects(0) == [(1, BOX, False), (1, BOX, True)]
    assert len(lines_with(caplog, "of which the box is kept")) == 1
    _, truth = load(folder, data, "val")
    assert [about["segmentation"] for about in truth["annotations"]] == [None, BOX]


@pytest.mark.parametrize("none", [None, [], {}, "", NOTHING], ids=shown)
def test_boxes_without_masks_are_said_once(folder, caplog, none):
    data = content([annotation(i, segmentation=none) for i in range(3)])
    images, _ = load(folder, data)
    assert images.objects(0) == [(1, BOX, False)] * 3
    (line,) = lines_with(caplog, "without a mask")
    assert "3 annotations" in line and "without the mask loss" in line
    target = View((8, 12), (16, 24), 0, 0, (16, 24), flipped=False).target(images.objects(0))
    assert target["boxes"][0].tolist() == [4, 2, 16, 12] and not target["has_mask"].any()


WITHOUT_PIXELS = {
    "shares": [[0.2, 0.1, 0.7, 0.1, 0.7, 0.8, 0.2, 0.8]],  # with the first pixel's centre
    "small shares": [[0.1, 0.1, 0.2, 0.1, 0.2, 0.3]],
    "a line": [[1, 1, 9, 5, 1, 1]],
    "between centres": [[3.6, 2.6, 4.4, 2.6, 4.4, 6.4, 3.6, 6.4]],
    "outside": [[20, 1, 30, 1, 30, 6, 20, 6]],
    "empty": {"size": [8, 12], "counts": [96]},
}


@pytest.mark.parametrize("bbox", [None, [2, 1, 6, 5]], ids=["no box", "box"])
@pytest.mark.parametrize("name", WITHOUT_PIXELS)
def test_masks_without_a_pixel_are_counted_and_refused_if_all_are(folder, caplog, name, bbox):
    bad = [annotation(i, segmentation=WITHOUT_PIXELS[name], bbox=bbox) for i in (4, 5)]
    images, _ = load(folder, content([*bad, annotation(6)]))
    assert images.objects(0) == [(1, BOX, True)]
    (line,) = lines_with(caplog, "cover no pixel")
    assert "2 annotations" in line and "the first: 4" in line
    _, truth = load(folder, content([*bad, annotation(6)]), "val")
    assert len(truth["annotations"]) == 3  # they count, as everywhere
    for split in ("train", "val"):
        with pytest.raises(UsageError, match=r"none of its 2 objects covers a pixel.*multiply"):
            load(folder, content(bad), split)


def test_boxes_that_are_shares_of_the_image_are_refused(folder):
    shares = {"bbox": [0.2, 0.1, 0.5, 0.6], "segmentation": None}
    with pytest.raises(UsageError, match=r"none of its 2 objects covers a pixel.*multiply"):
        load(folder, content([annotation(1, **shares), annotation(2, **shares)]))


def test_boxes_that_are_corners_are_named(folder, caplog):
    load(folder, content([annotation(1, bbox=[2, 1, 8, 6])]))
    assert not caplog.records  # two pixels beside its mask: rounded, perhaps
    small = [[5, 4, 8, 4, 8, 6, 5, 6]]
    load(folder, content([annotation(1, bbox=[5, 4, 8, 6], segmentation=small), annotation(2)]))
    (line,) = lines_with(caplog, "larger than its mask")
    assert "1 annotations" in line and "are these the corners?" in line
    caplog.clear()
    load(folder, content([annotation(1, bbox=[6, 4, 11, 8], segmentation=None), annotation(2)]))
    (line,) = lines_with(caplog, "leaves its image")
    assert "1 annotations" in line and "are these the corners?" in line
    caplog.clear()
    load(folder, content([annotation(3, bbox=[2, 1, 3, 5])]))
    assert len(lines_with(caplog, "mask leaves its box")) == 1


def test_masks_from_scenes_are_their_segmentation(folder):
    mask = np.zeros((8, 12), dtype=bool)
    mask[2:5, 3:9] = True
    about = annotation(1, **segmentation(mask))
    images, _ = load(folder, content([about]))
    assert images.objects(0) == [(1, about["segmentation"], True)]


# -------------------------------------------------------------------------------- the whole file


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{", "a.json is no JSON"),
        (b"\xff\xfe{\x00}\x00", "a.json is no JSON"),
        ("[" * 100000, "a.json is no JSON"),
        ("[]", "no list of categories"),
        (content([], images=[]), "a.json is empty: it has no images"),
        (content([], categories=[]), "a.json is empty: it has no categories"),
        (content([]), "no object to train on"),
        (content([annotation(1, 5), annotation(1, 1)]), "annotations has the id 1"),
        (content([annotation(1, category_id=8)]), "annotation 1): add the category"),
        (content([3]), "annotations has no proper id"),
        (content(["two\nlines"]), "annotations has no proper id"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(folder, data, words):
    with pytest.raises(UsageError) as error:
        load(folder, data)
    assert words in str(error.value) and "\n" not in str(error.value)


NO_NUMBERS = [None, "1", "x", True, 1.5, float("nan"), float("inf"), [1], {"a": 1}, NOTHING]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=shown)
def test_ids_of_any_other_type_are_one_line(folder, value):
    for part, key in (
        ("images", "id"), ("categories", "id"), ("annotations", "id"), ("annotations", "image_id"),
        ("annotations", "category_id"),
    ):  # fmt: skip
        data = content([annotation(1)])
        entry = data[part][0]
        entry.pop(key) if value is NOTHING else entry.update({key: value})
        with pytest.raises(UsageError, match=f"one of its {part} has no proper {key}") as error:
            load(folder, data)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [None, "wide", True, 0, -3, 1.5, [8], 2**40, NOTHING], ids=shown)
def test_sizes_that_are_none_are_one_line(folder, value):
    data = content([annotation(1)])
    entry = data["images"][1]
    entry.pop("height") if value is NOTHING else entry.update(height=value)
    with pytest.raises(UsageError, match="images has no proper height, a whole number"):
        load(folder, data)


def test_ids_and_sizes_may_be_large_or_have_a_point(folder):
    data = content([annotation(1, 2**70), annotation(2.0, 5.0, 7.0)])
    data["images"][1].update(id=2**70, file_name="1.png", height="8", width=12.0)
    images, _ = load(folder, data)
    assert images.ids == [5, 2**70] and all(type(number) is int for number in images.ids)
    assert [images.read(i)[0].unique().tolist() for i in (0, 1)] == [[5], [1]]
    assert [len(images.objects(i)) for i in (0, 1)] == [1, 1]


def test_repeated_ids_of_images_and_categories(folder):
    for part in ("images", "categories"):
        data = content([annotation(1)])
        data[part] = [*data[part], data[part][0]]
        with pytest.raises(UsageError, match=f"more than one of its {part} has the id"):
            load(folder, data)


def test_a_byte_order_mark_is_passed_over(folder):
    text = json.dumps(content([annotation(1)])).encode("utf-8-sig")
    assert text.startswith(b"\xef\xbb\xbf")
    assert len(load(folder, text)[0].objects(0)) == 1
