"""Overlays, file names of predictions, and the sheet that compares segmenters."""

import numpy as np
import pytest
import torch

from util.data.dense.ade20k import NOTHING, Labels
from util.evaluation.dense import label_pictures
from util.evaluation.dense.folder import output_names
from util.evaluation.dense.label_pictures import comparison_sheet, legend, overlay


def test_an_overlay_mixes_colours_and_leaves_nothing_clear():
    labels = Labels(["a", "b"], palette=[((200, 0, 0), 0), ((0, 0, 100), 1)])
    image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    pixels = np.asarray(overlay(image, torch.tensor([[0, 1], [NOTHING, 0]]), labels, opacity=0.5))
    assert pixels[0, 0].tolist() == [150, 50, 50] and pixels[0, 1].tolist() == [50, 50, 100]
    assert pixels[1, 0].tolist() == [100, 100, 100]


def test_predictions_keep_their_names_unless_two_would_share_one():
    paths = ["a.jpg", "deep/b.png", "c.jpg", "c.png"]
    assert output_names(paths) == ["a", "deep/b", "c.jpg", "c.png"]


def test_the_sheet_has_a_row_an_image_and_a_column_a_map():
    labels = Labels([f"class {i}" for i in range(7)])
    images = [torch.rand(1, 40, 60) for _ in range(2)]
    maps = [torch.full((40, 60), i, dtype=torch.int16) for i in (1, 6)]
    sheet = comparison_sheet(images, {"truth": maps, "found": maps[::-1]}, labels)
    assert sheet.width == 3 * (4 * 60 + 6) + 6
    colours = labels.colours()
    assert len({tuple(c) for c in colours.tolist()}) == 8
    pixels = np.asarray(sheet)
    first, second = (pixels[y, 6 + 246 + 120].tolist() for y in (26 + 80, 26 + 166 + 80))
    assert [first, second] == [colours[1].tolist(), colours[6].tolist()]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 40), (30, 900)])
def test_an_overlay_is_large_enough_to_look_at_and_names_what_is_in_it(height, width, monkeypatch):
    named = []
    monkeypatch.setattr(
        label_pictures, "legend", lambda names, *args: named.append(names) or legend(names, *args)
    )
    labels = Labels(["cat", "dog", "a field of wheat in the evening", "bird"])
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    classes = torch.full((height, width), 2)
    classes[: height // 2] = NOTHING
    classes[:, : width // 4] = 0
    sheet = label_pictures.overlay_with_legend(image, classes, labels)
    assert named == [["a field of wheat in the evening 38 %", "cat 25 %"]]
    scale = max(1, round(384 / max(height, width)))
    assert sheet.width == max(384, scale * width) and sheet.height > scale * height
    pixels = np.asarray(sheet)
    colours = labels.colours()
    below = pixels[scale * height :]
    for number, is_there in ((0, True), (1, False), (2, True), (3, False)):
        assert (below == colours[number]).all(-1).any() == is_there
    assert pixels[scale * height - 1, 0].tolist() == (0.6 * colours[0]).round().tolist()


def test_a_legend_of_many_names_goes_on_below():
    names = [f"class number {i}" for i in range(150)]
    sheet = legend(names, np.zeros((150, 3), dtype=np.uint8), 500)
    assert sheet.width == 500 and sheet.height > 150 / 5 * 20
    assert (np.asarray(sheet)[:, -4:] == 255).all()
