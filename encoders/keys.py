"""Rename the parts of other projects' encoders to this project's names.

Shapes: D the encoder's width, L patches, R registers.
"""

import torch
from torch import Tensor

from encoders.swin import convert_simmim

Weights = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]

# (old, new): a part of a key and what takes its place, in this order; ^ is the key's start. A key
# that no rule fits is left over.
MMPRETRAIN: Rules = (
    ("^cls_token", "cls_token"), ("^pos_embed", "pos_embed"),
    ("^patch_embed.projection.", "patch_embed.proj."), ("^layers.", "blocks."),
    ("^rel_pos_bias.", "rel_pos_bias."),
    ("^ln1.", "norm."), ("^ln2.", "fc_norm."), (".ln1.", ".norm1."), (".ln2.", ".norm2."),
    (".ffn.layers.0.0.", ".mlp.fc1."), (".ffn.layers.1.", ".mlp.fc2."),
    (".attn.gamma1.weight", ".ls1.gamma"), (".ffn.gamma2.weight", ".ls2.gamma"),
)  # fmt: skip
TORCHVISION: Rules = (
    ("^class_token", "cls_token"), ("^encoder.pos_embedding", "pos_embed"),
    ("^conv_proj.", "patch_embed.proj."), ("^encoder.layers.encoder_layer_", "blocks."),
    ("^encoder.ln.", "norm."), ("^heads.head.", "head."),
    (".ln_1.", ".norm1."), (".ln_2.", ".norm2."),
    (".self_attention.in_proj_", ".attn.qkv."), (".self_attention.out_proj.", ".attn.proj."),
    (".mlp.0.", ".mlp.fc1."), (".mlp.3.", ".mlp.fc2."),
    (".mlp.linear_1.", ".mlp.fc1."), (".mlp.linear_2.", ".mlp.fc2."),
)  # fmt: skip
# As files have them, and as the models of transformers 5 do.
TRANSFORMERS: Rules = (
    ("^embeddings.cls_token", "cls_token"), ("^embeddings.position_embeddings", "pos_embed"),
    ("^embeddings.register_tokens", "register_tokens"),
    ("^embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("^encoder.layer.", "blocks."), ("^layers.", "blocks."),
    ("^encoder.relative_position_bias.", "rel_pos_bias."),
    ("^shared_position_bias.", "rel_pos_bias."),
    ("^layernorm.", "norm."), ("^pooler.layernorm.", "fc_norm."), ("^classifier.", "head."),
    (".attention.attention.", ".attention."),
    (".attention.query.", ".attn.q."), (".attention.q_proj.", ".attn.q."),
    (".attention.key.", ".attn.k."), (".attention.k_proj.", ".attn.k."),
    (".attention.value.", ".attn.v."), (".attention.v_proj.", ".attn.v."),
    (".attention.output.dense.", ".attn.proj."), (".attention.o_proj.", ".attn.proj."),
    (".attention.relative_position_bias.", ".attn."), (".relative_position_bias.", ".attn."),
    (".intermediate.dense.", ".mlp.fc1."), (".output.dense.", ".mlp.fc2."),
    (".layernorm_before.", ".norm1."), (".layernorm_after.", ".norm2."),
    (".layer_scale1.lambda1", ".ls1.gamma"), (".layer_scale2.lambda1", ".ls2.gamma"),
    (".lambda_1", ".gamma_1"), (".lambda_2", ".gamma_2"),
    # transformers 5.24 saves a ViT-MAE that it has not loaded under the second name.
    ("^decoder.decoder_layers.", "decoder_blocks."),
    ("^decoder.decoder_encoder.layer.", "decoder_blocks."), ("^decoder.decoder_", "decoder_"),
    ("^decoder.mask_token", "mask_token"), ("^embeddings.mask_token", "mask_token"),
)  # fmt: skip
# Its Swin's become SimMIM's names, which `convert_simmim` makes this project's.
TRANSFORMERS_SWIN: Rules = (
    ("^embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("^embeddings.norm.", "patch_embed.norm."), ("^embeddings.mask_token", "mask_token"),
    ("^encoder.layers.", "layers."), ("^layernorm.", "norm."), ("^classifier.", "head."),
    ("^decoder.", "decoder."),
    (".attention.self.", ".attention."),
    (".attention.query.", ".attn.q."), (".attention.q_proj.", ".attn.q."),
    (".attention.key.", ".attn.k."), (".attention.k_proj.", ".attn.k."),
    (".attention.value.", ".attn.v."), (".attention.v_proj.", ".attn.v."),
    (".attention.output.dense.", ".attn.proj."), (".attention.o_proj.", ".attn.proj."),
    (".attention.relative_position_bias.", ".attn."), (".attention.relative_", ".attn.relative_"),
    (".intermediate.dense.", ".mlp.fc1."), (".output.dense.", ".mlp.fc2."),
    (".layernorm_before.", ".norm1."), (".layernorm_after.", ".norm2."),
)  # fmt: skip


def convert(raw: Weights, prefix: str, rules: Rules | None) -> tuple[Weights, list[str]]:
    """The encoder's weights under this project's names, and the keys that are left over.

    Args:
        prefix: what stands before the keys of the encoder.
        rules: none where its names are timm's, as this project's are.
    """
    weights, left_over = {}, []
    for key, value in raw.items():
        # transformers keeps a classifier, a decoder, and BEiT's last norm, beside the encoder.
        is_theirs = rules in (TRANSFORMERS, TRANSFORMERS_SWIN)
        beside = is_theirs and key.startswith(("layernorm.", "classifier.", "decoder."))
        inside = key.startswith(prefix) or beside
        new = _rename(key.removeprefix(prefix), rules) if inside else None
        if new is None:
            left_over.append(key.removeprefix("module."))
        elif not new.endswith("relative_position_index"):  # follows from the grid
            weights[new] = value
    for step in (convert_simmim, _join_qkv, _unchunk, _place_registers, _share_biases):
        weights = step(weights)
    return weights, left_over


def _rename(key: str, rules: Rules | None) -> str | None:
    if rules is None:
        return key
    renamed = None
    for old, new in rules:
        if old[0] == "^" and key.startswith(old[1:]):
            key = renamed = new + key[len(old) - 1 :]
        elif old in key:
            key = renamed = key.replace(old, new, 1)
    return renamed


def _join_qkv(weights: Weights) -> Weights:
    """Separate q, k and v [D, D] -> qkv [3·D, D]; BEiT's k has no bias, and its q and v stay."""
    joined = {k: v for k, v in weights.items() if not k.rpartition(".")[0].endswith(
        (".attn.q", ".attn.k", ".attn.v"))}  # fmt: skip
    for key in [k for k in weights if k.endswith(".attn.q.weight")]:
        block = key.removesuffix("q.weight")
        parts = [weights.get(f"{block}{name}.weight") for name in "qkv"]
        biases = [weights.get(f"{block}{name}.bias") for name in "qkv"]
        joined[f"{block}qkv.weight"] = torch.cat([p for p in parts if p is not None])
        if all(bias is not None for bias in biases):
            joined[f"{block}qkv.bias"] = torch.cat(biases)
        elif biases[0] is not None and biases[2] is not None:
            joined[f"{block}q_bias"], joined[f"{block}v_bias"] = biases[0], biases[2]
    return joined


def _unchunk(weights: Weights) -> Weights:
    """DINOv2's blocks in chunks, `blocks.CHUNK.N.` -> `blocks.N.`."""
    converted = {}
    for key, value in weights.items():
        parts = key.split(".")
        if parts[0] == "blocks" and len(parts) > 3 and parts[2].isdigit():
            key = ".".join(["blocks", *parts[2:]])
        converted[key] = value
    return converted


def _place_registers(weights: Weights) -> Weights:
    """DINOv2's registers [1, R, D], which have no positions, as timm has them: the class token's
    position is in the class token."""
    if "register_tokens" not in weights:
        return weights
    weights = dict(weights)
    weights["reg_token"] = weights.pop("register_tokens")
    weights["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
    weights["pos_embed"] = weights["pos_embed"][:, 1:]  # [1, 1 + L, D] -> [1, L, D]
    return weights


def _share_biases(weights: Weights) -> Weights:
    """One table of position biases for all blocks becomes each block's own, as BEiT and SimMIM
    fine-tune."""
    shared = weights.get("rel_pos_bias.relative_position_bias_table")
    if shared is None:
        return weights
    blocks = {".".join(k.split(".")[:2]) for k in weights if k.startswith("blocks.")}
    weights = {k: v for k, v in weights.items() if not k.startswith("rel_pos_bias.")}
    return weights | {f"{b}.attn.relative_position_bias_table": shared.clone() for b in blocks}
