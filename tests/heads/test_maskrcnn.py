"""Mask R-CNN on the canvas: shapes, strides, precision, an encoder's weights, what it refuses."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from encoders.load import build_encoder, layer_lookup
from heads.maskrcnn import Canvas, build_detector
from util.errors import UsageError
from util.training.optim import layer_decay_groups

MEAN, STD = [0.5] * 3, [0.25] * 3


def build(name="vit_tiny_patch4", size=64, **options):
    torch.manual_seed(0)
    encoder = build_encoder(name, 0, size, 3)
    return build_detector(encoder, 5, MEAN, STD, **options)


def example(sizes=((64, 48), (20, 33)), counts=(2, 0)):
    """Random images with boxes full of object."""
    images, targets = [], []
    for (height, width), count in zip(sizes, counts, strict=True):
        images.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))
        boxes = torch.tensor([[2.0, 3, 14, 12], [10, 5, 30, 18]])[:count]
        masks = torch.zeros(count, height, width, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        targets.append(dict(boxes=boxes, labels=torch.arange(1, count + 1), masks=masks))
    return images, targets


@pytest.mark.parametrize("name", ["vit_tiny_patch4", "swin_mini_patch2"])
def test_every_parameter_learns_also_from_a_batch_without_objects(name):
    model = build(name)
    for counts in ((2, 0), (0, 0)):
        model.zero_grad()
        losses = model(*example(counts=counts))
        assert set(losses) == {
            "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg",
        }  # fmt: skip
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_numbers_are_the_published_configurations():
    """Of projects/ViTDet, configs/common/models/mask_rcnn_vitdet.py and mask_rcnn_fpn.py."""
    model = build("vit_small_patch16", 64)
    rpn, heads = model.rpn, model.roi_heads
    assert model.backbone.strides == [4, 8, 16, 32]
    assert rpn.anchor_generator.strides == (4, 8, 16, 32, 64)
    convolutions = [m for m in rpn.head.conv.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 2
    for head, count in ((heads.box_head, 4), (heads.mask_head, 4)):
        kinds = [type(m).__name__ for m in head.modules()]
        assert kinds.count("Conv2d") == kinds.count("LayerNorm2d") == count
    assert heads.box_predictor.cls_score.weight.shape == (6, 1024)
    assert heads.box_predictor.bbox_pred.weight.shape == (24, 1024)  # a box for each class
    matchers = rpn.proposal_matcher, heads.proposal_matcher
    assert [(m.high_threshold, m.low_threshold) for m in matchers] == [(0.7, 0.3), (0.5, 0.5)]
    assert [m.allow_low_quality_matches for m in matchers] == [True, False]
    samplers = rpn.fg_bg_sampler, heads.fg_bg_sampler
    assert [s.batch_size_per_image for s in samplers] == [256, 512]
    assert [s.positive_fraction for s in samplers] == [0.5, 0.25]
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (2000, 1000)
    model.eval()
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (1000, 1000)
    assert rpn.box_coder.weights == (1, 1, 1, 1) and heads.box_coder.weights == (10, 10, 5, 5)
    assert (rpn.nms_thresh, heads.nms_thresh, heads.score_thresh) == (0.7, 0.5, 0.05)
    assert heads.detections_per_img == 100
    assert heads.box_roi_pool.size == 7 and heads.mask_roi_pool.size == 14


def test_weights_are_drawn_as_published():
    heads = build("vit_small_patch16", 64).roi_heads
    for layer, std in (
        (heads.box_predictor.cls_score, 0.01), (heads.box_predictor.bbox_pred, 0.001),
        (heads.mask_predictor.mask_fcn_logits, 0.001),
        (heads.mask_predictor.conv5_mask, (2 / (256 * 4)) ** 0.5),  # He, by what goes out
        (heads.box_head[0][0], (2 / (256 * 9)) ** 0.5), (heads.mask_head[0][0], (2 / 2304) ** 0.5),
    ):  # fmt: skip
        assert layer.weight.std().item() == pytest.approx(std, rel=0.03)
        assert layer.bias is None or not layer.bias.any()
    linear = next(m for m in heads.box_head if isinstance(m, nn.Linear))
    bound = (3 / linear.in_features) ** 0.5
    assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.001)
    assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert not linear.bias.any()


def test_images_lie_in_the_corner_of_the_canvas_beside_zeros():
    images = [torch.full((3, 4, 6), 255, dtype=torch.uint8), torch.rand(3, 8, 2)]
    batch, targets = Canvas((8, 12), MEAN, STD)(images, None)
    assert batch.tensors.shape == (2, 3, 8, 12) and targets is None
    assert batch.image_sizes == [(4, 6), (8, 2)]
    assert (batch.tensors[0, :, :4, :6] == 2).all() and batch.tensors[0].sum() == 2 * 3 * 24
    torch.testing.assert_close(batch.tensors[1, :, :, :2], (images[1] - 0.5) / 0.25)


def test_a_small_image_is_found_as_it_is_alone_whatever_else_is_in_the_batch():
    model = build().eval()
    images, _ = example()
    with torch.no_grad():
        together, alone = model(images)[1], model(images[1:])[0]
    for name in alone:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-4, atol=1e-4)
    assert (alone["boxes"] <= torch.tensor([33.0, 20, 33, 20])).all()


def test_boxes_and_losses_are_full_precision_under_autocast():
    model, seen = build(), []
    decode = model.rpn.box_coder.decode
    model.rpn.box_coder.decode = lambda deltas, boxes: (
        seen.append(deltas.dtype) or decode(deltas, boxes)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(*example())
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        detections = model.eval()(example()[0])
    assert seen == [torch.float32] * 2
    assert all(found["boxes"].dtype == torch.float32 for found in detections)
    with torch.no_grad():
        full = build()(*example())
    for name, loss in losses.items():
        assert float(loss.detach()) == pytest.approx(float(full[name]), rel=0.05, abs=0.02)


def test_an_encoders_weights_are_the_detectors():
    torch.manual_seed(3)
    encoder = build_encoder("vit_tiny_patch4", 0, 64, 3)
    weights = {k: v.clone() for k, v in encoder.state_dict().items()}
    own = build_detector(encoder, 5, MEAN, STD).backbone.encoder.state_dict()
    shared = weights.keys() & own.keys()
    assert weights.keys() - shared <= {"cls_token", "fc_norm.weight", "fc_norm.bias"}
    assert all(torch.equal(own[k], weights[k]) for k in shared - {"pos_embed"})
    assert torch.equal(own["pos_embed"], weights["pos_embed"][:, 1:])
    assert all("rel_pos" in k and not own[k].any() for k in own.keys() - shared)


def test_the_layers_rates_are_those_of_vitdet():
    model = build()
    layer_of = layer_lookup(model.backbone.encoder, "backbone.encoder.")
    groups = layer_decay_groups(model, 0.1, layer_of, 0.7)
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    assert scales["backbone.encoder.pos_embed"] == pytest.approx(0.7**7)
    assert scales["backbone.encoder.blocks.0.attn.rel_pos_h"] == pytest.approx(0.7**6)
    assert scales["backbone.encoder.blocks.5.mlp.fc1.weight"] == pytest.approx(0.7)
    assert {s for n, s in scales.items() if not n.startswith("backbone.encoder")} == {1.0}


@pytest.mark.parametrize("name", ["vit_tiny_patch4", "swin_mini_patch2"])
def test_all_decays_but_positions_and_the_encoders_norms(name):
    """As published: biases decay, and so do the norms of maps, which are no nn.LayerNorm there."""
    model = build(name)
    groups = layer_decay_groups(model, 0.1, lambda _: 0, 1.0)
    names = {id(p): own for own, p in model.named_parameters()}
    spared = {names[id(p)] for g in groups for p in g["params"] if g["weight_decay"] == 0}
    kinds = dict(model.named_modules())
    for own, _ in model.named_parameters():
        module = kinds[own.rpartition(".")[0]]
        is_norm_of_tokens = isinstance(module, nn.LayerNorm) and "LayerNorm2d" not in repr(module)
        is_position = own.endswith(("pos_embed", "relative_position_bias_table"))
        assert (own in spared) == (is_norm_of_tokens or is_position), own
    assert (
        "rpn.head.cls_logits.bias" not in spared and "roi_heads.box_head.0.1.weight" not in spared
    )
    assert {n.rpartition(".")[2] for n in spared} >= {"weight", "bias"}


def test_encoders_and_canvases_that_have_no_detector():
    with pytest.raises(UsageError, match="--model"):
        build_detector(nn.Identity(), 5, MEAN, STD)
    vit = VisionTransformer(img_size=40, patch_size=4, embed_dim=32, num_heads=2, depth=4)
    with pytest.raises(UsageError, match=r"--input_size 40 40.*multiples of 16"):
        build_detector(vit, 5, MEAN, STD)
