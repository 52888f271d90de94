"""docs/protocols.md says of detection what its program, its recipe and its detector do."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import main_detection
from encoders.load import build_encoder
from heads.maskrcnn import build_detector
from heads.rois import ANCHOR, RATIOS

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "vit_base_detection.args"


def rows() -> dict[str, tuple[str, str]]:
    """Published value and ours, by flag or by words, of the section's tables of three columns."""
    text = (ROOT / "docs" / "protocols.md").read_text()
    section = re.search(r"## Detection\n(.*?)(\n## |\Z)", text, re.S)[1]
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return {
        name.strip(" `"): (published.strip(), ours.strip())
        for name, published, ours, *more in cells
        if not more and published.strip() != "published"
    }


def shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, list | tuple):
        return " ".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def numbers_of_the_detector() -> dict[str, list]:
    encoder = build_encoder("vit_small_patch16", 0, 64, 3)
    model = build_detector(encoder, 80, [0.5] * 3, [0.25] * 3)
    rpn, heads = model.rpn, model.roi_heads

    def convolutions(module: nn.Module) -> int:
        return sum(isinstance(m, nn.Conv2d) for m in module.modules())

    def in_both(count) -> list[int]:
        return [count() for _ in map(model.train, (True, False))]

    samplers = [[s.batch_size_per_image, s.positive_fraction]
                for s in (rpn.fg_bg_sampler, heads.fg_bg_sampler)]  # fmt: skip
    matcher, own_matcher = rpn.proposal_matcher, heads.proposal_matcher
    assert own_matcher.high_threshold == own_matcher.low_threshold
    linear = next(m for m in heads.box_head if isinstance(m, nn.Linear))
    strides = rpn.anchor_generator.strides
    return {
        "strides of the maps": [round(stride) for stride in strides],
        "channels of maps and heads": [model.backbone.out_channels],
        "sides of the anchors": [round(ANCHOR * stride) for stride in strides],
        "height to width of the anchors": RATIOS,
        "IoU of an anchor with an object, with none": [
            matcher.high_threshold,
            matcher.low_threshold,
        ],
        "anchors sampled, share of objects": samplers[0],
        "proposals of a level before suppression, training and test": in_both(rpn.pre_nms_top_n),
        "proposals after suppression, training and test": in_both(rpn.post_nms_top_n),
        "IoU of suppressed proposals": [rpn.nms_thresh],
        "IoU of a region with an object": [own_matcher.high_threshold],
        "regions sampled, share of objects": samplers[1],
        "weights of the regions' boxes": [round(w) for w in heads.box_coder.weights],
        "cells of a region for boxes, for masks": [
            heads.box_roi_pool.size,
            heads.mask_roi_pool.size,
        ],
        "convolutions of RPN, box head, mask head": [
            convolutions(m) for m in (rpn.head.conv, heads.box_head, heads.mask_head)
        ],
        "width of the box head's last layer": [linear.out_features],
        "least score": [heads.score_thresh],
        "IoU of suppressed detections": [heads.nms_thresh],
        "detections of an image": [heads.detections_per_img],
    }


def test_the_tables_have_the_values_of_recipe_and_detector():
    args = main_detection.parse_args([f"@{RECIPE}", "--data_path", "coco"])
    found, numbers = rows(), numbers_of_the_detector()
    flags = {name for name in found if name.startswith("--")}
    assert len(flags) >= 15 and found.keys() - flags == numbers.keys()
    for name, (published, ours) in found.items():
        value = getattr(args, name[2:]) if name in flags else numbers[name]
        assert ours == shown(value), name
        assert published.split(" (")[0] == ours, name  # in these tables all agree


def test_every_flag_of_the_recipe_is_in_the_table():
    lines = RECIPE.read_text().splitlines()
    flags = {line.split()[0] for line in lines if line.startswith("--")}
    not_of_the_protocol = {"--model", "--eval_every", "--save_every_steps"}
    assert flags - not_of_the_protocol <= rows().keys()


def test_what_the_recipe_names_is_the_programs_default_too():
    plain = main_detection.parse_args(["--data_path", "coco", "--images_per_step", "64"])
    for name, (_, ours) in rows().items():
        if name.startswith("--") and name != "--input_size":
            assert shown(getattr(plain, name[2:])) == ours, name


@pytest.mark.parametrize("side", [64, 56])
def test_the_share_of_tokens_whose_window_the_border_cuts(side):
    """What the table says of windows, by counting."""
    from heads.vitdet import GridAttention

    attention = nn.Module()
    attention.num_heads, attention.qkv = 1, nn.Linear(8, 24)
    attention.proj, attention.q_norm, attention.k_norm = (nn.Identity() for _ in range(3))
    made = GridAttention(attention, (side, side), 14, relative=False)
    cut = 1 - (side - side % 14) ** 2 / side**2
    seen = []
    made._in_windows = lambda qkv: seen.append(qkv.shape[1:3]) or qkv[..., :8]
    made(torch.zeros(1, side * side, 8))
    whole = sum(h * w for h, w in seen if h % 14 == w % 14 == 0)
    assert 1 - whole / side**2 == pytest.approx(cut) and round(cut, 2) in (0.23, 0)
