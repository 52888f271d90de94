"""The encoder for downstream use by its name, ViT or Swin: build it, load it, know its layers."""

import argparse
import logging
from collections.abc import Callable, Sequence

from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from torch import nn

import models_beit
import models_swin
import models_vit
from models_layouts import IMAGENET

log = logging.getLogger(__name__)

SIZES = models_vit.SIZES | models_swin.SIZES

# What the architectures of `SIZES` have in common, as `models_layouts` describes them.
_PLAIN = {
    "vit": dict(
        family="vit", mlp_ratio=4.0, eps=1e-6, qkv_bias=True, init_values=None, reg_tokens=0,
        no_embed_class=False,
    ),
    "swin": dict(family="swin"),
}  # fmt: skip
_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1536: "giant"}


def default_name(pretrained: models_vit.Pretrained | None, size_name: str) -> str:
    """The encoder of a checkpoint, or of a data set's size where there is none.

    Raises:
        UsageError: a checkpoint of a model that cannot be built.
    """
    if pretrained is None:
        return f"vit_{size_name}"
    name = pretrained.config.get("model")
    if isinstance(name, str) and name:  # this project's
        return models_vit.encoder_name(name)
    found = pretrained.architecture()
    for name, size in SIZES.items():
        known = _PLAIN[name.partition("_")[0]] | size
        if found == {k: list(v) if isinstance(v, tuple) else v for k, v in known.items()}:
            return name
    width = found["embed_dim"]
    name = f"{found['family']}_{_WIDTHS.get(width, width)}_patch{found['patch_size']}"
    return f"{name}_as_in_file" if name in SIZES else name


def architecture(pretrained: models_vit.Pretrained | None, name: str) -> dict | None:
    """What `build_encoder` has to know of a checkpoint's model that `SIZES` does not have."""
    return None if pretrained is None or name in SIZES else pretrained.architecture()


def take_normalization(args: argparse.Namespace, pretrained: models_vit.Pretrained | None) -> None:
    """Normalise as a checkpoint was trained, where that is not ImageNet's mean and std, nor said by
    --mean and --std; ImageNet's leave the data set its own, as in MAE."""
    if pretrained is None:
        return
    found = pretrained.foreign.normalization
    if found is None and "model" not in pretrained.config and not args.normalization_given:
        log.warning(
            "%s does not tell its images' mean and std: the data set's are used; for timm's augreg "
            "models, give --mean 0.5 --std 0.5", pretrained.path,
        )  # fmt: skip
    if found in (None, IMAGENET) or args.normalization_given or len(found[0]) != args.in_chans:
        return
    args.mean, args.std, args.normalization_taken = list(found[0]), list(found[1]), True
    log.info("images are normalised as for %s: mean %s, std %s", pretrained.foreign.layout, *found)


def describe(args: argparse.Namespace, model: nn.Module) -> dict:
    """What a checkpoint says of its encoder, for `Pretrained` to build it again."""
    config = dict(model=args.model, input_size=args.input_size, in_chans=args.in_chans)
    if getattr(model, "architecture", None):
        config["architecture"] = model.architecture
    if getattr(args, "normalization_taken", False):
        config["normalization"] = [args.mean, args.std]
    return config


def build_encoder(
    name: str,
    num_classes: int,
    img_size: int | Sequence[int],
    in_chans: int = 3,
    global_pool: bool = True,
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
    architecture: dict | None = None,
) -> nn.Module:
    """A classifier [B, C, H, W] -> [B, num_classes], as `build_vit` and `build_swin` describe it.

    Args:
        global_pool: for a ViT only; a Swin has no class token.
        architecture: of a model that `SIZES` does not have, as `architecture` gives it.
    """
    family = architecture["family"] if architecture else name.partition("_")[0]
    options = (num_classes, img_size, in_chans, global_pool, drop_path, grad_checkpointing)
    if family == "swin":
        model = models_swin.build_swin(
            name, num_classes, img_size, in_chans, drop_path, grad_checkpointing, architecture
        )
    elif family == "beit":
        model = models_beit.build_beit(architecture, *options)
    else:
        model = models_vit.build_vit(name, *options, architecture)
    model.architecture = architecture
    return model


def load_pretrained(pretrained: models_vit.Pretrained, model: nn.Module) -> None:
    """Load a checkpoint into a classifier; a new head of a ViT starts near zero, as in MAE.

    Raises:
        UsageError: a checkpoint of another architecture; the line says which keys and shapes.
    """
    if isinstance(model, SwinTransformer):
        pretrained.weights = models_swin.fit_weights(pretrained.weights, pretrained.config, model)
        pretrained.load_into(model)
        return
    if isinstance(model, Beit):
        pretrained.weights = models_beit.fit_weights(pretrained.weights, pretrained.config, model)
    pretrained.load_into(model)
    if model.num_classes and "head.weight" not in pretrained.weights:
        nn.init.trunc_normal_(model.head.weight, std=2e-5)


def layer_of(model: nn.Module) -> Callable[[str], int]:
    """The layer of a parameter of `model` for layer decay, by its name."""
    if isinstance(model, SwinTransformer):
        depths = [len(stage.blocks) for stage in model.layers]
        return lambda name: models_swin.layer_of(name, depths)
    return lambda name: models_vit.layer_of(name, len(model.blocks))


def block_shapes(model: nn.Module) -> list[tuple[int, int, int]]:
    """(tokens per image, width, depth) of a model's blocks, to estimate memory."""
    if isinstance(model, SwinTransformer):
        return models_swin.block_shapes(model.patch_embed, model.layers)
    tokens = model.num_prefix_tokens + model.patch_embed.num_patches
    return [(tokens, model.embed_dim, len(model.blocks))]
