"""COCO's JSON: what is read, what is left out and counted, what is refused."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from util.data.dense.coco import Categories, load_coco
from util.data.dense.rle import encode_rle, segmentation
from util.errors import UsageError

BOX = [[2, 1, 8, 1, 8, 6, 2, 6]]


def annotation(number: int, image_id: int = 1, category_id: int = 7, **changes) -> dict:
    about = {
        "id": number, "image_id": image_id, "category_id": category_id, "bbox": [2, 1, 6, 5],
        "area": 30, "iscrowd": 0, "segmentation": BOX,
    }  # fmt: skip
    return {k: v for k, v in (about | changes).items() if v is not None}


def content(annotations: list[dict], **changes) -> dict:
    images = [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 12} for i in (5, 1)]
    categories = [{"id": 90, "name": "bear"}, {"id": 7, "name": "ant"}]
    return {"images": images, "categories": categories, "annotations": annotations} | changes


@pytest.fixture
def folder(tmp_path):
    for i in (1, 5):
        Image.fromarray(np.full((8, 12, 3), i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def load(folder: Path, data: dict | str, split="train", categories=None):
    text = data if isinstance(data, str) else json.dumps(data)
    (folder / "a.json").write_text(text)
    args = Namespace(data_path=str(folder), in_chans=3)
    for name in ("train", "val"):
        setattr(args, f"{name}_json", "a.json")
        setattr(args, f"{name}_images", ".")
    return load_coco(args, split, categories)


def test_labels_count_over_ids_with_holes_and_images_without_objects_stay(folder):
    images, truth = load(folder, content([annotation(1, 5, 90), annotation(2, 5, 7)]))
    assert truth is None and images.targets.tolist() == [1, 5] and images.classes == ["ant", "bear"]
    image, (index, objects) = images.read(0)
    assert image.shape == (3, 8, 12) and image.unique().tolist() == [1] and objects == []
    image, (index, objects) = images.read(1)
    assert image.unique().tolist() == [5] and index == 1
    assert [label for label, _ in objects] == [2, 1] and objects[0][1] == BOX


def test_what_is_wrong_with_single_annotations_is_named_and_counted(folder, caplog):
    ring = np.zeros((8, 12), dtype=bool)
    ring[1:6, 2:8] = True
    ring[3, 4] = False
    wrong = {
        "of an image that is not listed": [annotation(10, 3), annotation(11, 4)],
        "without a bbox": [annotation(20, bbox=None), annotation(21, bbox=[1, 2, "x", 4])],
        "without a segmentation": [
            annotation(30, segmentation=[]),
            annotation(31, segmentation=None),
        ],
        "polygons are no lists": [annotation(40, segmentation=[[1, 2, 3]])],
        "RLE is not of its image's size": [annotation(50, segmentation=encode_rle(ring[1:]))],
        "RLE is damaged": [annotation(60, segmentation={"size": [8, 12], "counts": [3]})],
        "box has no area": [annotation(70, bbox=[2, 1, 0, 5])],
        "box is outside": [annotation(80, bbox=[12, 1, 6, 5]), annotation(81, bbox=[-9, 1, 6, 5])],
    }
    kept = [
        annotation(1), annotation(2, segmentation=encode_rle(ring)),
        annotation(3, bbox=[2, 1, 3, 5]), annotation(4, iscrowd=1),
        annotation(5, area=None, iscrowd=None),
    ]  # fmt: skip
    data = content(kept + [about for group in wrong.values() for about in group])
    images, _ = load(folder, data)
    assert len(images.objects(0)) == 4  # without the crowd
    for problem, group in wrong.items():
        (line,) = (r.getMessage() for r in caplog.records if problem in r.getMessage())
        assert f"{len(group)} annotations" in line and f"the first: {group[0]['id']}" in line
    (line,) = (r.getMessage() for r in caplog.records if "mask leaves its box" in r.getMessage())
    assert "1 annotations" in line and "the first: 3" in line
    _, truth = load(folder, data, "val")
    evaluated = truth["annotations"]
    outside = [data["annotations"][-3 + i]["bbox"] for i in range(3)]
    assert [about["bbox"] for about in evaluated] == [a["bbox"] for a in kept] + outside
    assert evaluated[4]["area"] == 30 and evaluated[4]["iscrowd"] == 0
    assert [about["id"] for about in evaluated] == list(range(1, 9))  # 0 would be `none`


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{", "a.json is no JSON"),
        ("[]", "no list of categories"),
        (content([], images=[]), "a.json is empty: it has no images"),
        (content([], categories=[]), "a.json is empty: it has no categories"),
        (content([]), "no object to train on"),
        (content([annotation(1, 5), annotation(1, 1)]), "annotations has the id 1"),
        (content([annotation(1, category_id=8)]), "annotation 1): add the category"),
        (content([annotation(1) | {"image_id": "1"}]), "annotations has no proper image_id"),
        (content([3]), "annotations has no proper id"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(folder, data, words):
    with pytest.raises(UsageError) as error:
        load(folder, data)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_repeated_ids_of_images_and_categories(folder):
    for part in ("images", "categories"):
        data = content([annotation(1)])
        data[part] = [*data[part], data[part][0]]
        with pytest.raises(UsageError, match=f"more than one of its {part} has the id"):
            load(folder, data)


def test_image_files_that_are_missing_are_counted(folder):
    (folder / "1.png").unlink()
    with pytest.raises(UsageError, match=r"lacks 1 of 2 images .*1\.png.*--train_images"):
        load(folder, content([annotation(1)]))


def test_an_image_of_another_size_than_annotated_is_unreadable(folder):
    Image.new("RGB", (8, 12)).save(folder / "1.png")
    images, _ = load(folder, content([annotation(1)]))
    with pytest.raises(ValueError, match="12 x 8 pixels, its annotations are for 8 x 12"):
        images.read(0)


def test_categories_of_validation_are_those_of_training(folder):
    known = Categories([7, 8, 90], ["ant", "cat", "bear"])
    images, truth = load(folder, content([annotation(1)]), "val", known)
    assert images.classes == ["ant", "cat", "bear"]
    assert [about["id"] for about in truth["annotations"]] == [1]
    for ids, names in (([7], ["ant"]), ([7, 90], ["ant", "lion"])):
        with pytest.raises(UsageError, match="category 90, 'bear'; training has"):
            load(folder, content([annotation(1)]), "val", Categories(ids, names))


def test_a_folder_without_layout_names_the_flags(tmp_path):
    args = Namespace(data_path=str(tmp_path), in_chans=3)
    for name in ("train_json", "train_images", "val_json", "val_images"):
        setattr(args, name, None)
    with pytest.raises(UsageError, match=r"instances_train2017.json.*--train_json"):
        load_coco(args, "train")
    args.data_path = ""
    with pytest.raises(UsageError, match=r"--data_path is missing.*tools.scenes"):
        load_coco(args, "val")


def test_masks_from_scenes_are_their_segmentation(folder):
    mask = np.zeros((8, 12), dtype=bool)
    mask[2:5, 3:9] = True
    about = annotation(1, **segmentation(mask))
    images, _ = load(folder, content([about]))
    assert images.objects(0) == [(1, about["segmentation"])]
