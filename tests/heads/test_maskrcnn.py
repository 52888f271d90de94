"""Mask R-CNN on the canvas: shapes, strides, precision, an encoder's weights, what it refuses."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign, roi_align

from encoders.load import build_encoder, layer_lookup
from heads.maskrcnn import Canvas, CanvasAnchors, CanvasRoIAlign, build_detector
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


def test_what_is_torchvisions_own_and_what_is_the_papers():
    model = build("vit_small_patch16", 64)
    assert type(model.rpn) is RegionProposalNetwork and type(model.roi_heads) is RoIHeads
    sizes = [size for (size,) in model.rpn.anchor_generator.sizes]
    assert sizes == [32, 64, 128, 256, 512] and model.backbone.strides == [4, 8, 16, 32]
    convolutions = [m for m in model.rpn.head.conv.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 2
    for head, count in ((model.roi_heads.box_head, 4), (model.roi_heads.mask_head, 4)):
        kinds = [type(m).__name__ for m in head.modules()]
        assert kinds.count("Conv2d") == kinds.count("LayerNorm2d") == count
    assert model.roi_heads.box_predictor.cls_score.weight.shape == (6, 1024)
    assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 512


def test_images_lie_in_the_corner_of_the_canvas_beside_zeros():
    images = [torch.full((3, 4, 6), 255, dtype=torch.uint8), torch.rand(3, 8, 2)]
    batch, targets = Canvas((8, 12), MEAN, STD)(images, None)
    assert batch.tensors.shape == (2, 3, 8, 12) and targets is None
    assert batch.image_sizes == [(4, 6), (8, 2)]
    assert (batch.tensors[0, :, :4, :6] == 2).all() and batch.tensors[0].sum() == 2 * 3 * 24
    torch.testing.assert_close(batch.tensors[1, :, :, :2], (images[1] - 0.5) / 0.25)


def test_rois_are_cut_by_the_canvas_also_from_a_batch_of_small_images():
    """torchvision would take the stride from the images' size, which is any part of the canvas."""
    align = CanvasRoIAlign([4, 8], 7)
    maps = {"0": torch.rand(1, 4, 16, 16), "1": torch.rand(1, 4, 8, 8)}
    boxes = torch.tensor([[3.0, 5, 9, 8]])
    expected = roi_align(maps["0"], [boxes], 7, spatial_scale=1 / 4, sampling_ratio=2)
    torch.testing.assert_close(align(maps, [boxes], [(10, 11)]), expected)


def test_anchors_and_levels_are_torchvisions_where_strides_are_powers_of_two():
    strides = [4, 8, 16, 32]
    maps = {str(i): torch.rand(2, 3, 128 // s, 192 // s) for i, s in enumerate(strides)}
    images = ImageList(torch.zeros(2, 3, 128, 192), [(128, 192)] * 2)
    known = AnchorGenerator(tuple((8 * s,) for s in strides), ((0.5, 1.0, 2.0),) * 4)
    for ours, theirs in zip(
        CanvasAnchors(strides)(images, list(maps.values())),
        known(images, list(maps.values())),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    corners = 90 * torch.rand(2, 200, 2)
    boxes = torch.cat([corners, corners + 500 * torch.rand(2, 200, 2) ** 3 + 1], dim=2).unbind()
    known = MultiScaleRoIAlign(list(maps), 7, 2)
    expected = known(maps, boxes, [(128, 192)] * 2)
    assert torch.equal(CanvasRoIAlign(strides, 7)(maps, boxes, []), expected)
    assert known.map_levels(boxes).unique().tolist() == [0, 1, 2, 3]


def test_anchors_of_broken_strides_lie_on_their_cells():
    maps = [torch.zeros(1, 3, 4, 6), torch.zeros(1, 3, 2, 3)]
    (anchors,) = CanvasAnchors([3.5, 7])(ImageList(torch.zeros(1, 3, 14, 21), [(14, 21)]), maps)
    centres = (anchors[:, :2] + anchors[:, 2:]).reshape(-1, 3, 2)[:, 0] / 2
    assert centres[:24:6].tolist() == [[0, 3.5 * row] for row in range(4)]
    assert centres[24:27].tolist() == [[0, 0], [7, 0], [14, 0]]


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
    decays = {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}
    assert scales["backbone.encoder.pos_embed"] == pytest.approx(0.7**7)
    assert scales["backbone.encoder.blocks.0.attn.rel_pos_h"] == pytest.approx(0.7**6)
    assert scales["backbone.encoder.blocks.5.mlp.fc1.weight"] == pytest.approx(0.7)
    assert {s for n, s in scales.items() if not n.startswith("backbone.encoder")} == {1.0}
    assert decays["backbone.encoder.pos_embed"] == 0 == decays["rpn.head.cls_logits.bias"]
    assert decays["rpn.head.cls_logits.weight"] == 0.1


def test_encoders_and_canvases_that_have_no_detector():
    with pytest.raises(UsageError, match="--model"):
        build_detector(nn.Identity(), 5, MEAN, STD)
    vit = VisionTransformer(img_size=40, patch_size=4, embed_dim=32, num_heads=2, depth=4)
    with pytest.raises(UsageError, match=r"--input_size 40 40.*multiples of 16"):
        build_detector(vit, 5, MEAN, STD)
