"""Mask R-CNN with the heads of ViTDet [Li et al., 2022], https://arxiv.org/abs/2203.16527.

Anchors, matching, sampling, losses and post-processing are torchvision's own; the depths, widths
and norms of the heads are the paper's. H and W are the fixed canvas's sides in pixels; images of
any smaller size lie in its upper left corner.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from heads.vitdet import NORM, WINDOW, SwinPyramid, ViTMaps, ViTPyramid, global_blocks
from util.checks import image_size
from util.data.transforms import Normalize
from util.errors import UsageError

# Channels of pyramid and heads, of the box head's last layer, and RoIs that an image is trained on.
PUBLISHED = dict(width=256, fc_width=1024, num_rois=512)
# Our choice: for the encoders that are meant for small images, on a CPU too.
NARROW = dict(width=64, fc_width=256, num_rois=64)

ANCHOR = 8  # an anchor's side, in strides of its level


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


class CanvasAnchors(AnchorGenerator):
    """torchvision's with the strides given, which it takes from sizes and rounds to whole pixels.

    Args:
        strides: of the maps, in pixels.
    """

    def __init__(self, strides: Sequence[float]):
        sizes = tuple((ANCHOR * stride,) for stride in strides)
        super().__init__(sizes, ((0.5, 1.0, 2.0),) * len(strides))
        self.strides = strides

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        like = feature_maps[0]
        self.set_cell_anchors(like.dtype, like.device)
        sides = [[like.new_tensor(stride)] * 2 for stride in self.strides]
        anchors = self.grid_anchors([x.shape[-2:] for x in feature_maps], sides)
        return [torch.cat(anchors)] * len(image_list.image_sizes)


class CanvasRoIAlign(MultiScaleRoIAlign):
    """torchvision's with the strides given, which it takes from sizes and rounds to powers of two.

    A box of 14 to 28 cells of a map is cut from that map, as published.
    """

    def __init__(self, strides: Sequence[float], output_size: int):
        super().__init__([str(level) for level in range(len(strides))], output_size, 2)
        self.scales = [1 / stride for stride in strides]
        self.map_levels = initLevelMapper(0, len(strides) - 1, 14 * strides[0], 0)


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
    pass


class FullBoxPredictor(FullPrecision, FastRCNNPredictor):
    pass


class FullMaskPredictor(FullPrecision, MaskRCNNPredictor):
    pass


class Detector(detection.MaskRCNN):
    """Mask R-CNN with ViTDet's heads: images (and targets, in training) -> losses or detections.

    Images are [C, h, w], uint8 or in 0..1, at most as large as the canvas. A target has `boxes`
    [n, 4] (x0, y0, x1, y1 in pixels), `labels` [n] from 1 on and `masks` [n, h, w]; a detection
    the same with `scores`, its masks [n, 1, 28, 28] as probabilities inside the box.

    Args:
        backbone: gives maps by name, and has `out_channels` and their `strides`.
        num_classes: without the background.
        canvas: (height, width) in pixels.
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int, canvas: tuple[int, int],
        mean: Sequence[float], std: Sequence[float], fc_width: int, num_rois: int,
    ):  # fmt: skip
        width, strides = backbone.out_channels, backbone.strides
        convolutions = [width] * 4
        super().__init__(
            backbone,
            rpn_anchor_generator=CanvasAnchors([*strides, 2 * strides[-1]]),
            rpn_head=FullRPNHead(width, 3, conv_depth=2),
            rpn_post_nms_top_n_train=1000,
            box_roi_pool=CanvasRoIAlign(strides, 7),
            box_head=FastRCNNConvFCHead((width, 7, 7), convolutions, [fc_width], norm_layer=NORM),
            box_predictor=FullBoxPredictor(fc_width, num_classes + 1),
            box_batch_size_per_image=num_rois,
            mask_roi_pool=CanvasRoIAlign(strides, 14),
            mask_head=MaskRCNNHeads(width, convolutions, 1, norm_layer=NORM),
            mask_predictor=FullMaskPredictor(width, width, num_classes + 1),
        )
        self.transform = Canvas(canvas, mean, std)

    def no_weight_decay(self) -> set[str]:
        """Positions: a ViT's absolute ones, a Swin's relative ones."""
        names = ("pos_embed", "relative_position_bias_table")
        return {name for name, _ in self.named_parameters() if name.endswith(names)}


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
        sizes = PUBLISHED if encoder.embed_dim >= 96 else NARROW
        backbone = SwinPyramid(encoder, sizes["width"])
    elif type(encoder) is VisionTransformer:
        sizes = PUBLISHED if encoder.embed_dim >= 192 else NARROW
        maps = ViTMaps(encoder, window, global_blocks(len(encoder.blocks)), relative)
        backbone = ViTPyramid(maps, encoder.patch_embed.patch_size[0], sizes["width"])
    else:
        raise UsageError(f"--model: {type(encoder).__name__} has no detector: use a ViT or a Swin")
    canvas = image_size(
        encoder.patch_embed.img_size, round(backbone.strides[-1]), "a cell of the coarsest map"
    )
    return Detector(backbone, num_classes, canvas, mean, std, sizes["fc_width"], sizes["num_rois"])
