"""Mask R-CNN with the heads of ViTDet [Li et al., 2022], https://arxiv.org/abs/2203.16527.

All numbers are those of ViTDet's published configuration for COCO; docs/protocols.md lists them
and what differs. H and W are the fixed canvas's sides in pixels; images of any smaller size lie
in its upper left corner.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

from heads.rois import CanvasAnchors, CanvasRoIAlign, CanvasRoIHeads, CanvasRPN, initialise_heads
from heads.vitdet import NORM, WINDOW, SwinPyramid, ViTMaps, ViTPyramid, global_blocks
from util.checks import image_size
from util.data.transforms import Normalize
from util.errors import UsageError

# Channels of pyramid and heads, of the box head's last layer, RoIs that an image is trained on, and
# proposals that a tested one has, of as many from each map.
PUBLISHED = dict(width=256, fc_width=1024, num_rois=512, test_proposals=1000)
# Our choice: for the encoders that are meant for small images, on a CPU too.
NARROW = dict(width=64, fc_width=256, num_rois=64, test_proposals=200)


class Canvas(nn.Module):
    """Images [C, h, w] of any sizes -> one batch [B, C, H, W], normalised, zeros beside them.

    It takes the place of torchvision's transform, so predictions are in the canvas's pixels.
    """

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.size, self.normalize = tuple(size), Normalize(mean, std)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        height, width = self.size
        sizes = [tuple(image.shape[1:]) for image in images]
        batch = torch.stack([
            F.pad(self.normalize(image), (0, width - w, 0, height - h))
            for image, (h, w) in zip(images, sizes, strict=True)
        ])  # fmt: skip
        return ImageList(batch, sizes), targets

    def postprocess(self, detections: list[dict[str, Tensor]], *_) -> list[dict[str, Tensor]]:
        return detections


class FullPrecision:
    """Before a module of torchvision's: what it gives is fp32, whatever autocast computes in.

    Boxes are decoded in the precision of what predicts them, and bf16 has no odd pixel above 256.
    """

    def forward(self, *inputs):
        return _in_full(super().forward(*inputs))


def _in_full(outputs):
    if isinstance(outputs, Tensor):
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return type(outputs)(map(_in_full, outputs))


class FullRPNHead(FullPrecision, RPNHead):
    """torchvision's, in full precision."""


class FullBoxPredictor(FullPrecision, FastRCNNPredictor):
    """torchvision's, in full precision."""


class FullMaskPredictor(FullPrecision, MaskRCNNPredictor):
    """torchvision's, in full precision."""


class Detector(GeneralizedRCNN):
    """Mask R-CNN with ViTDet's heads: images (and targets, in training) -> losses or detections.

    Images are [C, h, w], uint8 or in 0..1, at most as large as the canvas. A target has `boxes`
    [n, 4] (x0, y0, x1, y1 in pixels), `labels` [n] from 1 on, `masks` [n, h, w] and may have
    `has_mask` [n]; a detection has boxes, labels, `scores`, and masks [n, 1, 28, 28] as
    probabilities inside the box.

    Args:
        backbone: gives maps by name, and has `out_channels` and their `strides`.
        num_classes: without the background.
        canvas: (height, width) in pixels.
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int, canvas: tuple[int, int],
        mean: Sequence[float], std: Sequence[float], fc_width: int, num_rois: int,
        test_proposals: int,
    ):  # fmt: skip
        strides = backbone.strides
        rpn = CanvasRPN(
            CanvasAnchors([*strides, 2 * strides[-1]]),
            FullRPNHead(backbone.out_channels, 3, conv_depth=2),
            fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size_per_image=256, positive_fraction=0.5,
            pre_nms_top_n=dict(training=2000, testing=test_proposals),
            post_nms_top_n=dict(training=1000, testing=test_proposals), nms_thresh=0.7,
        )  # fmt: skip
        heads = _roi_heads(backbone, num_classes, fc_width, num_rois)
        initialise_heads(heads)
        super().__init__(backbone, rpn, heads, Canvas(canvas, mean, std))

    def with_weight_decay(self) -> set[str]:
        """All but positions and the encoder's norms, as published: biases and the norms of maps
        (the pyramid's, the heads') decay.
        """
        spared = {
            f"{name}.{own}"
            for name, module in self.named_modules()
            if isinstance(module, nn.LayerNorm) and not isinstance(module, LayerNorm2d)
            for own, _ in module.named_parameters()
        }
        positions = ("pos_embed", "relative_position_bias_table")
        names = {name for name, _ in self.named_parameters()} - spared
        return {name for name in names if not name.endswith(positions)}


def _roi_heads(
    backbone: nn.Module, num_classes: int, fc_width: int, num_rois: int
) -> CanvasRoIHeads:
    width, strides = backbone.out_channels, backbone.strides
    convolutions = [width] * 4
    return CanvasRoIHeads(
        CanvasRoIAlign(strides, 7),
        FastRCNNConvFCHead((width, 7, 7), convolutions, [fc_width], norm_layer=NORM),
        FullBoxPredictor(fc_width, num_classes + 1),
        fg_iou_thresh=0.5, bg_iou_thresh=0.5, batch_size_per_image=num_rois,
        positive_fraction=0.25, bbox_reg_weights=(10.0, 10.0, 5.0, 5.0), score_thresh=0.05,
        nms_thresh=0.5, detections_per_img=100,
        mask_roi_pool=CanvasRoIAlign(strides, 14),
        mask_head=MaskRCNNHeads(width, convolutions, 1, norm_layer=NORM),
        mask_predictor=FullMaskPredictor(width, width, num_classes + 1),
    )  # fmt: skip


def build_detector(
    encoder: nn.Module, num_classes: int, mean: Sequence[float], std: Sequence[float],
    window: int | None = WINDOW, relative: bool = True,
) -> Detector:  # fmt: skip
    """A detector on an encoder of `encoders.load.build_encoder`, of which it takes the weights.

    Args:
        encoder: built for the canvas's size; a ViT's window attention is for its last blocks of
            each quarter global. window: tokens. relative: with relative positions, at zero.

    Raises:
        UsageError: an encoder of another family, a canvas that its strides do not divide.
    """
    if isinstance(encoder, SwinTransformer):
        sizes = dict(PUBLISHED if encoder.embed_dim >= 96 else NARROW)
        backbone = SwinPyramid(encoder, sizes.pop("width"))
    elif type(encoder) is VisionTransformer:
        sizes = dict(PUBLISHED if encoder.embed_dim >= 192 else NARROW)
        maps = ViTMaps(encoder, window, global_blocks(len(encoder.blocks)), relative)
        backbone = ViTPyramid(maps, encoder.patch_embed.patch_size[0], sizes.pop("width"))
    else:
        raise UsageError(f"--model: {type(encoder).__name__} has no detector: use a ViT or a Swin")
    canvas = image_size(
        encoder.patch_embed.img_size, round(backbone.strides[-1]), "a cell of the coarsest map"
    )
    return Detector(backbone, num_classes, canvas, mean, std, **sizes)
