"""Pictures of detections: what is drawn where, and what is too unsure to be drawn."""

import numpy as np
import torch

from util.evaluation.charts import COLOURS
from util.evaluation.dense.detections import OPACITY, draw_detections


def test_masks_boxes_and_names_are_drawn_of_what_is_sure_enough():
    image = torch.zeros(3, 200, 400, dtype=torch.uint8)
    masks = torch.zeros(3, 200, 400, dtype=torch.bool)
    masks[0, 60:120, 50:150] = masks[1, 60:120, 250:350] = masks[2, 150:190, 200:300] = True
    boxes = [[50.0, 60, 150, 120], [250, 60, 350, 120], [200, 150, 300, 190]]
    found = {
        "boxes": torch.tensor(boxes), "masks": masks, "labels": torch.tensor([1, 3, 2]),
        "scores": torch.tensor([0.9, 0.6, 0.4]),
    }  # fmt: skip
    pixels = np.asarray(draw_detections(image, found, ["a", "b", "c"]))
    assert pixels.shape == (200, 400, 3)
    for (x, y), colour in (((100, 90), COLOURS[0]), ((300, 90), COLOURS[1])):
        assert np.abs(pixels[y, x] - OPACITY * np.array(colour)).max() <= 1
    assert pixels[60, 50].tolist() == list(COLOURS[0])  # the box
    assert (pixels[45:60, 50:100] == 255).all(2).any()  # the name, above it
    assert not pixels[140:].any()
    truth = {name: value for name, value in found.items() if name != "scores"}
    assert np.asarray(draw_detections(image, truth, ["a", "b", "c"]))[170, 250].any()


def test_small_images_are_drawn_larger():
    found = {
        "boxes": torch.tensor([[2.0, 3, 9, 8]]),
        "labels": torch.tensor([1]),
        "masks": torch.zeros(1, 16, 12, dtype=torch.bool),
    }
    picture = draw_detections(torch.rand(1, 16, 12), found, ["a"])
    assert picture.size == (12 * 24, 16 * 24)
    assert picture.getpixel((9 * 24, 5 * 24)) == COLOURS[0]
