"""Anchors, regions of interest and their losses as in ViTDet's published configuration.

https://github.com/facebookresearch/detectron2, projects/ViTDet. Matching, sampling, box coding and
non-maximum suppression are torchvision's, where they are the published ones; docs/protocols.md has
what differs. R regions of interest in a batch.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import roi_align

ANCHOR = 8  # an anchor's side, in strides of its level
RATIOS = (0.5, 1.0, 2.0)  # of an anchor's height to its width

Maps = dict[str, Tensor]  # [B, C, h, w] by level, the finest first
Target = dict[str, Tensor]


class CanvasAnchors(nn.Module):
    """Three anchors for each cell of each map, the same for all images.

    In fp32 whatever the maps are: bf16 has no odd pixel above 256.

    Args:
        strides: of the maps, in pixels.
    """

    def __init__(self, strides: Sequence[float]):
        super().__init__()
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Boxes [anchors, 4] for each image: by level, row, column and ratio.

        Their centre is the upper left corner of their cell, as published.
        """
        anchors = [
            _anchors(x.shape[-2:], stride, x.device)
            for x, stride in zip(feature_maps, self.strides, strict=True)
        ]
        return [torch.cat(anchors)] * len(image_list.image_sizes)


def _anchors(grid: Sequence[int], stride: float, device: torch.device) -> Tensor:
    halves = [
        (ANCHOR * stride / math.sqrt(r) / 2, ANCHOR * stride * math.sqrt(r) / 2) for r in RATIOS
    ]
    around = torch.tensor([[-w, -h, w, h] for w, h in halves], device=device)  # [3, 4]
    rows, columns = (torch.arange(n, dtype=torch.float32, device=device) * stride for n in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    corners = torch.stack([x, y, x, y], dim=2).reshape(-1, 1, 4)
    return (corners + around).reshape(-1, 4)


class CanvasRoIAlign(nn.Module):
    """Cut boxes out of the maps of their size: [R, C, size, size].

    A box of 14 to 28 cells of a map is cut from that one [Lin et al., 2017, Eq. 1]. Aligned: a
    cell's value is at its centre. A bin has as many samples as the box has cells in it.

    Args:
        strides: of the maps, in pixels.
    """

    def __init__(self, strides: Sequence[float], size: int):
        super().__init__()
        self.strides, self.size = tuple(strides), size

    def levels(self, boxes: Tensor) -> Tensor:
        """Which map each of the boxes [R, 4] is cut from."""
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        levels = torch.log2(sides / (14 * self.strides[0]) + 1e-8).floor()
        return levels.clamp(0, len(self.strides) - 1).long()

    def forward(self, maps: Maps, boxes: list[Tensor]) -> Tensor:
        """boxes: [r, 4] in pixels for each image. Maps beyond the strides are passed over."""
        image = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
        rois = torch.cat([image, torch.cat(boxes)], dim=1)
        levels, cut, order = self.levels(rois[:, 1:]), [], []
        for level, (x, stride) in enumerate(zip(maps.values(), self.strides, strict=False)):
            ids = torch.where(levels == level)[0]
            order.append(ids)
            cut.append(_aligned(x, rois[ids], self.size, 1 / stride))
        return torch.cat(cut)[torch.cat(order).argsort()]


def _aligned(x: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """[B, C, h, w] -> [R, C, size, size], of boxes whose first column is their image.

    Computed in fp32, which half precision's boxes would need, too.
    """
    full = torch.promote_types(x.dtype, torch.float32)
    cut = roi_align(x.to(full), rois.to(full), size, scale, sampling_ratio=0, aligned=True)
    return cut.to(x.dtype)


class CanvasRPN(RegionProposalNetwork):
    """torchvision's with the published loss: L1 where torchvision's is quadratic up to 1/9, both
    parts divided by the anchors that an image should have, found or not.
    """

    def __init__(self, *args, batch_size_per_image: int, **options):
        super().__init__(*args, batch_size_per_image=batch_size_per_image, **options)
        self.num_sampled = batch_size_per_image  # whichever sampler draws them later

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        positive, negative = (torch.cat(kept).bool() for kept in self.fg_bg_sampler(labels))
        count = self.num_sampled * len(labels)
        box_loss = F.l1_loss(
            pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum"
        )
        is_chosen = positive | negative
        objectness_loss = F.binary_cross_entropy_with_logits(
            objectness.flatten()[is_chosen], torch.cat(labels)[is_chosen], reduction="sum"
        )
        return objectness_loss / count, box_loss / count


class CanvasRoIHeads(RoIHeads):
    """torchvision's with the published losses: L1 for boxes, masks at the pixels' centres.

    Each is a mean over an image's regions, and then over images: as published, where a GPU has one
    image, and the same on any number of processes. A target's object may have no mask: then
    `has_mask` [n] is False, and it has no mask loss.
    """

    def forward(
        self, features: Maps, proposals: list[Tensor], image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:  # fmt: skip
        if self.training:
            return [], self._losses(features, proposals, targets)
        scores, deltas = self._predict_boxes(features, proposals)
        found = self.postprocess_detections(scores, deltas, proposals, image_shapes)
        boxes, scores, labels = found
        logits = self._predict_masks(features, boxes)
        ids = torch.arange(len(logits), device=logits.device)
        masks = logits[ids, torch.cat(labels)][:, None].sigmoid()
        masks = masks.split([len(b) for b in boxes])
        return [
            dict(boxes=b, labels=label, scores=s, masks=m)
            for b, label, s, m in zip(boxes, labels, scores, masks, strict=True)
        ], {}

    def _predict_boxes(self, features: Maps, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.box_predictor(self.box_head(self.box_roi_pool(features, boxes)))

    def _predict_masks(self, features: Maps, boxes: list[Tensor]) -> Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes)))

    def _losses(
        self, features: Maps, proposals: list[Tensor], targets: list[Target]
    ) -> dict[str, Tensor]:
        boxes, matched, labels, codes = self.select_training_samples(proposals, targets)
        scores, deltas = self._predict_boxes(features, boxes)
        counts = [len(b) for b in boxes]
        of_images = zip(scores.split(counts), deltas.split(counts), labels, codes, strict=True)
        classifier, box_reg = (
            torch.stack(losses).mean()
            for losses in zip(*(box_losses(*image) for image in of_images), strict=True)
        )
        kept = [
            _with_masks(label, match, target)
            for label, match, target in zip(labels, matched, targets, strict=True)
        ]
        boxes, matched, labels = (
            [values[ids] for values, ids in zip(all_values, kept, strict=True)]
            for all_values in (boxes, matched, labels)
        )
        logits = self._predict_masks(features, boxes)
        ids = torch.arange(len(logits), device=logits.device)
        own = logits[ids, torch.cat(labels)].split([len(b) for b in boxes])
        mask = torch.stack([
            mask_loss(one, mask_targets(target["masks"], b, match, logits.shape[-1]))
            for one, target, b, match in zip(own, targets, boxes, matched, strict=True)
        ]).mean()  # fmt: skip
        return dict(loss_classifier=classifier, loss_box_reg=box_reg, loss_mask=mask)


def mask_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross-entropy of an image's regions [R, size, size], 0 where there are none."""
    loss = F.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype), reduction="sum")
    return loss / max(logits.numel(), 1)


def _with_masks(labels: Tensor, matched: Tensor, target: Target) -> Tensor:
    """Ids of an image's regions that lie on an object with a mask."""
    ids = torch.where(labels > 0)[0]
    return ids[target["has_mask"][matched[ids]]] if "has_mask" in target else ids


def box_losses(
    scores: Tensor, deltas: Tensor, labels: Tensor, codes: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and L1 of the deltas to an object's own class, per region of an image.

    Args:
        scores: [R, K + 1], 0 for the background. deltas: [R, 4·(K + 1)]. labels: [R].
        codes: [R, 4], the box that should come out, coded as `deltas` are.
    """
    ids = torch.where(labels > 0)[0]
    own = deltas.unflatten(1, (-1, 4))[ids, labels[ids]]
    box_loss = F.l1_loss(own, codes[ids], reduction="sum") / max(len(labels), 1)
    class_loss = F.cross_entropy(scores, labels, reduction="sum") / max(len(labels), 1)
    return class_loss, box_loss


def mask_targets(masks: Tensor, boxes: Tensor, matched: Tensor, size: int) -> Tensor:
    """Masks as a box sees them: [R, size, size], True where at least half of a bin is inside.

    Args:
        masks: [n, h, w], 0 or 1. boxes: [R, 4]. matched: the mask of each box.
    """
    rois = torch.cat([matched[:, None].to(boxes.dtype), boxes], dim=1)
    return _aligned(masks[:, None].to(boxes.dtype), rois, size, 1.0)[:, 0] >= 0.5


def initialise_heads(heads: RoIHeads) -> None:
    """Draw the weights of what follows the convolutions anew, as published; biases are zero."""
    for layer in heads.box_head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
    nn.init.zeros_(heads.mask_predictor.conv5_mask.bias)
    for layer, std in (
        (heads.box_predictor.cls_score, 0.01), (heads.box_predictor.bbox_pred, 0.001),
        (heads.mask_predictor.mask_fcn_logits, 0.001),
    ):  # fmt: skip
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
