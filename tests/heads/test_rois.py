"""Anchors, cut-out regions, losses and mask targets: closed forms, and properties they keep."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, box_iou

from encoders.load import build_encoder
from heads.maskrcnn import build_detector
from heads.rois import CanvasAnchors, CanvasRoIAlign, box_losses, mask_targets
from util.training.roi_sampling import RoISampling

STRIDES = [4, 8, 16, 32]


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)


def anchors_on(strides, size=(128, 192), dtype=torch.float32):
    maps = [torch.zeros(1, 3, int(size[0] / s), int(size[1] / s), dtype=dtype) for s in strides]
    return CanvasAnchors(strides)(ImageList(torch.zeros(1, 3, *size), [size]), maps)[0]


# ------------------------------------------------------------------------------------------ anchors


def test_anchors_are_torchvisions_before_it_rounds_them():
    maps = [torch.zeros(2, 3, 128 // s, 192 // s) for s in STRIDES]
    images = ImageList(torch.zeros(2, 3, 128, 192), [(128, 192)] * 2)
    known = AnchorGenerator(tuple((8 * s,) for s in STRIDES), ((0.5, 1.0, 2.0),) * 4)
    for ours, theirs in zip(CanvasAnchors(STRIDES)(images, maps), known(images, maps), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.5)
    sides = ours[:, 2:] - ours[:, :2]
    areas, ratios = sides.prod(1).sqrt(), sides[:, 1] / sides[:, 0]
    assert sorted(set(areas.round(decimals=3).tolist())) == [32, 64, 128, 256]
    assert sorted(set(ratios.round(decimals=4).tolist())) == [0.5, 1, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_anchors_do_not_follow_the_maps_precision(dtype):
    anchors = anchors_on([4, 8], (1024, 1024), dtype)
    assert anchors.dtype == torch.float32
    assert torch.equal(anchors, anchors_on([4, 8], (1024, 1024)))
    rounded = anchors.bfloat16().float()  # what they were under autocast
    far = torch.where(anchors.amin(1) > 512)[0][::997]
    overlap = box_iou(anchors[far], rounded[far]).diagonal()
    assert overlap.min() < 0.85


def test_anchors_of_broken_strides_lie_on_their_cells():
    anchors = anchors_on([3.5, 7], (14, 21))
    centres = (anchors[:, :2] + anchors[:, 2:]).reshape(-1, 3, 2)[:, 0] / 2
    expected = [[3.5 * x, 3.5 * y] for y in range(4) for x in range(6)]
    expected += [[7 * x, 7 * y] for y in range(2) for x in range(3)]
    torch.testing.assert_close(centres, torch.tensor(expected), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------- cut-out regions


def test_regions_have_their_own_coordinates():
    """Of maps whose cells hold where they lie, a bin gets where it lies, on whatever level."""
    align, maps = CanvasRoIAlign(STRIDES, 7), {}
    for number, stride in enumerate(STRIDES):
        x = (torch.arange(1024 // stride) + 0.5) * stride
        level = torch.full((1024 // stride,) * 2, float(number))
        grid = torch.stack([x.expand(len(x), -1), x[:, None].expand(-1, len(x)), level])
        maps[str(number)] = torch.stack([grid, -grid])
    maps["pool"] = torch.full((2, 3, 1, 1), torch.nan)
    corners = 30 + 150 * torch.rand(2, 60, 2)
    boxes = torch.cat([corners, corners + 8 + 700 * torch.rand(2, 60, 1) ** 3], dim=2)
    found = align(maps, list(boxes))
    assert found.shape == (120, 3, 7, 7)
    found[60:] *= -1  # the other image's
    bins = (torch.arange(7) + 0.5) / 7
    for box, cut in zip(boxes.flatten(0, 1), found, strict=True):
        x, y = (box[i] + bins * (box[i + 2] - box[i]) for i in (0, 1))
        torch.testing.assert_close(cut[0], x.expand(7, 7), rtol=0, atol=1e-2)
        torch.testing.assert_close(cut[1], y[:, None].expand(7, 7), rtol=0, atol=1e-2)
    levels = found[:, 2, 0, 0].long()
    assert torch.equal(levels, align.levels(boxes.flatten(0, 1)))
    assert set(levels.tolist()) == {0, 1, 2, 3}


def test_levels_are_torchvisions():
    corners = 90 * torch.rand(500, 2)
    boxes = torch.cat([corners, corners + 500 * torch.rand(500, 2) ** 3 + 1], dim=1)
    known = MultiScaleRoIAlign([str(i) for i in range(4)], 7, 2)
    known({str(i): torch.rand(1, 1, 128 // s, 128 // s) for i, s in enumerate(STRIDES)},
          [boxes[:1]], [(128, 128)])  # fmt: skip
    assert torch.equal(CanvasRoIAlign(STRIDES, 7).levels(boxes), known.map_levels([boxes]))


def test_every_cell_of_a_box_counts():
    """A box of 14 x 14 bright cells in 7 bins: with torchvision's two samples a side, too, but of
    28 in 7 bins each second one would be passed over."""
    x = torch.zeros(1, 1, 64, 64)
    x[..., 8:36:4] = 1  # each fourth column
    box = torch.tensor([[32.0, 32, 144, 144]])  # cells 8 to 36
    found = CanvasRoIAlign([4], 7)({"0": x}, [box])
    torch.testing.assert_close(found, torch.full((1, 1, 7, 7), 0.25))


def test_half_precision_keeps_the_boxes_and_the_maps_type():
    maps = {"0": torch.rand(1, 2, 256, 256)}
    box = torch.tensor([[801.3, 777.7, 843.1, 820.9]])
    align = CanvasRoIAlign([4], 7)
    expected = align(maps, [box])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = align({"0": maps["0"].bfloat16()}, [box])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.01)


# ------------------------------------------------------------------------------------ mask targets


def ellipse(size=(60, 80), centre=(31.3, 40.9), radii=(11.2, 17.6)) -> torch.Tensor:
    y, x = (torch.arange(side) + 0.5 for side in size)
    return ((y[:, None] - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1


def test_a_box_of_whole_cells_takes_their_pixels():
    mask = torch.rand(3, 56, 56) < 0.5
    boxes = torch.tensor([[0.0, 0, 28, 28], [20, 13, 48, 41], [28, 28, 56, 56]])
    found = mask_targets(mask, boxes, torch.tensor([2, 0, 1]), 28)
    for got, box, number in zip(found, boxes.int().tolist(), (2, 0, 1), strict=True):
        assert torch.equal(got, mask[number, box[1] : box[3], box[0] : box[2]])


def test_targets_turn_with_the_mask():
    """What torchvision's are not: they lie half a pixel beside."""
    masks = ellipse()[None]
    box = torch.tensor([[20.3, 17.1, 61.2, 44.7]])
    found = mask_targets(masks, box, torch.tensor([0]), 28)
    mirrored = torch.stack([80 - box[:, 2], box[:, 1], 80 - box[:, 0], box[:, 3]], 1)
    assert torch.equal(mask_targets(masks.flip(2), mirrored, torch.tensor([0]), 28), found.flip(2))
    assert 0.5 < found.float().mean() < 0.6


def test_targets_are_the_shape_at_the_cells_centres():
    box = torch.tensor([[19.7, 16.9, 62.8, 45.5]])
    found = mask_targets(ellipse()[None], box, torch.tensor([0]), 28)[0]
    steps = (torch.arange(28) + 0.5) / 28
    y, x = 16.9 + 28.6 * steps[:, None], 19.7 + 43.1 * steps
    exact = ((y - 31.3) / 11.2) ** 2 + ((x - 40.9) / 17.6) ** 2 < 1
    assert (found != exact).float().mean() < 0.03


# ------------------------------------------------------------------------------------------- losses


def test_box_losses_are_cross_entropy_and_l1_of_the_own_class():
    scores, deltas = torch.randn(6, 4), torch.randn(6, 16)
    labels, codes = torch.tensor([0, 2, 3, 0, 1, 0]), torch.randn(6, 4)
    classifier, box = box_losses(scores, deltas, labels, codes)
    torch.testing.assert_close(classifier, F.cross_entropy(scores, labels))
    expected = sum(
        (deltas[i, 4 * label : 4 * label + 4] - codes[i]).abs().sum()
        for i, label in enumerate(labels.tolist())
        if label
    )
    torch.testing.assert_close(box, expected / 6)


def small_detector():
    torch.manual_seed(0)
    return build_detector(build_encoder("vit_tiny_patch4", 0, 64, 3), 5, [0.5] * 3, [0.25] * 3)


def test_the_proposals_losses_are_divided_by_the_anchors_that_an_image_should_have():
    detector = small_detector()
    RoISampling(detector, seed=0)  # whichever sampler draws them
    rpn = detector.rpn
    labels = [torch.full((900,), -1.0), torch.full((900,), -1.0)]
    labels[0][:5], labels[0][5:45], labels[1][7:9] = 1, 0, 0  # far fewer than 256
    objectness, deltas = torch.randn(1800, 1), torch.randn(1800, 4)
    targets = list(torch.randn(2, 900, 4))
    found, box = rpn.compute_loss(objectness, deltas, labels, targets)
    used = torch.cat(labels) >= 0
    expected = F.binary_cross_entropy_with_logits(
        objectness[used, 0], torch.cat(labels)[used], reduction="sum"
    )
    torch.testing.assert_close(found, expected / 512)
    torch.testing.assert_close(box, (deltas[:5] - targets[0][:5]).abs().sum() / 512)


def test_two_images_in_a_batch_have_the_mean_of_their_own_losses():
    """As on two processes, with however many objects, or none, in each."""
    model = small_detector()
    model.rpn.fg_bg_sampler = model.roi_heads.fg_bg_sampler = first_of_each
    boxes = torch.tensor([[4.0, 4, 30, 20], [20, 30, 44, 60], [0, 0, 50, 20], [9, 9, 20, 33]])
    masks = torch.zeros(4, 64, 64, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top : (top + bottom) // 2 + 2, left:right] = 1
    images = [torch.linspace(i, 1, 3 * 64 * 64).reshape(3, 64, 64) for i in (0, 1.5, 0.5)]
    targets = [
        {"boxes": boxes[rows], "labels": torch.tensor([1, 4, 2, 2])[rows], "masks": masks[rows]}
        for rows in (slice(0, 1), slice(1, 4), slice(0, 0))
    ]
    together = model(images, targets)
    apart = [model([image], [target]) for image, target in zip(images, targets, strict=True)]
    for name, loss in together.items():
        torch.testing.assert_close(loss, torch.stack([one[name] for one in apart]).mean(), msg=name)
    assert apart[0]["loss_mask"] != apart[1]["loss_mask"] and apart[2]["loss_mask"] == 0


def first_of_each(labels: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """A sampler without draws, which takes more of the images with objects."""
    chosen = [
        [(one == value) & ((one == value).cumsum(0) <= 9) for one in labels] for value in (1, 0)
    ]
    return chosen[0], chosen[1]


def losses_of(model: nn.Module, target: dict) -> dict[str, torch.Tensor]:
    """With the same draws of anchors and regions each time."""
    torch.manual_seed(1)
    image = torch.linspace(0, 1, 3 * 64 * 64).reshape(3, 64, 64)
    return model([image], [target])


def test_objects_without_a_mask_have_all_losses_but_the_masks():
    model = small_detector()
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 4:20, 4:30], masks[1, 30:60, 20:44] = 1, 1
    target = {
        "boxes": torch.tensor([[4.0, 4, 30, 20], [20, 30, 44, 60]]),
        "labels": torch.tensor([1, 4]), "masks": masks,
    }  # fmt: skip
    plain = losses_of(model, target)
    known = losses_of(model, target | {"has_mask": torch.tensor([True, True])})
    assert all(torch.equal(plain[name], known[name]) for name in plain)
    half = losses_of(model, target | {"has_mask": torch.tensor([True, False])})
    other = masks.clone()
    other[1] = 1 - other[1]
    again = losses_of(model, target | {"has_mask": torch.tensor([True, False]), "masks": other})
    assert half["loss_mask"] == again["loss_mask"] != plain["loss_mask"]
    none = losses_of(model, target | {"has_mask": torch.tensor([False, False])})
    assert none["loss_mask"] == 0
    for name in plain.keys() - {"loss_mask"}:
        assert plain[name] == half[name] == none[name]
    sum(none.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
