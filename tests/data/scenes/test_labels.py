"""Scenes as images of one class: that of which most is seen."""

import json

import numpy as np
import pytest
from PIL import Image

from tools import scenes
from util.data.datasets import DATASETS
from util.data.scenes.labels import largest_objects
from util.entry import run_main
from util.errors import UsageError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "out"
    words = [str(folder), "--images", "24", "--val_images", "8", "--size", "64"]
    run_main(scenes.main, lambda: scenes.parse_args([*words, "--num_workers", "0"]))
    return folder


def test_the_class_is_that_of_most_pixels_of_the_label_map(made):
    for split, part in (("train", "training"), ("val", "validation")):
        images = DATASETS["scenes"].load(split, str(made), 3, False)
        assert images.classes[:2] == ["zero", "one"] and len(images.classes) == 10
        assert images.read(0).shape == (3, 64, 64)
        named = {images.name(i).split("/")[-1][:8] for i in range(len(images))}
        for path in (made / "annotations" / part).iterdir():  # those without an object are none
            assert (path.stem in named) == bool(np.asarray(Image.open(path)).any())
        for index, target in enumerate(images.targets):
            name = images.name(index).split("/")[-1][:8]
            labels = np.asarray(Image.open(made / "annotations" / part / f"{name}.png"))
            counts = np.bincount(labels[labels > 0], minlength=11)
            assert counts[target + 1] == counts.max()


def test_of_equals_the_first(tmp_path):
    annotations = [dict(image_id=7, category_id=c, area=a) for c, a in ((3, 5), (2, 9), (3, 4))]
    content = dict(
        images=[dict(id=7, file_name="7.jpg"), dict(id=8, file_name="8.jpg")],
        annotations=annotations,
        categories=[dict(name=name) for name in "abc"],
    )
    (tmp_path / "instances_training.json").write_text(json.dumps(content))
    assert largest_objects(str(tmp_path), "training") == (["7.jpg"], [1], ["a", "b", "c"])


def test_what_is_no_scenes_folder(tmp_path):
    for text in (None, "{", "[]", '{"images": [{}]}'):
        if text is not None:
            (tmp_path / "instances_training.json").write_text(text)
        with pytest.raises(UsageError, match=r"--data_path .*python -m tools.scenes"):
            largest_objects(str(tmp_path), "training")
