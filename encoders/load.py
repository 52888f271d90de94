"""Build an encoder for downstream use by its name: ViT, Swin or BEiT; load anybody's weights."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from encoders import beit, swin, vit
from encoders.position_bias import fit_weights, has_position_biases
from util.errors import UsageError
from util.flags.settings import take_from_checkpoint
from util.weights.opened_by_all import opened_by_all

SIZES = vit.SIZES | swin.SIZES

# What the architectures of `SIZES` have in common, as `encoders.layouts` describes them.
_PLAIN = {
    "vit": dict(
        family="vit", mlp_ratio=4.0, eps=1e-6, qkv_bias=True, init_values=None, reg_tokens=0,
        no_embed_class=False,
    ),
    "swin": dict(family="swin"),
}  # fmt: skip
_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1536: "giant"}


def open_checkpoint(
    path: str, args: argparse.Namespace, with_size: bool = True, flag: str = "--finetune"
) -> vit.Pretrained | None:
    """Open the checkpoint at `path`, if any; flags that the user left open become its encoder's.

    For all ranks, which have all opened the same one then.

    Args:
        with_size: --input_size, too. flag: that gave the path.

    Raises:
        UsageError: a file that cannot be used, or flags that do not fit it.
    """
    if not path:
        if not getattr(args, "eval", False):
            args.settings.refuse("without a checkpoint", "num_heads")
        return None
    pretrained = opened_by_all(path, lambda: vit.Pretrained(path, args.num_heads, flag))
    config = pretrained.encoder_config() | {"model": model_name(pretrained)}
    if not with_size:
        config.pop("input_size", None)
    take_from_checkpoint(args, config)
    return pretrained


def open_dense(args: argparse.Namespace, mark: str, main: str) -> vit.Pretrained | None:
    """Open what segmentation or detection begins with: an encoder, whose images may have had other
    sizes; or, with --eval or --predict, the trained model.

    Args:
        mark: a key that the configuration has in all checkpoints of `main`, and in no others.

    Raises:
        UsageError: a trained model that is none of `main`'s, and what `open_checkpoint` raises.
    """
    if not (args.eval or args.predict):
        return open_checkpoint(args.finetune, args, with_size=False)
    pretrained = open_checkpoint(args.resume, args, flag="--resume")
    if mark not in pretrained.config:
        raise UsageError(f"--resume {args.resume} is no checkpoint of {main}")
    return pretrained


def model_name(pretrained: vit.Pretrained) -> str:
    """The name in `SIZES` of a checkpoint's encoder; one of its own where there is none.

    Raises:
        UsageError: a checkpoint of a model that cannot be built.
    """
    name = pretrained.config.get("model")
    if isinstance(name, str) and name:  # this project's
        return vit.encoder_name(name)
    found = pretrained.architecture()
    for name, size in SIZES.items():
        known = _PLAIN[name.partition("_")[0]] | size
        if found == {k: list(v) if isinstance(v, tuple) else v for k, v in known.items()}:
            return name
    width = found["embed_dim"]
    name = f"{found['family']}_{_WIDTHS.get(width, width)}_patch{found['patch_size']}"
    return f"{name}_as_in_file" if name in SIZES else name


def architecture(pretrained: vit.Pretrained | None, name: str) -> dict | None:
    """What `build_encoder` has to know of a checkpoint's model that `SIZES` does not have.

    Raises:
        UsageError: --num_heads contradicts what is known.
    """
    if pretrained is None:
        return None
    is_told = bool(pretrained.config.get("architecture")) and name == model_name(pretrained)
    found = pretrained.architecture() if is_told or name not in SIZES else None
    num_heads = (found or SIZES[name]).get("num_heads")
    # This project's own files tell it; the flag may be for another one beside them.
    if not pretrained.is_ours and pretrained.num_heads not in (None, num_heads):
        raise UsageError(
            f"--num_heads {pretrained.num_heads} is not for {name}, which has {num_heads}: leave "
            f"{'it' if found else '--model'} away"
        )
    return found


def segmenter_architecture(
    pretrained: vit.Pretrained | None, name: str, rel_pos_bias: bool, layer_scale: float
) -> dict | None:
    """What `build_encoder` has to know of the encoder of a segmenter that is to be trained.

    A ViT gets, as in MAE's segmentation of ADE20K, what BEiT has from the start: in each block a
    table of relative position biases, zero at first, and a layer scale. The checkpoint's own stay,
    as a BEiT's do; a Swin is what it is.

    Args:
        layer_scale: its value at the start; 0: none.
    """
    found = architecture(pretrained, name)
    if (found["family"] if found else name.partition("_")[0]) != "vit":
        return found
    own = found or _PLAIN["vit"] | vit.SIZES[name]
    changed = dict(own)
    if rel_pos_bias:
        changed["rel_pos_bias"] = True
    if layer_scale and own["init_values"] is None:
        changed["init_values"] = layer_scale
    return found if changed == own else changed


def build_for(pretrained: vit.Pretrained | None, args: argparse.Namespace) -> nn.Module:
    """The encoder of a frozen evaluation: without a head, its tokens normed as in pre-training.

    An encoder that was fine-tuned on the mean of its patch tokens has that mean normed instead.
    """
    on_mean = pretrained is not None and "fc_norm.weight" in pretrained.weights
    model = build_encoder(
        args.model, 0, args.input_size, args.in_chans, global_pool=on_mean,
        architecture=architecture(pretrained, args.model),
    )  # fmt: skip
    if pretrained:
        load_pretrained(pretrained, model)
    return model


def build_backbone(
    pretrained: vit.Pretrained | None, args: argparse.Namespace, any_size: bool = False,
    load: bool = True, known: dict | None = None,
) -> nn.Module:  # fmt: skip
    """The encoder of a detector or segmenter, which read its inner blocks: no head, no final norm.

    Args:
        any_size: as `build_encoder` has it. load: the checkpoint's weights. known: a segmenter's
            architecture, as `segmenter_architecture` gives it.

    Raises:
        UsageError: a segmenter's encoder, with position biases, for another kind of head.
    """
    found = known or architecture(pretrained, args.model)
    if known is None and (found or {}).get("rel_pos_bias"):
        raise UsageError(
            f"{pretrained.foreign.named} has a segmenter's position biases, for which windows "
            "have no place: name the checkpoint that it began with"
        )
    model = build_encoder(
        args.model, 0, args.input_size, args.in_chans, False, args.drop_path,
        args.grad_checkpointing, found, any_size,
    )  # fmt: skip
    model.norm = nn.Identity()
    if pretrained and load:
        load_pretrained(pretrained, model)
    return model


def load_classifier(pretrained: vit.Pretrained, args: argparse.Namespace) -> nn.Module:
    """A fine-tuned classifier with its head, images [B, C, H, W] -> logits [B, classes].

    Raises:
        UsageError: a checkpoint without a head, or with one of other features.
    """
    keys = ("head.weight", "head.fc.weight")  # a ViT's, a Swin's
    head = next((pretrained.weights[k] for k in keys if k in pretrained.weights), None)
    if head is None:
        raise UsageError(
            f"{pretrained.foreign.named} has no classifier (no head.weight): fine-tune it with "
            "main_finetune.py first"
        )
    of_mean = pretrained.config.get("global_pool") == "avg" and "cls_token" in pretrained.weights
    if of_mean and "norm.weight" in pretrained.weights:  # timm says so in a model's folder
        raise UsageError(
            f"{pretrained.path} classifies the mean of normed patch tokens, where this project's "
            "models norm their mean: fine-tune with fc_norm"
        )
    model = build_encoder(
        args.model, len(head), args.input_size, args.in_chans,
        global_pool="fc_norm.weight" in pretrained.weights,
        architecture=architecture(pretrained, args.model),
    )  # fmt: skip
    if head.shape[1] != model.num_features:
        raise UsageError(
            f"{pretrained.foreign.named} classifies {head.shape[1]} features, where this project's "
            f"{args.model} has {model.num_features}: fine-tune it with main_finetune.py first"
        )
    load_pretrained(pretrained, model)
    return model


def describe(args: argparse.Namespace, model: nn.Module | None = None, **more) -> dict[str, object]:
    """Plain values from which a downstream main builds the same encoder and the same images."""
    names = ("model", "input_size", "in_chans", "mean", "std", "dataset")
    if getattr(args, "value_range", None):
        more["value_range"] = args.value_range
    if getattr(model, "architecture", None):
        more["architecture"] = model.architecture
    return {name: getattr(args, name) for name in names} | more


def build_encoder(
    name: str,
    num_classes: int,
    img_size: int | Sequence[int],
    in_chans: int = 3,
    global_pool: bool = True,
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
    architecture: dict | None = None,
    any_size: bool = False,
) -> nn.Module:
    """A classifier [B, C, H, W] -> [B, num_classes], as `build_vit` and `build_swin` describe it.

    Args:
        num_classes: 0: without a head.
        global_pool: for a ViT only; a Swin has no class token.
        architecture: of a model that `SIZES` does not have, as `architecture` gives it.
        any_size: images of other sizes, too; position biases of a ViT or BEiT have one.
    """
    family = architecture["family"] if architecture else name.partition("_")[0]
    if any_size and (family == "beit" or (architecture or {}).get("rel_pos_bias")):
        raise UsageError(
            "--test_mode whole: the encoder's position biases are of one size: use slide, or train "
            "a ViT with --no-rel_pos_bias"
        )
    options = (num_classes, img_size, in_chans, global_pool, drop_path, grad_checkpointing)
    if family == "swin":
        model = swin.build_swin(
            name, num_classes, img_size, in_chans, drop_path, grad_checkpointing, architecture,
            any_size,
        )  # fmt: skip
    elif family == "beit":
        model = beit.build_beit(architecture, *options)
    else:
        model = vit.build_vit(name, *options, architecture, any_size)
    model.architecture = architecture
    return model


def load_pretrained(pretrained: vit.Pretrained, model: nn.Module) -> None:
    """Load a checkpoint into a classifier.

    A ViT's head that is new, or that the checkpoint has in another shape, starts near zero, as in
    MAE.

    Raises:
        UsageError: a checkpoint of another architecture; the line says which keys and shapes.
    """
    known = pretrained.weights, pretrained.config
    if swin.is_swin(model):
        pretrained.weights = swin.fit_weights(*known, model, pretrained.foreign.named)
        pretrained.load_into(model)
        return
    if model.family == "beit" or has_position_biases(model):
        grid = model.patch_embed.grid_size
        pretrained.weights = fit_weights(*known, grid, pretrained.foreign.named)
    pretrained.load_into(model)
    head = pretrained.weights.get("head.weight")
    if model.num_classes and (head is None or head.shape != model.head.weight.shape):
        nn.init.trunc_normal_(model.head.weight, std=2e-5)


def layer_lookup(model: nn.Module, prefix: str = "") -> Callable[[str], int]:
    """A function that gives a parameter's layer, for layer decay, by its name.

    Args:
        model: the encoder.
        prefix: of its parameters' names in a larger model, such as `encoder.`; what else that
            model has is of the last layer, as a head is.
    """
    if swin.is_swin(model):
        depths = [len(stage.blocks) for stage in model.layers]
        found = partial(swin.layer_of, depths=depths)
    else:
        found = partial(vit.layer_of, depth=len(model.blocks))
    return lambda name: found(name.removeprefix(prefix) if name.startswith(prefix) else "head")


def block_shapes(model: nn.Module) -> list[tuple[int, int, int]]:
    """(tokens per image, width, depth) of a model's blocks, to estimate memory."""
    if swin.is_swin(model):
        return swin.block_shapes(model.patch_embed, model.layers)
    tokens = model.num_prefix_tokens + model.patch_embed.num_patches
    return [(tokens, model.embed_dim, len(model.blocks))]
