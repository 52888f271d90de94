"""A step of Mask R-CNN: main_detection's and torchvision's MaskRCNN, with ViTDet's heads.

torchvision's has the same ViT and simple feature pyramid for a backbone: our modules, and once
more with timm's own ViT with windows and relative positions. Anchors, heads and counts are ours.
"""

import argparse
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from benchmarks.peers.finetune import millions
from benchmarks.peers.pairs import Entry, Pair, importing

FULL = dict(model="vit_small_patch16", input_size=320, images=1, classes=80, objects=7)
TINY = dict(model="vit_nano_patch2", input_size=32, images=1, classes=3, objects=2)


def pairs(args: argparse.Namespace) -> list[Pair]:
    sizes = TINY if args.tiny else FULL
    work = SimpleNamespace(threads=args.threads, grad_checkpointing=False, **sizes)
    title = f"Mask R-CNN on {work.model}, {work.input_size} px, {work.images} image, fp32"
    return [Pair(title, "step", [
        Entry("ours", ours, (work,)),
        Entry("torchvision, our ViT", torchvision_step, (work, "ours"), 1.0,
              "RoIAlign and mask targets are torchvision's own, not at pixel centres"),
        Entry("torchvision, timm's ViT", torchvision_step, (work, "timm"), 1.1,
              "windows over the border are filled up with zeros"),
    ])]  # fmt: skip


def ours(work: SimpleNamespace):
    """main_detection's model, optimiser and step."""
    with importing() as libraries:
        import main_detection
        from benchmarks.detection_step import random_batch
        from benchmarks.step_facts import as_main_trains
        from engine_detection import train_step
        from heads.maskrcnn import build_detector  # noqa: F401

    main_detection.require_evaluator = lambda: None  # a step evaluates nothing
    own = as_main_trains(main_detection, work, "none")
    batch = random_batch(work)

    def train(num_steps: int) -> None:
        for step in range(num_steps):
            own.drop_paths.draw(step, 0, work.images, own.device)
            train_step(own.model, [batch], 1, own.optimizer, own.precision)

    return train, libraries | millions(own.model)


class TimmMaps(nn.Module):
    """timm's ViT with windows, and what `ViTPyramid` asks for: images -> [B, D, h, w]."""

    def __init__(self, work: SimpleNamespace, size: dict, window: int):
        from timm.models.vision_transformer_sam import VisionTransformerSAM

        from heads.vitdet import global_blocks

        super().__init__()
        self.embed_dim = size["embed_dim"]
        self.vit = VisionTransformerSAM(
            img_size=work.input_size, num_classes=0, use_rel_pos=True, window_size=window,
            global_attn_indexes=global_blocks(size["depth"]), drop_path_rate=0.1, **size,
        )  # fmt: skip
        self.vit.neck = nn.Identity()

    def forward(self, imgs: Tensor) -> Tensor:
        return self.vit.forward_features(imgs)


def torchvision_step(work: SimpleNamespace, vit: str):
    """torchvision's model with the same parts, and the step of its reference script."""
    with importing() as libraries:
        import main_detection
        from benchmarks.detection_step import random_batch
        from benchmarks.step_facts import as_main_trains
        from encoders.vit import SIZES
        from heads.vitdet import WINDOW, ViTPyramid

    main_detection.require_evaluator = lambda: None
    own = as_main_trains(main_detection, work, "none")
    detector = own.model
    if vit == "timm":
        size = SIZES[work.model]
        maps = TimmMaps(work, size, WINDOW)
        width = detector.backbone.out_channels
        detector.backbone = ViTPyramid(maps, size["patch_size"], width)
    model = with_torchvision(detector, work).train()
    own.model = own.optimizer = detector = None  # their memory is not torchvision's
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.1)
    images, targets = random_batch(work)
    images = [image.float() / 255 for image in images]

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            own.drop_paths.draw(0, 0, len(images), own.device)
            losses = sum(model(images, targets).values())
            losses.item()  # its script looks whether it is finite
            optimizer.zero_grad()
            losses.backward()
            optimizer.step()

    return train, libraries | millions(model)


def with_torchvision(detector: nn.Module, work: SimpleNamespace) -> nn.Module:
    """torchvision's MaskRCNN on a detector's backbone, with heads of the same sizes."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.rpn import RPNHead

    from heads.vitdet import NORM

    backbone, heads, classes = detector.backbone, detector.roi_heads, work.classes + 1
    width, fc_width = backbone.out_channels, heads.box_predictor.cls_score.in_features
    strides = [*backbone.strides, 2 * backbone.strides[-1]]
    anchors = AnchorGenerator(
        tuple((int(8 * stride),) for stride in strides), ((0.5, 1.0, 2.0),) * len(strides)
    )
    side, convolutions = work.input_size, [width] * 4
    return MaskRCNN(
        backbone, min_size=side, max_size=side, size_divisible=side, _skip_resize=True,
        rpn_anchor_generator=anchors, rpn_head=RPNHead(width, 3, conv_depth=2),
        rpn_post_nms_top_n_train=1000,
        box_head=FastRCNNConvFCHead((width, 7, 7), convolutions, [fc_width], norm_layer=NORM),
        box_predictor=FastRCNNPredictor(fc_width, classes),
        box_batch_size_per_image=heads.fg_bg_sampler.batch_size_per_image,
        mask_head=MaskRCNNHeads(width, convolutions, 1, norm_layer=NORM),
        mask_predictor=MaskRCNNPredictor(width, width, classes),
    )  # fmt: skip
