"""A checkpoint as a folder that Hugging Face's transformers reads with `from_pretrained(OUT)`.

transformers need not be installed to write it; with it the folder is loaded and compared.
A ViT with a mean of patch tokens, layer scales or relative positions is there a BEiT, which
computes the same.
"""

import logging
import os

from torch import Tensor, nn

from encoders.position_bias import has_position_biases
from encoders.swin import is_swin
from exports import huggingface_keys as keys
from exports.folder import write_json, write_tensors
from exports.huggingface_check import compare
from exports.result import Written, check
from exports.source import CLASSIFIER, DETECTOR, MAE, PROBE, SEGMENTER, SIMMIM_KIND, Source
from util.errors import UsageError

log = logging.getLogger(__name__)

Described = tuple[dict, dict[str, Tensor]]  # the content of config.json, and the weights

OTHERS = "--to onnx or torch"
# Which of transformers' models take images that are not square.
_ANY_SHAPE = ("ViTModel", "ViTForImageClassification")


def write(source: Source, folder: str) -> Written:
    """Write `config.json`, `model.safetensors` and `preprocessor_config.json`.

    Raises:
        UsageError: what transformers has no model for; the line says what to do.
    """
    if source.kind == DETECTOR:
        raise UsageError("--to huggingface: it has no such detector: --to safetensors")
    if source.kind == SEGMENTER:
        model = source.segmenter()
        config, weights = describe_segmenter(model, source)
    elif source.kind in (MAE, SIMMIM_KIND):
        model = source.masked()
        config, weights = (_mae if source.kind == MAE else _simmim)(model, source)
    else:
        model = source.model()
        config, weights = describe(model, source)
    name = config["architectures"][0]
    if len(set(source.input_size)) > 1 and name not in _ANY_SHAPE:
        is_vit = name in ("ViTMAEForPreTraining", "ViTForMaskedImageModeling")
        raise UsageError(
            f"--to huggingface: {name} takes square images only: "
            + ("give --encoder_only" if is_vit else "give a square --input_size")
            + f", or {OTHERS}"
        )
    write_json(os.path.join(folder, "config.json"), config)
    write_json(os.path.join(folder, "preprocessor_config.json"), processor(source))
    write_tensors(folder, weights)
    written = Written("transformers", load_lines(source, name))
    written.notes += _notes(source)
    found = compare(source, model, config, folder)
    if found is not None:
        written.differences = found
        check("huggingface", found)
    return written


def load_lines(source: Source, name: str) -> list[str]:
    """Python that loads the folder and calls the model."""
    option = ", add_pooling_layer=False" if name == "ViTModel" else ""
    output = {MAE: "loss", SIMMIM_KIND: "loss", CLASSIFIER: "logits", PROBE: "logits",
              SEGMENTER: "logits"}.get(source.kind, "last_hidden_state")  # fmt: skip
    mask = "bool_masked_pos=mask, " if source.kind == SIMMIM_KIND else ""
    return [
        f"from transformers import AutoImageProcessor, {name}",
        "processor = AutoImageProcessor.from_pretrained('OUT')",
        f"model = {name}.from_pretrained('OUT'{option}).eval()",
        f"{output} = model({mask}**processor(images, return_tensors='pt')).{output}",
    ]


def _notes(source: Source) -> list[str]:
    notes = []
    left_out = {k.split(".")[0] for k in source.weights if k.startswith(("approx", "mi_head"))}
    if left_out:
        notes.append(f"left out, since the encoder does without: {', '.join(sorted(left_out))}")
    if len(set(source.input_size)) > 1 and source.kind != SEGMENTER:
        notes.append(
            "the image processor resizes to the model's size without keeping an image's shape, "
            "which this project's evaluation keeps: it crops what is too much"
        )
    return notes


def processor(source: Source) -> dict:
    """Of the image processor: this project's evaluation transform, with transformers' resizing.

    Its centre crop lies one pixel elsewhere where what is cut off is 3, 7, 11, … pixels: Python
    rounds a half to the even number, and transformers down.
    """
    height, width = source.input_size
    is_square = height == width
    resizes = source.kind != SEGMENTER
    size = {"shortest_edge": int(height / source.crop_share)}
    low, high = source.config.get("value_range") or (0, 255)
    factor = 1 / (high - low)
    return {
        "image_processor_type": "CLIPImageProcessor",  # the one that resizes, and then crops
        "do_resize": resizes,
        "size": size if is_square else {"height": height, "width": width},
        "resample": 3,  # bicubic
        "do_center_crop": resizes and is_square,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": factor,
        "do_normalize": True,
        "image_mean": [mean + low * factor for mean in source.config["mean"]],
        "image_std": source.config["std"],
        "do_convert_rgb": source.config["in_chans"] == 3,
    }


def _sides(source: Source) -> int | list[int]:
    height, width = source.input_size
    return height if height == width else [height, width]


def labels(source: Source, count: int) -> dict:
    """The classes' names and numbers, as transformers' configurations have them."""
    names = source.classes or [f"LABEL_{i}" for i in range(count)]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


# -------------------------------------------------------------------------------------- encoders


def describe(model: nn.Module, source: Source) -> Described:
    """Of an encoder, or a classifier, as timm builds it."""
    return _swin(model, source) if is_swin(model) else _transformer(model, source)


def _transformer(model: nn.Module, source: Source) -> Described:
    block = model.blocks[0]
    has_scale = not isinstance(getattr(block, "ls1", None) or nn.Identity(), nn.Identity)
    on_mean = isinstance(model.norm, nn.Identity)
    is_beit = model.family == "beit" or has_position_biases(model) or has_scale or on_mean
    if getattr(model, "num_reg_tokens", 0):
        raise UsageError(f"--to huggingface: its ViT has no registers: {OTHERS}")
    weights = dict(model.state_dict())
    if getattr(model, "no_embed_class", False):
        weights["pos_embed"] = keys.zero_class_position(weights["pos_embed"])
    config = {
        "hidden_size": model.embed_dim, "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features, "hidden_act": "gelu",
        "layer_norm_eps": block.norm1.eps, "image_size": _sides(source),
        "patch_size": model.patch_embed.patch_size[0],
        "num_channels": source.config["in_chans"], "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    if is_beit:
        config |= _beit_only(model, weights, on_mean)
    else:
        config |= {"model_type": "vit", "qkv_bias": block.attn.qkv.bias is not None}
    renamed = keys.vit(weights, has_key_bias=not is_beit)
    kind = "Beit" if is_beit else "ViT"
    return _with_head(config, renamed, kind, source, model)


def _beit_only(model: nn.Module, weights: dict[str, Tensor], on_mean: bool) -> dict:
    """What only a BEiT's configuration has; weights that its model needs are added."""
    has_gamma = any(k.endswith((".gamma_1", ".ls1.gamma")) for k in weights)
    if on_mean and "fc_norm.weight" not in weights:
        # A segmenter's encoder has no last norm; this one, after the mean of patches, is new.
        new = nn.LayerNorm(model.embed_dim).state_dict()
        weights |= keys.with_prefix("fc_norm.", new)
    for i in range(len(model.blocks)):
        if f"blocks.{i}.attn.q_bias" in weights or f"blocks.{i}.attn.qkv.bias" in weights:
            continue
        for name in ("q_bias", "v_bias"):  # which BEiT always has
            weights[f"blocks.{i}.attn.{name}"] = model.cls_token.new_zeros(model.embed_dim)
    return {
        "model_type": "beit", "use_mean_pooling": on_mean, "drop_path_rate": 0.0,
        "use_absolute_position_embeddings": "pos_embed" in weights,
        "use_relative_position_bias": any(keys.TABLE in k for k in weights),
        "layer_scale_init_value": 1.0 if has_gamma else 0.0, "use_auxiliary_head": False,
    }  # fmt: skip


def _swin(model: nn.Module, source: Source) -> Described:
    stages = [stage.blocks for stage in model.layers]
    for blocks in stages:
        side, window = blocks[0].input_resolution[0], blocks[0].window_size[0]
        if side % window:
            cell = model.patch_embed.patch_size[0] * 2 ** (len(stages) - 1)
            raise UsageError(
                f"--to huggingface: maps of {side} cells have no whole windows of {window}, and it "
                "fills them up before it shifts them, timm after: give an --input_size of "
                f"{window * cell} pixels at most, or {OTHERS}"
            )
    indices = {
        f"layers.{i}.blocks.{j}.": block.attn.relative_position_index
        for i, blocks in enumerate(stages)
        for j, block in enumerate(blocks)
    }
    config = {
        "model_type": "swin", "image_size": _sides(source),
        "patch_size": model.patch_embed.patch_size[0], "num_channels": source.config["in_chans"],
        "embed_dim": stages[0][0].dim, "depths": [len(blocks) for blocks in stages],
        "num_heads": [blocks[0].attn.num_heads for blocks in stages],
        "window_size": stages[-1][0].attn.window_size[0], "mlp_ratio": 4.0, "qkv_bias": True,
        "hidden_act": "gelu", "layer_norm_eps": stages[0][0].norm1.eps, "drop_path_rate": 0.0,
        "encoder_stride": model.patch_embed.patch_size[0] * 2 ** (len(stages) - 1),
    }  # fmt: skip
    return _with_head(config, keys.swin(model.state_dict(), indices), "Swin", source, model)


def _with_head(
    config: dict, encoder: dict[str, Tensor], kind: str, source: Source, model: nn.Module
) -> Described:
    if source.kind not in (CLASSIFIER, PROBE):
        return config | {"architectures": [f"{kind}Model"]}, encoder
    head = model.get_classifier()
    weights = keys.with_prefix(f"{kind.lower()}.", encoder)
    weights |= keys.with_prefix("classifier.", head.state_dict())
    architectures = [f"{kind}ForImageClassification"]
    return config | labels(source, len(head.weight)) | {"architectures": architectures}, weights


# ------------------------------------------------------------------------------ masked modelling


def _mae(model: nn.Module, source: Source) -> Described:
    weights, masks = model.state_dict(), model.masks
    config, encoder = _transformer(source.encoder(), source)
    if config["model_type"] != "vit":
        raise UsageError(f"--to huggingface: no ViTMAE is such a model: --encoder_only or {OTHERS}")
    ratio = float(source.pretraining("mask_ratio", 0.75))
    if int(masks.num_patches * (1 - ratio)) != masks.num_visible:  # 1 - 0.9 is 0.09999…
        ratio = 1 - (masks.num_visible + 0.5) / masks.num_patches
    decoder = model.decoder_blocks
    return config | {
        "model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"], "mask_ratio": ratio,
        "norm_pix_loss": model.norm_pix_loss,
        "decoder_hidden_size": model.decoder_embed.out_features,
        "decoder_num_hidden_layers": len(decoder),
        "decoder_num_attention_heads": decoder[0].attn.num_heads,
        "decoder_intermediate_size": decoder[0].mlp.fc1.out_features,
    }, keys.with_prefix("vit.", encoder) | keys.vit_decoder(weights)  # fmt: skip


def _simmim(model: nn.Module, source: Source) -> Described:
    if model.norm_pix_loss:
        raise UsageError(
            "--to huggingface: its SimMIM does not normalise the pixels that it predicts: "
            f"--encoder_only or {OTHERS}"
        )
    weights = model.state_dict()
    config, encoder = describe(source.encoder(), source)
    kind = "Swin" if config["model_type"] == "swin" else "ViT"
    config |= {
        "architectures": [f"{kind}ForMaskedImageModeling"], "encoder_stride": model.patch_size
    }  # fmt: skip
    encoder["embeddings.mask_token"] = weights["mask_token"]
    decoder = keys.pixel_decoder(weights, source.config["in_chans"])
    return config, keys.with_prefix(f"{kind.lower()}.", encoder) | decoder


# -------------------------------------------------------------------------------------- segmenter


def describe_segmenter(model: nn.Module, source: Source) -> Described:
    """UperNet on a ViT, which there is a BEiT."""
    if is_swin(model.encoder):
        raise UsageError(
            "--to huggingface: the Swin below its UperNet shifts windows in the last stage, too, "
            f"where one is the whole map: {OTHERS}"
        )
    weights = model.state_dict()
    config, encoder = describe(model.encoder, source)
    backbone = {
        "out_features": [f"stage{i + 1}" for i in model.ids_blocks], "add_fpn": True,
        "batch_norm_eps": 1e-5,
    }  # fmt: skip
    up, double = model.pyramid.levels[:2]
    encoder = {k: v for k, v in encoder.items() if not k.startswith("pooler.")}
    encoder |= keys.with_prefix("fpn1.", up.state_dict())
    encoder |= keys.with_prefix("fpn2.0.", double.state_dict())
    auxiliary = model.auxiliary.conv
    return {
        "model_type": "upernet", "architectures": ["UperNetForSemanticSegmentation"],
        "backbone_config": config | backbone, "hidden_size": model.channels,
        "pool_scales": [1, 2, 3, 6], "use_auxiliary_head": True,
        "auxiliary_in_channels": auxiliary.in_channels,
        "auxiliary_channels": auxiliary.out_channels, "auxiliary_num_convs": 1,
        "auxiliary_concat_input": False, "loss_ignore_index": 255,
    } | labels(source, len(source.classes)), (
        keys.with_prefix("backbone.", encoder) | keys.upernet(weights)
    )  # fmt: skip
