"""The encoder for downstream use by its name, ViT or Swin: build it, load it, know its layers."""

import argparse
from collections.abc import Callable, Sequence

from timm.models.swin_transformer import SwinTransformer
from torch import nn

import models_swin
import models_vit
from util.settings import take_from_checkpoint

SIZES = models_vit.SIZES | models_swin.SIZES


def open_checkpoint(path: str, args: argparse.Namespace) -> models_vit.Pretrained | None:
    """The checkpoint at `path`, if any; flags that the user left open become its encoder's.

    Raises:
        UsageError: a file that cannot be used, or flags that do not fit it.
    """
    if not path:
        return None
    pretrained = models_vit.Pretrained(path)
    take_from_checkpoint(args, pretrained.encoder_config())
    return pretrained


def build_for(pretrained: models_vit.Pretrained | None, args: argparse.Namespace) -> nn.Module:
    """A frozen evaluation's encoder: without a head, its class token and patch tokens normed."""
    model = build_encoder(args.model, 0, args.input_size, args.in_chans, global_pool=False)
    if pretrained:
        load_pretrained(pretrained, model)
    return model


def describe(args: argparse.Namespace, **more) -> dict[str, object]:
    """Plain values from which a downstream main builds the same encoder and the same images."""
    names = ("model", "input_size", "in_chans", "mean", "std", "dataset")
    return {name: getattr(args, name) for name in names} | more


def build_encoder(
    name: str,
    num_classes: int,
    img_size: int | Sequence[int],
    in_chans: int = 3,
    global_pool: bool = True,
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
) -> nn.Module:
    """A classifier [B, C, H, W] -> [B, num_classes], as `build_vit` and `build_swin` describe it.

    Args:
        global_pool: for a ViT only; a Swin has no class token.
    """
    if name in models_swin.SIZES:
        return models_swin.build_swin(
            name, num_classes, img_size, in_chans, drop_path, grad_checkpointing
        )
    return models_vit.build_vit(
        name, num_classes, img_size, in_chans, global_pool, drop_path, grad_checkpointing
    )


def load_pretrained(pretrained: models_vit.Pretrained, model: nn.Module) -> None:
    """Load a checkpoint into a classifier; a head of a ViT that is new, or dropped for its shape,
    starts near zero, as in MAE.

    Raises:
        UsageError: a checkpoint of another architecture; the line says which keys and shapes.
    """
    if isinstance(model, SwinTransformer):
        pretrained.weights = models_swin.fit_weights(pretrained.weights, pretrained.config, model)
        pretrained.load_into(model)
        return
    pretrained.load_into(model)
    head = pretrained.weights.get("head.weight")
    if model.num_classes and (head is None or head.shape != model.head.weight.shape):
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
    return [(model.pos_embed.shape[1], model.embed_dim, len(model.blocks))]
