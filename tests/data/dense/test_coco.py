"""Images with objects: which are loaded, what of them, and what is said of those that are not."""

import json
from argparse import Namespace

import pytest
import torch
from coco_files import BOX, annotation, content, lines_with, load, write_images
from PIL import Image

from util.data import kept_index
from util.data.dense import coco
from util.data.dense.coco import Categories, load_coco
from util.data.dense.coco_file import read_annotations
from util.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path)
    return tmp_path


def test_labels_count_over_ids_with_holes(folder):
    images, truth = load(folder, content([annotation(1, 5, 90), annotation(2, 5, 7)]))
    assert truth is None and images.ids == [1, 5] and images.classes == ["ant", "bear"]
    image, (index, objects) = images.read(0)
    assert image.shape == (3, 8, 12) and image.unique().tolist() == [1] and objects == []
    image, (index, objects) = images.read(1)
    assert image.unique().tolist() == [5] and index == 1
    assert objects == [(2, BOX, True), (1, BOX, True)]


def test_images_without_objects_are_trained_on_only_if_asked_for(folder, caplog):
    """As published: those with crowds or with what is unusable alone are none that have objects."""
    caplog.set_level("INFO")
    data = content([annotation(1, 5), annotation(2, 1, iscrowd=1)])
    images, _ = load(folder, data, empty=False)
    assert images.ids == [5] and len(images) == 1 and images.read(0)[1][0] == 0
    (line,) = lines_with(caplog, "--empty_images")
    assert "1 of 2 images" in line
    assert load(folder, data, empty=True)[0].ids == [1, 5]
    assert load(folder, data, "val", empty=False)[0].ids == [1, 5]


def test_image_files_that_are_missing_are_counted(folder):
    (folder / "1.png").unlink()
    with pytest.raises(UsageError, match=r"lacks 1 of 2 images .*1\.png.*--train_images"):
        load(folder, content([annotation(1)]))


def test_windows_paths_are_found(folder):
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "1.png").rename(folder / "sub" / "deep" / "1.png")
    (folder / "5.png").rename(folder / "sub\\5.png")  # that is its name
    data = content([annotation(1)])
    data["images"][0]["file_name"], data["images"][1]["file_name"] = (
        "sub\\5.png",
        "sub\\deep\\1.png",
    )
    images, _ = load(folder, data)
    assert [images.read(i)[0].unique().tolist() for i in (0, 1)] == [[1], [5]]
    data["images"][1]["file_name"] = "sub\\deep\\2.png"
    with pytest.raises(UsageError, match="lacks 1 of 2 images"):
        load(folder, data)


def test_an_image_of_another_size_than_annotated_is_unreadable(folder):
    Image.new("RGB", (8, 12)).save(folder / "1.png")
    images, _ = load(folder, content([annotation(1)]))
    with pytest.raises(ValueError, match=r"12 x 8 pixels, its annotations are for 8 x 12$"):
        images.read(0)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photograph_that_is_annotated_before_it_is_turned_is_said_to_be(folder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    size = (12, 8) if orientation in (6, 8) else (8, 12)
    Image.new("RGB", size).save(folder / "1.jpg", exif=exif)
    data = content([annotation(1)])
    data["images"][1]["file_name"] = "1.jpg"
    images, _ = load(folder, data)
    with pytest.raises(ValueError, match="12 x 8 pixels, its annotations are for 8 x 12") as error:
        images.read(0)
    assert ("EXIF orientation" in str(error.value)) == (orientation in (6, 8))
    # Annotated as it is shown, it is an image like any other.
    data["images"][1].update(height=12, width=8)
    assert load(folder, data)[0].read(0)[0].shape == (3, 12, 8)


def test_categories_of_validation_are_those_of_training(folder):
    known = Categories([7, 8, 90], ["ant", "cat", "bear"])
    images, truth = load(folder, content([annotation(1)]), "val", known)
    assert images.classes == ["ant", "cat", "bear"]
    assert [about["id"] for about in truth["annotations"]] == [1]
    for ids, names in (([7], ["ant"]), ([7, 90], ["ant", "lion"])):
        with pytest.raises(UsageError, match="category 90, 'bear'; training has"):
            load(folder, content([annotation(1)]), "val", Categories(ids, names))


# ----------------------------------------------------------------------------------- the kept index


@pytest.fixture
def reads(monkeypatch):
    """Which files were read as JSON in COCO's format."""
    done = []
    monkeypatch.setattr(kept_index, "SETTLED", 0)
    monkeypatch.setattr(
        coco, "read_annotations", lambda path: done.append(path) or read_annotations(path)
    )
    return done


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_second_start_reads_no_json_and_says_the_same(folder, reads, caplog, split):
    rle = {"size": [8, 12], "counts": [10, 5, 81]}
    data = content([annotation(1, 5, 90), annotation(2, 5, segmentation=rle), annotation(2**70),
                    annotation(4, area=-1), annotation(5, 77, bbox=None)])  # fmt: skip
    first = load(folder, data, split, empty=False)
    said = list(caplog.messages)
    caplog.clear()
    args = Namespace(data_path=str(folder), in_chans=3, empty_images=False)
    for name in ("train", "val"):
        setattr(args, f"{name}_json", "a.json")
        setattr(args, f"{name}_images", ".")
    second = load_coco(args, split)
    assert len(reads) == 1 and caplog.messages == said != []
    for one in (first, second):
        assert not one[0].texts.flags.writeable
    assert first[1] == second[1] and (split == "val") == bool(first[1])
    assert first[0].ids == second[0].ids and first[0].classes == second[0].classes
    for index in range(len(first[0])):
        (image, (_, objects)), (again, (_, same)) = (one[0].read(index) for one in (first, second))
        assert torch.equal(image, again) and objects == same
        assert first[0].size(index) == second[0].size(index) == (8, 12)


def change_the_json(folder, data):
    data["annotations"].pop()
    (folder / "a.json").write_text(json.dumps(data))


def remove_an_image(folder, data):
    (folder / "1.png").unlink()


@pytest.mark.parametrize("change", [change_the_json, remove_an_image])
def test_what_has_changed_is_read_anew(folder, reads, change):
    data = content([annotation(1), annotation(2)])
    assert len(load(folder, data)[0].objects(0)) == 2
    change(folder, data)
    if change is remove_an_image:
        with pytest.raises(UsageError, match="lacks 1 of 2 images"):
            load(folder, data)
    else:
        assert len(load(folder, data)[0].objects(0)) == 1
    assert len(reads) == 2


def test_other_flags_use_the_same_index(folder, reads, caplog):
    data = content([annotation(1, 5, 90)])
    path = folder / "a.json"
    path.write_text(json.dumps(data))
    stamp_before = kept_index.stamp(str(path))
    args = Namespace(data_path=str(folder), in_chans=3, train_json="a.json", train_images=".")
    found = []
    more = Categories([7, 8, 90], ["ant", "x", "bear"])
    for empty, known in ((True, None), (False, None), (True, more)):
        args.empty_images = empty
        found.append(load_coco(args, "train", known)[0])
    assert kept_index.stamp(str(path)) == stamp_before and len(reads) == 1
    assert [images.ids for images in found] == [[1, 5], [5], [1, 5]]
    assert [images.objects(-1)[0][0] for images in found] == [2, 2, 3]  # by the known categories


def test_a_folder_without_layout_names_the_flags(tmp_path):
    args = Namespace(data_path=str(tmp_path), in_chans=3)
    for name in ("train_json", "train_images", "val_json", "val_images"):
        setattr(args, name, None)
    with pytest.raises(UsageError, match=r"instances_train2017.json.*--train_json"):
        load_coco(args, "train")
    args.data_path = ""
    with pytest.raises(UsageError, match=r"--data_path is missing.*tools.scenes"):
        load_coco(args, "val")
