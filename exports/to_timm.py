"""A checkpoint as a folder of timm's hub layout: `timm.create_model('local-dir:OUT')` reads it."""

import logging
import os
import re

import torch
from torch import Tensor, nn

from encoders.position_bias import has_position_biases
from encoders.swin import is_swin
from exports.folder import write_json, write_tensors
from exports.result import Written, check, difference
from exports.source import CLASSIFIER, DETECTOR, PROBE, SEGMENTER, Source
from util.errors import UsageError, first_line

log = logging.getLogger(__name__)

# The registered names whose arguments are overridden by the model's own; by family and width.
_NAMES = {
    "vit": {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224",
            768: "vit_base_patch16_224", 1024: "vit_large_patch16_224",
            1280: "vit_huge_patch14_224"},
    "beit": {768: "beit_base_patch16_224", 1024: "beit_large_patch16_224"},
    "swin": {96: "swin_tiny_patch4_window7_224", 128: "swin_base_patch4_window7_224",
             192: "swin_large_patch4_window7_224"},
}  # fmt: skip
_FIRST = {family: next(iter(names.values())) for family, names in _NAMES.items()}
_EPS = {"vit": 1e-6, "beit": 1e-6, "swin": 1e-5}  # of timm's layer norms, by family


def write(source: Source, folder: str) -> Written:
    """Write `config.json` and `model.safetensors`, and load them with timm.

    Raises:
        UsageError: what timm has no model for; the line says what to do.
    """
    if source.kind in (SEGMENTER, DETECTOR):
        other = "--encoder_only, or --to onnx" if source.kind == SEGMENTER else "--to safetensors"
        raise UsageError(f"--to timm: timm has no {source.kind}: give {other}")
    notes = source.leave_out_decoder()
    model = source.model()
    family, arguments, weights = describe(model)
    if family == "swin" and len({*arguments["window_size"]}) > 1:
        raise UsageError(
            "--to timm: timm reads a Swin's position biases for square windows only: give a square "
            "--input_size, or --to onnx"
        )
    num_classes = arguments["num_classes"]
    is_rgb = arguments["in_chans"] == 3
    config = {
        "architecture": _NAMES[family].get(arguments["embed_dim"], _FIRST[family]),
        "num_classes": num_classes,
        "num_features": model.num_features,
        **({"global_pool": arguments["global_pool"]} if "global_pool" in arguments else {}),
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "mi-mae", "custom_load": False, "num_classes": num_classes,
            "input_size": [arguments["in_chans"], *source.input_size], "fixed_input_size": True,
            "interpolation": "bicubic", "crop_pct": source.crop_share, "crop_mode": "center",
            "mean": source.config["mean"], "std": source.config["std"],
            # timm makes three channels' weights those of others, but no others' of these.
            "first_conv": "patch_embed.proj" if is_rgb else None,
            "classifier": "head.fc" if family == "swin" else "head",
        },
    }  # fmt: skip
    if source.classes and num_classes:
        config["label_names"] = source.classes
    write_json(os.path.join(folder, "config.json"), config)
    write_tensors(folder, weights)
    written = Written("timm", _lines(source), notes=notes)
    eps = next(m.eps for m in model.modules() if isinstance(m, nn.LayerNorm))
    has_eps = eps == _EPS[family]
    if not has_eps:
        notes.append(f"layer norms have eps {_EPS[family]:g} in place of {eps:g}")
    written.differences = _compare(source, model, folder)
    check("timm", written.differences, 1.0 if has_eps else 1000.0)
    return written


def _lines(source: Source) -> list[str]:
    has_head = source.kind in (CLASSIFIER, PROBE)
    return [
        "import timm",
        "model = timm.create_model('local-dir:OUT', pretrained=True).eval()",
        "logits = model(images)" if has_head else "tokens = model.forward_features(images)",
    ]


def describe(model: nn.Module) -> tuple[str, dict, dict[str, Tensor]]:
    """A model's family, the arguments of timm's function that makes it, and its weights.

    A ViT with position biases is a BEiT: a bias of keys, which BEiT lacks, moves all of a query's
    logits alike, so that attention does not see it.
    """
    weights = model.state_dict()
    if has_position_biases(model):
        return ("beit", *_as_beit(model, weights))
    family = model.family
    common = dict(
        img_size=list(model.patch_embed.img_size), patch_size=model.patch_embed.patch_size[0],
        in_chans=model.patch_embed.proj.in_channels, num_classes=model.num_classes,
    )  # fmt: skip
    if is_swin(model):
        blocks = [stage.blocks for stage in model.layers]
        if not model.num_classes:
            weights = {_as_published(key): value for key, value in weights.items()}
        window = blocks[-1][0].attn.window_size
        return "swin", common | dict(
            embed_dim=model.embed_dim, depths=[len(stage) for stage in blocks],
            num_heads=[stage[0].attn.num_heads for stage in blocks], window_size=list(window),
        ), weights  # fmt: skip
    found = common | _transformer(model)
    if family == "beit":
        return family, found | dict(
            qkv_bias=model.blocks[0].attn.q_bias is not None,
            use_abs_pos_emb=model.pos_embed is not None,
            use_rel_pos_bias=model.blocks[0].attn.relative_position_bias_table is not None,
            init_values=1.0 if model.blocks[0].gamma_1 is not None else None,
        ), weights  # fmt: skip
    return family, found | dict(
        qkv_bias=model.blocks[0].attn.qkv.bias is not None,
        init_values=None if isinstance(model.blocks[0].ls1, nn.Identity) else 1.0,
        reg_tokens=model.num_reg_tokens, no_embed_class=model.no_embed_class,
        fc_norm=not isinstance(model.fc_norm, nn.Identity), **_without_norm(model),
    ), weights  # fmt: skip


def _without_norm(vit: nn.Module) -> dict:
    """What says that a ViT has no last norm, as a segmenter's encoder."""
    is_bare = isinstance(vit.norm, nn.Identity) and isinstance(vit.fc_norm, nn.Identity)
    return {"final_norm": False} if is_bare else {}


def _as_published(key: str) -> str:
    """A Swin's name with a stage's downsampling at the end of the one before: older releases of
    timm take it that a Swin without a head has such names, and newer ones read both."""
    stage = re.fullmatch(r"layers\.(\d+)\.(downsample\..*)", key)
    return f"layers.{int(stage[1]) - 1}.{stage[2]}" if stage else key


def _transformer(model: nn.Module) -> dict:
    return dict(
        embed_dim=model.embed_dim, depth=len(model.blocks),
        num_heads=model.blocks[0].attn.num_heads, global_pool=model.global_pool,
        mlp_ratio=model.blocks[0].mlp.fc1.out_features / model.embed_dim,
    )  # fmt: skip


def _as_beit(vit: nn.Module, weights: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """The arguments and weights of timm's Beit that computes what a ViT with position biases does.

    Raises:
        UsageError: registers, which Beit has not.
    """
    if vit.num_reg_tokens:
        raise UsageError(
            "--to timm: timm has no model with both registers and relative positions: --to onnx"
        )
    renamed = {}
    for key, value in weights.items():
        if key.endswith(".attn.qkv.bias"):
            for name, part in zip("qkv", value.chunk(3), strict=True):
                renamed[key.replace("qkv.bias", f"{name}_bias")] = part
            del renamed[key.replace("qkv.bias", "k_bias")]
        else:
            renamed[re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key)] = value
    if _without_norm(vit):
        # A segmenter's encoder has no last norm; Beit has one after the pool, which here is new.
        renamed |= {"fc_norm.weight": torch.ones(vit.embed_dim),
                    "fc_norm.bias": torch.zeros(vit.embed_dim)}  # fmt: skip
        pool = "avg"
    else:
        pool = vit.global_pool
    if vit.no_embed_class:
        renamed["pos_embed"] = torch.cat(
            [vit.pos_embed.new_zeros(1, 1, vit.embed_dim), vit.pos_embed], dim=1
        )
    arguments = _transformer(vit) | dict(
        img_size=list(vit.patch_embed.img_size), patch_size=vit.patch_embed.patch_size[0],
        in_chans=vit.patch_embed.proj.in_channels, num_classes=vit.num_classes, global_pool=pool,
        qkv_bias=vit.blocks[0].attn.qkv.bias is not None, use_abs_pos_emb=True,
        use_rel_pos_bias=True,
        init_values=None if isinstance(vit.blocks[0].ls1, nn.Identity) else 1.0,
    )  # fmt: skip
    return arguments, renamed


@torch.no_grad()
def _compare(source: Source, model: nn.Module, folder: str) -> dict[str, float]:
    import timm

    try:
        found = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except AssertionError:
        raise UsageError(
            f"--to timm: timm {timm.__version__} reads no folders: pip install 'timm>=1.0.16'"
        ) from None
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(
            f"--to timm: timm {timm.__version__} cannot load it ({first_line(error)}): --to onnx"
        ) from None
    images = source.images(2)
    expected, tokens = model.forward_features(images), found.forward_features(images)
    if is_swin(model):
        differences = {"patch features": difference(tokens, expected)}
    else:
        prefix = model.num_prefix_tokens
        differences = {
            "class token": difference(tokens[:, 0], expected[:, 0]),
            "patch features": difference(tokens[:, prefix:], expected[:, prefix:]),
        }
    if model.num_classes:
        differences["logits"] = difference(found(images), model(images))
    return differences
