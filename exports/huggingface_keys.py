"""This project's weights under the names that Hugging Face's files have for them.

These are the names of files before transformers 5.9, which it and later releases read, too.
D is a model's width.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]  # (pattern, replacement); the first that fits counts

_BLOCK: Rules = (
    (r"norm1\.(.*)", r"layernorm_before.\1"), (r"norm2\.(.*)", r"layernorm_after.\1"),
    (r"attn\.proj\.(.*)", r"attention.output.dense.\1"),
    (r"mlp\.fc1\.(.*)", r"intermediate.dense.\1"), (r"mlp\.fc2\.(.*)", r"output.dense.\1"),
    (r"ls([12])\.gamma", r"lambda_\1"), (r"gamma_([12])", r"lambda_\1"),
)  # fmt: skip
_VIT: Rules = (
    (r"cls_token", "embeddings.cls_token"), (r"pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embeddings.projection.\1"),
    (r"norm\.(.*)", r"layernorm.\1"), (r"fc_norm\.(.*)", r"pooler.layernorm.\1"),
)  # fmt: skip
_DECODER: Rules = ((r"(decoder_.*|mask_token)", r"decoder.\1"),)
_SWIN: Rules = (
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embeddings.projection.\1"),
    (r"patch_embed\.norm\.(.*)", r"embeddings.norm.\1"), (r"norm\.(.*)", r"layernorm.\1"),
)  # fmt: skip
TABLE = "relative_position_bias_table"


def vit(weights: Mapping[str, Tensor], has_key_bias: bool = True) -> Weights:
    """A ViT's or BEiT's encoder; the head is left out.

    Args:
        has_key_bias: BEiT has none, and needs none: it moves all of a query's logits alike.
    """
    return _by_block(weights, "blocks", "encoder.layer", _VIT, has_key_bias)


def vit_decoder(weights: Mapping[str, Tensor]) -> Weights:
    """MAE's decoder."""
    return _by_block(weights, "decoder_blocks", "decoder.decoder_layers", _DECODER, True)


def _by_block(
    weights: Mapping[str, Tensor], blocks: str, layers: str, others: Rules, has_key_bias: bool
) -> Weights:  # fmt: skip
    """Weights of `blocks` under `layers`, and those outside that `others` name."""
    renamed: Weights = {}
    for key, value in weights.items():
        block = re.fullmatch(rf"{blocks}\.(\d+)\.(.*)", key)
        if block:
            inside = _of_block(block[2], value, "attention.attention", has_key_bias)
            renamed |= {f"{layers}.{block[1]}.{name}": part for name, part in inside.items()}
        elif name := _renamed(key, others):
            renamed[name] = value
    return renamed


def swin(weights: Mapping[str, Tensor], indices: Mapping[str, Tensor]) -> Weights:
    """A Swin's encoder; the head is left out.

    Args:
        indices: `relative_position_index` of each block's attention, by `layers.0.blocks.0.` and
            so on: releases before 5.9 keep them in their files.
    """
    renamed: Weights = {}
    for key, value in weights.items():
        block = re.fullmatch(r"(layers\.\d+\.blocks\.\d+\.)(.*)", key)
        downsample = re.fullmatch(r"layers\.(\d+)\.(downsample\..*)", key)
        if block:
            inside = _of_block(block[2], value, "attention.self", True)
            renamed |= {f"encoder.{block[1]}{name}": part for name, part in inside.items()}
        elif downsample:  # there at the end of a stage, here at the start of the next
            renamed[f"encoder.layers.{int(downsample[1]) - 1}.{downsample[2]}"] = value
        elif name := _renamed(key, _SWIN):
            renamed[name] = value
    for start, index in indices.items():
        renamed[f"encoder.{start}attention.self.relative_position_index"] = index
    return renamed


def pixel_decoder(weights: Mapping[str, Tensor], in_chans: int) -> Weights:
    """SimMIM's prediction of pixels, a 1 x 1 convolution whose channels PixelShuffle reads in the
    order (channel, row, column), in place of (row, column, channel)."""
    shuffled = {}
    for name in ("weight", "bias"):
        value = weights[f"decoder_pred.{name}"]  # [p·p·C, D], [p·p·C]
        value = value.unflatten(0, (-1, in_chans)).transpose(0, 1).flatten(0, 1)
        shuffled[f"decoder.0.{name}"] = value[..., None, None] if name == "weight" else value
    return shuffled


def upernet(weights: Mapping[str, Tensor]) -> Weights:
    """UperNet's heads, as `heads.upernet.UperNet` has them; the encoder is left out."""
    # The library counts levels from the coarsest on, transformers from the finest.
    num_lateral = len({k.split(".")[2] for k in weights if "fpn_lateral_blocks." in k})
    rules: list[tuple[str, str]] = [
        (r"classifier\.1\.(.*)", r"decode_head.classifier.\1"),
        (r"auxiliary\.conv\.(.*)", r"auxiliary_head.convs.0.conv.\1"),
        (r"auxiliary\.norm\.(.*)", r"auxiliary_head.convs.0.batch_norm.\1"),
        (r"auxiliary\.classifier\.1\.(.*)", r"auxiliary_head.classifier.\1"),
    ]
    places = {"psp.out_conv": "bottleneck", "fusion_block": "fpn_bottleneck"}
    places |= {f"psp.blocks.{i}.1": f"psp_modules.{i}.1" for i in range(4)}
    for i in range(num_lateral):
        places[f"fpn_lateral_blocks.{i}.conv_norm_relu"] = f"lateral_convs.{num_lateral - 1 - i}"
        places[f"fpn_conv_blocks.{i}"] = f"fpn_convs.{num_lateral - 1 - i}"
    for old, new in places.items():
        for number, part in enumerate(("conv", "batch_norm")):
            pattern = rf"decoder\.{re.escape(old)}\.{number}\.(.*)"
            rules.append((pattern, rf"decode_head.{new}.{part}.\1"))
    return {name: v for k, v in weights.items() if (name := _renamed(k, rules))}


def _of_block(key: str, value: Tensor, attention: str, has_key_bias: bool) -> Weights:
    """A block's weight under its names; that of queries, keys and values [3·D, ...] is parted."""
    if key in ("attn.qkv.weight", "attn.qkv.bias"):
        kind = key.rpartition(".")[2]
        parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
        return {
            f"{attention}.{name}.{kind}": part
            for name, part in parts
            if has_key_bias or (name, kind) != ("key", "bias")
        }
    if key in ("attn.q_bias", "attn.v_bias"):
        return {f"{attention}.{'query' if key[5] == 'q' else 'value'}.bias": value}
    if key == f"attn.{TABLE}":
        own = ".relative_position_bias" if attention == "attention.attention" else ""
        return {f"{attention}{own}.{TABLE}": value}
    name = _renamed(key, _BLOCK)
    return {name: value} if name else {}


def _renamed(key: str, rules: Iterable[tuple[str, str]]) -> str | None:
    """The new name; None where no rule fits."""
    for pattern, new in rules:
        if match := re.fullmatch(pattern, key):
            return match.expand(new)
    return None


def with_prefix(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    """The same tensors, each name with `prefix` before it."""
    return {prefix + key: value for key, value in weights.items()}


def zero_class_position(pos_embed: Tensor) -> Tensor:
    """Positions [1, L, D] with one of zeros before them, for the class token."""
    return torch.cat([pos_embed.new_zeros(1, 1, pos_embed.shape[2]), pos_embed], dim=1)
