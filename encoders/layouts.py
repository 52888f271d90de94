"""Anybody's encoder under this project's names: its layout is recognised by its keys.

    foreign = open_encoder("dino_deitsmall16_pretrain_full_checkpoint.pth")
    foreign.layout, foreign.weights, foreign.architecture(), foreign.normalization

Each layout is known from its published source: MAE, DINO, DINOv2, MoCo v3 (facebookresearch),
BEiT (microsoft/unilm), SimMIM (microsoft/SimMIM), SemMAE (ucasligang/SemMAE, which has MAE's keys),
MFF, PixMIM and others of open-mmlab/mmpretrain, and the libraries timm, transformers, torchvision.

Shapes: D the encoder's width, C channels, p a patch's side in pixels, L patches, R registers.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from encoders.file_parts import ANCHORS, find_weights
from encoders.grids import find_grid, told_sizes
from encoders.keys import (
    MMPRETRAIN,
    TORCHVISION,
    TRANSFORMERS,
    TRANSFORMERS_SWIN,
    Rules,
    Weights,
    convert,
)
from util.errors import UsageError
from util.weights.formats import read_weights

Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, per channel

IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Normalization = ((0.5,) * 3, (0.5,) * 3)

SECOND_CHOICE = ("momentum", "student", "target")  # in prefixes of a file's other encoders

# Attention heads where there are not 64 channels to a head: this project's tiny encoder, and the
# published huge and giant ones.
HEADS = {128: 4, 1152: 16, 1280: 16, 1408: 16}


@dataclass(frozen=True)
class Layout:
    """How a file's layout is recognised, and what files of it do not say themselves.

    marks: parts of keys, all of which a file of it has; `config.NAME=` is an entry of the file's
    configuration. rules: for renaming its keys; None where its names are timm's, as ours are.
    normalization: of the images that it was trained on; None where files of the layout differ.
    eps: of its layer norms. heads: attention heads by width, where not as in `HEADS`.
    """

    marks: tuple[str, ...]
    rules: Rules | None = None
    normalization: Normalization | None = IMAGENET
    eps: float = 1e-6
    heads: dict[int, int] = field(default_factory=dict)


_BLOCK = "blocks.0.attn.qkv.weight"
_BEIT = "blocks.0.attn.q_bias"
_HF = "embeddings.patch_embeddings.projection.weight"
# The first whose marks a file has is its layout.
LAYOUTS = {
    "this project's": Layout(("config.model=",), normalization=None),
    "transformers' Swin": Layout(
        (_HF, "relative_position_bias_table", "downsample.reduction.weight"), TRANSFORMERS_SWIN
    ),
    "Swin's, SimMIM's": Layout(("layers.0.downsample.reduction.weight", "relative_position_bias")),
    "timm's Swin": Layout(("layers.0.blocks.0.attn.relative_position_bias_table",)),
    "SimMIM's ViT": Layout(("encoder.blocks.0.attn.q_bias",)),
    "SimMIM's ViT, fine-tuned": Layout(("config.MODEL=", _BEIT)),
    "BEiT v2": Layout(("cls_pt_layers.", _BEIT)),
    "BEiT": Layout((_BEIT,), normalization=HALF),
    "MoCo v3": Layout(("base_encoder.patch_embed.proj.weight", _BLOCK), heads={384: 12}),
    "DINOv2 with registers": Layout(("register_tokens", "patch_embed.proj.weight")),
    "DINOv2": Layout(("mask_token", "ls1.gamma", "patch_embed.proj.weight")),
    "DINO": Layout(("backbone.blocks.0.attn.qkv.weight",)),
    "MI-MAE": Layout(("approximation.", _BLOCK), normalization=None),
    "MAE": Layout(("decoder_blocks.0.", _BLOCK)),  # SemMAE, too
    "MAE's linear probe": Layout(("head.0.running_mean", "head.1.weight", _BLOCK)),
    "MAE, fine-tuned": Layout(("fc_norm.weight", "head.weight", _BLOCK)),
    "timm's ViT": Layout((_BLOCK,), normalization=None),  # DINO's, DeiT, augreg
    "transformers' BEiT": Layout((_HF, "lambda_1"), TRANSFORMERS, HALF, eps=1e-12),
    "transformers' DINOv2": Layout((_HF, "layer_scale1.lambda1"), TRANSFORMERS),
    "transformers' ViT-MAE": Layout((_HF, "decoder_pred."), TRANSFORMERS, eps=1e-12),
    "transformers' ViT": Layout((_HF, "layernorm_before."), TRANSFORMERS, HALF, eps=1e-12),
    # Fine-tuned, version 1 saw images of mean 0.5 and version 2 ImageNet's.
    "mmpretrain's BEiT, fine-tuned": Layout(
        ("patch_embed.projection.weight", "layers.0.attn.q_bias", "backbone.ln2."), MMPRETRAIN, None
    ),
    "mmpretrain's BEiT": Layout(
        ("patch_embed.projection.weight", "layers.0.attn.q_bias"), MMPRETRAIN
    ),
    "mmpretrain's ViT": Layout(
        ("patch_embed.projection.weight", "layers.0.ln1.", "layers.0.ffn.layers.0.0."), MMPRETRAIN
    ),
    "torchvision's ViT": Layout(("conv_proj.weight", "encoder_layer_0.ln_1."), TORCHVISION),
}


@dataclass
class Foreign:
    """An encoder's weights under this project's names, and what is known of it.

    normalization: mean and std of its images; None where it cannot be known. left_over: keys that
    are no part of the encoder, and other models of the file. config: the file's, or its folder's.
    flags: those of the training run that left them in its file. run: its `progress`, `history` and
    `flag_sources`, of a run of this project.
    """

    named: str  # the flag and the path that it gives, for errors
    layout: str
    weights: Weights
    raw: Weights  # as they stand in the file
    config: dict
    normalization: Normalization | None
    left_over: list[str]
    flags: dict = field(default_factory=dict)
    run: dict = field(default_factory=dict)

    def grid(self) -> tuple[int, tuple[int, int]] | None:
        """How many tokens before the patches have a position, and the patches' grid."""
        return find_grid(self.weights, self.told_sizes())

    def told_sizes(self) -> list[tuple[int, int]]:
        """The image sizes (height, width), in pixels, that the file names."""
        return told_sizes(self.config, self.flags)

    def architecture(self, num_heads: int | None = None) -> dict:
        """The model that the weights are of, in plain values: `family`, `eps`, and the arguments of
        timm's VisionTransformer, Beit or SwinTransformer.

        Args:
            num_heads: attention heads; by default the configuration's, else by the width.

        Raises:
            UsageError: none of these three is such a model.
        """
        known = self.config.get("architecture")
        if isinstance(known, dict):  # a checkpoint of this project that began as another's
            return known
        if "layers.0.blocks.0.norm1.weight" in self.weights:
            return _swin_architecture(self)
        return _vit_architecture(self, num_heads)


# --------------------------------------------------------------------------------------- reading


def open_encoder(path: str, flag: str = "--finetune") -> Foreign:
    """Read a checkpoint file or a model's folder, whatever the layout of its weights.

    Args:
        flag: that names it, for errors.

    Raises:
        UsageError: a file that cannot be read, holds no weights, or has no layout that is known.
    """
    named = f"{flag} {path}"
    try:
        state, config = read_weights(path)
    except UsageError as error:
        raise UsageError(f"{flag} {error}") from None
    own = state.get("config")
    config = config | (own if isinstance(own, dict) else {})
    raw, set_aside = find_weights(state)
    if not raw:
        raise UsageError(
            f"{named} holds no model weights: its keys begin with "
            f"{', '.join([str(key) for key in state][:3]) or 'none'}; name a checkpoint"
        )
    prefix = _find_prefix(raw)
    marks = [*raw, *(f"config.{key}=" for key in config)]
    name = next((n for n, layout in LAYOUTS.items() if _fits(layout, marks)), None)
    if name is None or prefix is None:
        raise UsageError(
            f"{named} has the layout of no encoder that is known (its keys begin with "
            f"{', '.join(list(raw)[:3])}); known are {', '.join(LAYOUTS)}"
        )
    weights, left_over = convert(raw, prefix, LAYOUTS[name].rules)
    flags = _flags(state.get("args"))
    normalization = _normalization(name, config, weights, flags)
    told = ("progress", "history", "flag_sources")
    run = {k: state[k] for k in told if isinstance(state.get(k), dict)}
    left_over += set_aside
    return Foreign(named, name, weights, raw, config, normalization, left_over, flags, run)


def _flags(args: object) -> dict:
    """The flags that a training run left in its file: an argparse.Namespace, or a dict."""
    return args if isinstance(args, dict) else getattr(args, "__dict__", {})


def _find_prefix(raw: Iterable[str]) -> str | None:
    found = [k.removesuffix(a) for k in raw for a in ANCHORS if k.endswith(a)]
    found.sort(key=lambda prefix: (any(word in prefix for word in SECOND_CHOICE), len(prefix)))
    return found[0] if found else None


def _fits(layout: Layout, keys: list[str]) -> bool:
    return all(any(mark in key for key in keys) for mark in layout.marks)


def _per_channel(value: object) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (float(value),) * 3


def _normalization(name: str, config: dict, weights: Weights, args: dict) -> Normalization | None:
    """What the file or its folder says, else the layout's."""
    timm = config.get("pretrained_cfg")
    for said, mean, std in ((timm, "mean", "std"), (config, "image_mean", "image_std")):
        if isinstance(said, dict) and said.get(mean) and said.get(std):
            return _per_channel(said[mean]), _per_channel(said[std])
    if "BEiT" in name and args.get("imagenet_default_mean_and_std"):
        return IMAGENET
    # A class token without a position has fixed sine-cosine ones: MAE's and its kin, none of which
    # was trained on other images than ImageNet's mean and std make.
    pos_embed = weights.get("pos_embed")
    is_fixed = pos_embed is not None and pos_embed.ndim == 3 and not pos_embed[0, 0].any()
    if is_fixed and name in ("timm's ViT", "transformers' ViT"):
        return IMAGENET
    if name == "BEiT" and "head.weight" in weights and "imagenet_default_mean_and_std" not in args:
        return None  # fine-tuned, v2 has v1's keys and has seen ImageNet's mean and std
    return LAYOUTS[name].normalization


# --------------------------------------------------------------------------------------- the model


def _vit_architecture(foreign: Foreign, num_heads: int | None) -> dict:
    weights, layout = foreign.weights, LAYOUTS[foreign.layout]
    needed = ["cls_token", "blocks.0.mlp.fc1.weight", _BLOCK]
    table = "blocks.0.attn.relative_position_bias_table"
    if "pos_embed" not in weights:
        needed += [table if _BEIT in weights else "pos_embed"]
    absent = [k for k in needed if k not in weights]
    activation = foreign.config.get("hidden_act", "gelu")
    if absent or activation != "gelu":
        what = f"without {', '.join(absent)}" if absent else f"with {activation}"
        raise UsageError(
            f"{foreign.named} ({foreign.layout}) is a model {what}, which is not "
            "supported: a class token, positions, GELU and an MLP of two layers are needed"
        )
    width, patch = _patches(foreign)
    num_heads = num_heads or _num_heads(foreign, width)
    if width % num_heads:
        raise UsageError(f"--num_heads {num_heads} does not divide the model's width, {width}")
    found = dict(
        patch_size=patch, embed_dim=width, depth=_count(weights, "blocks."),
        num_heads=num_heads, mlp_ratio=len(weights["blocks.0.mlp.fc1.weight"]) / width,
    )  # fmt: skip
    eps = foreign.config.get("layer_norm_eps") if layout.rules is TRANSFORMERS else None
    found["eps"] = float(eps or layout.eps)
    if table in weights or _BEIT in weights or "blocks.0.gamma_1" in weights:
        return found | dict(
            family="beit", qkv_bias=_BEIT in weights, use_abs_pos_emb="pos_embed" in weights,
            use_rel_pos_bias=table in weights,
            init_values=1.0 if "blocks.0.gamma_1" in weights else None,
        )  # fmt: skip
    registers = weights.get("reg_token")
    return found | dict(
        family="vit",
        qkv_bias="blocks.0.attn.qkv.bias" in weights,
        init_values=1.0 if "blocks.0.ls1.gamma" in weights else None,
        reg_tokens=0 if registers is None else registers.shape[1],
        no_embed_class=(foreign.grid() or (1, ()))[0] == 0,
    )


def _count(weights: Weights, start: str) -> int:
    """Parts of a list of modules, by their numbers in the keys."""
    return len({k[len(start) :].split(".")[0] for k in weights if k.startswith(start)})


def _num_heads(foreign: Foreign, width: int) -> int:
    config, layout = foreign.config, LAYOUTS[foreign.layout]
    table = foreign.weights.get("blocks.0.attn.relative_position_bias_table")  # [·, heads]
    model = config.get("model_args")  # of timm's function that makes it
    said = config.get("num_attention_heads")
    said = said or (model.get("num_heads") if isinstance(model, dict) else None)
    heads = table.shape[1] if table is not None else said
    heads = heads or layout.heads.get(width) or HEADS.get(width)
    if heads is None and width % 64:
        raise UsageError(
            f"{foreign.named} ({foreign.layout}) does not tell the number of attention "
            f"heads of a model {width} wide: give --num_heads"
        )
    return int(heads or width // 64)


def _patches(foreign: Foreign) -> tuple[int, int]:
    """The width D and the patch's side p of the patch embedding [D, C, p, p]."""
    shape = foreign.weights["patch_embed.proj.weight"].shape
    if len(shape) != 4 or shape[2] != shape[3]:
        raise UsageError(
            f"{foreign.named} ({foreign.layout}) has no square patches: its patch "
            f"embedding is {list(shape)}"
        )
    return shape[0], shape[3]


def _swin_architecture(foreign: Foreign) -> dict:
    weights = foreign.weights
    stages = range(_count(weights, "layers."))
    tables = [f"layers.{i}.blocks.0.attn.relative_position_bias_table" for i in stages]
    absent = [table for table in tables if table not in weights]
    if absent:
        raise UsageError(
            f"{foreign.named} ({foreign.layout}) is a model without {absent[0]}, which "
            "is not supported"
        )
    width, patch = _patches(foreign)
    return dict(
        family="swin", patch_size=patch, embed_dim=width,
        depths=[_count(weights, f"layers.{i}.blocks.") for i in stages],
        num_heads=[weights[table].shape[1] for table in tables],
    )  # fmt: skip
