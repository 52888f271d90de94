"""The numbers of docs/protocols.md that no flag has, read off what the programs build."""

import inspect

import torch
from torch import nn

import models_simmim
from encoders import swin
from encoders.load import build_encoder, layer_lookup
from encoders.vit import SIZES, LinearProbe
from heads.maskrcnn import build_detector
from heads.rois import ANCHOR, RATIOS
from heads.vitdet import GridAttention
from models_mae import MAEViT
from util.data.imagenet import CORRUPTED, NUM_CLASSES, TEST_SETS, synsets
from util.data.robustness_sets import PUBLISHED_SIZE
from util.evaluation.frozen import attentive, logistic, probes
from util.evaluation.robustness.errors import ALEXNET, CORRUPTIONS, SEVERITIES
from util.training import optim

Numbers = dict[str, list]


def of_pretraining() -> Numbers:
    mae = MAEViT(img_size=224, embed_dim=64, depth=1, num_heads=1)
    heads = [blocks[0].attn.num_heads for blocks in (mae.decoder_blocks,)]
    base, small = (SIZES[f"vit_{size}_patch16"] for size in ("base", "small"))
    simmim = models_simmim.MODELS["simmim_swin_tiny"](img_size=192)
    size = swin.SIZES["swin_base"]
    return {
        "ViT-B: width, blocks, heads": [base[k] for k in ("embed_dim", "depth", "num_heads")],
        "ViT-S: width, blocks, heads": [small[k] for k in ("embed_dim", "depth", "num_heads")],
        "MAE's decoder: width, blocks, heads": [
            mae.decoder_embed.out_features,
            len(mae.decoder_blocks),
            *heads,
        ],
        "ε of a ViT's layer norms": [mae.norm.eps],
        "MAE: visible of all patches": [mae.masks.num_visible, mae.masks.num_patches],
        "SimMIM: pixels of a mask unit": [simmim.mask_unit],
        "SimMIM: visible of all units": [simmim.masks.num_visible, simmim.masks.num_patches],
        "Swin-B: first width, blocks of the stages": [size["embed_dim"], *size["depths"]],
        "Swin-B: heads of the stages": list(size["num_heads"]),
        "Swin-B: window at 192 pixels": [swin.window_size((192 // 32, 192 // 32))[0]],
    }


def of_finetuning() -> Numbers:
    vit = build_encoder("vit_small_patch16", 10, 224, drop_path=0.1)
    groups = optim.layer_decay_groups(vit, 0.05, layer_lookup(vit), 0.65)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    rows = vit.patch_embed.proj.weight, vit.blocks[-1].mlp.fc2.weight, vit.head.weight
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    exempt = [name for name, p in vit.named_parameters() if p.ndim > 1 and not decay[id(p)]]
    drops = [block.drop_path1 for block in vit.blocks]
    return {
        "share of the rate of embeddings, last block, head": [
            float(f"{scale[id(row)]:.3g}") for row in rows
        ],
        "rate of drop path, first and last block": [
            getattr(drop, "drop_prob", 0) for drop in (drops[0], drops[-1])
        ],
        "parameters of two dimensions and more without decay": sorted(exempt),
        "ε of the norm of the pooled patches": [vit.fc_norm.eps],
    }


def of_the_linear_probe() -> Numbers:
    norm = LinearProbe(nn.Identity(), 8, 10).head[0]
    lars = optim.LARS([nn.Parameter(torch.zeros(2))]).defaults
    return {
        "ε of the head's BatchNorm": [norm.eps],
        "momentum of its running statistics": [norm.momentum],
        "it has weights and biases": norm.affine,
        "momentum of LARS": [lars["momentum"]],
        "trust coefficient of LARS": [lars["trust_coefficient"]],
    }


def of_frozen_encoders() -> Numbers:
    iterations = inspect.signature(logistic.fit).parameters["max_iter"].default
    return {
        "k-NN: k, temperature": list(probes.KNN),
        "k-NN, chosen: k": list(probes.KS),
        "k-NN, chosen: temperature": list(probes.TEMPERATURES),
        "logistic regression: penalties": list(probes.PENALTIES),
        "logistic regression: iterations at most": [iterations],
        "few labels: penalty": [probes.FEW_PENALTY],
        "attentive probe: ε of its BatchNorm": [attentive.EfficientProbe(32, 10).norm.eps],
    }


def of_robustness() -> Numbers:
    published = {name: one for name, one in TEST_SETS.items() if name != "ImageNet"}
    kinds = {"noise": 3, "blur": 4, "weather": 4, "digital": 4}
    errors, start = {}, 0
    for kind, count in kinds.items():
        names = list(CORRUPTIONS)[start : start + count]
        errors[f"AlexNet's errors: {kind} ({', '.join(names)})"] = [ALEXNET[n] for n in names]
        start += count
    assert start == len(CORRUPTIONS) == len(ALEXNET)
    return {
        f"{name}: images, classes": [one.num_images, len(synsets(one.synsets))]
        for name, one in published.items()
    } | {
        "ImageNet-C: images of each, corruptions, severities": [
            CORRUPTED.num_images, len(CORRUPTIONS), len(SEVERITIES),
        ],
        "ImageNet-C: pixels, classes": [PUBLISHED_SIZE, NUM_CLASSES],
    } | errors  # fmt: skip


def of_the_detector() -> Numbers:
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


def cut_windows(side: int) -> float:
    """The share of side x side tokens whose window the border cuts, by counting."""
    attention = nn.Module()
    attention.num_heads, attention.qkv = 1, nn.Linear(8, 24)
    attention.proj, attention.q_norm, attention.k_norm = (nn.Identity() for _ in range(3))
    made = GridAttention(attention, (side, side), 14, relative=False)
    seen = []
    made._in_windows = lambda qkv: seen.append(qkv.shape[1:3]) or qkv[..., :8]
    made(torch.zeros(1, side * side, 8))
    return 1 - sum(h * w for h, w in seen if h % 14 == w % 14 == 0) / side**2


BY_SECTION = {
    "Pre-training": of_pretraining,
    "Fine-tuning": of_finetuning,
    "Linear probe": of_the_linear_probe,
    "Frozen encoders": of_frozen_encoders,
    "Robustness": of_robustness,
    "Detection": of_the_detector,
}
