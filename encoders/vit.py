"""The ViT for downstream use, as timm builds it, and weights of any layout to load into it."""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from encoders.grids import in_words
from encoders.layouts import IMAGENET, open_encoder
from encoders.pos_embed import interpolate_pos_embed
from encoders.position_bias import TABLE, add_position_biases
from encoders.swin import size_of_tables
from util.checks import image_size
from util.errors import UsageError
from util.weights.fit import differences, require_finite

log = logging.getLogger(__name__)

NORM = partial(nn.LayerNorm, eps=1e-6)

# `tiny` and `nano` are our choice, for images of 8 to 32 pixels on a CPU too.
SIZES = {
    "vit_nano_patch2": dict(patch_size=2, embed_dim=64, depth=6, num_heads=2),
    "vit_nano_patch7": dict(patch_size=7, embed_dim=64, depth=6, num_heads=2),
    "vit_tiny_patch2": dict(patch_size=2, embed_dim=128, depth=6, num_heads=4),
    "vit_tiny_patch4": dict(patch_size=4, embed_dim=128, depth=6, num_heads=4),
    "vit_tiny_patch7": dict(patch_size=7, embed_dim=128, depth=6, num_heads=4),
    "vit_small_patch16": dict(patch_size=16, embed_dim=384, depth=12, num_heads=6),
    "vit_base_patch16": dict(patch_size=16, embed_dim=768, depth=12, num_heads=12),
    "vit_large_patch16": dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16),
    "vit_huge_patch14": dict(patch_size=14, embed_dim=1280, depth=32, num_heads=16),
}

# What a ViT has that segmentation has added to it, by the ends of the names.
ADDED = (TABLE, ".ls1.gamma", ".ls2.gamma")
# What a pre-training checkpoint has and an encoder has not.
PRETRAINING_ONLY = (
    "decoder_", "mask_token", "approximation.", "mi_head.", "lm_head.", "cls_pt_layers.",
)  # fmt: skip


def build_vit(
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
    """A ViT classifier, images [B, C, H, W] -> logits [B, num_classes].

    Args:
        global_pool: classify the mean of the patch tokens, normed after pooling; else the class
            token of the normed tokens. As in MAE.
        drop_path: the last block's rate of dropped residuals, rising linearly over the blocks.
        architecture: of a model that `SIZES` does not have, as `encoders.layouts` describes it;
            with `rel_pos_bias` each block has a table of relative position biases.
        any_size: take images of other sizes, too, for which position embeddings are resampled.
    """
    from timm.models.vision_transformer import VisionTransformer

    size = dict(architecture or SIZES[name])
    has_biases = size.pop("rel_pos_bias", False)
    norm = partial(nn.LayerNorm, eps=size.pop("eps", NORM.keywords["eps"]))
    options = {k: v for k, v in size.items() if k != "family"}
    model = VisionTransformer(
        img_size=image_size(img_size, size["patch_size"]), in_chans=in_chans,
        num_classes=num_classes, global_pool="avg" if global_pool else "token",
        fc_norm=global_pool, drop_path_rate=drop_path, norm_layer=norm,
        dynamic_img_size=any_size, **options,
    )  # fmt: skip
    model.set_grad_checkpointing(grad_checkpointing)
    if has_biases:
        add_position_biases(model)
    spare_tokens(model)
    model.family = "vit"
    return model


def spare_tokens(model: nn.Module) -> None:
    """Let no token decay, nor a position: timm 1.0.16 does not name registers among them."""
    tokens = {name for name, p in model.named_parameters(recurse=False) if p.ndim == 3}
    exempt = set(model.no_weight_decay()) | tokens
    model.no_weight_decay = lambda: exempt


def layer_of(name: str, depth: int) -> int:
    """The layer of a parameter for layer decay: 0 embeddings, i + 1 block i, depth + 1 the rest."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    if name.startswith(("cls_token", "reg_token", "pos_embed", "patch_embed.")):
        return 0
    return depth + 1


def encoder_name(pretraining_name: str) -> str:
    """`mimae_vit_base_patch16` -> `vit_base_patch16`; a name of an encoder stays as it is."""
    method, _, encoder = pretraining_name.partition("_")
    return encoder if method in ("mimae", "mae", "simmim", "misimmim") else pretraining_name


class Pretrained:
    """A checkpoint's weights with what is known of the model that they came from.

    Args:
        path: a file or folder of any layout in `encoders.layouts.LAYOUTS`.
        num_heads: attention heads, where the file does not tell.
        flag: that names the file, for errors.

    Raises:
        UsageError: a file that cannot be read, or holds no weights of a layout that is known.
    """

    def __init__(self, path: str, num_heads: int | None = None, flag: str = "--finetune"):
        self.foreign = open_encoder(path, flag)
        self.path, self.num_heads = path, num_heads
        self.config = self.foreign.config
        self.is_ours = "model" in self.config
        self.weights: dict[str, Tensor] = dict(self.foreign.weights)
        self.raw = self.foreign.raw  # under the file's own names

    def architecture(self) -> dict:
        """The model, as `encoders.layouts.Foreign.architecture` describes it."""
        return self.foreign.architecture(self.num_heads)

    def classes(self) -> list[str] | None:
        """The names of the logits, in their order, where this project, timm or transformers has
        written them."""
        names = self.config.get("classes") or self.config.get("label_names")
        labels = self.config.get("id2label")
        if not names and isinstance(labels, dict):
            names = [labels[key] for key in sorted(labels, key=int)]
            names = None if names == [f"LABEL_{i}" for i in range(len(names))] else names
        return [str(name) for name in names] if names else None

    def encoder_config(self) -> dict[str, object]:
        """`in_chans`, `input_size`, `mean` and `std` of the encoder, as far as they are known.

        Other people's have seen ImageNet's mean and std where their files do not say otherwise.
        """
        if self.is_ours:
            return dict(self.config)
        kernel = self.weights["patch_embed.proj.weight"]
        config: dict[str, object] = {"in_chans": kernel.shape[1]}
        said = self.foreign.normalization
        if said is None and kernel.shape[1] == 3:
            log.warning(
                "%s does not tell its images' mean and std: ImageNet's are used; for timm's "
                "augreg models and a fine-tuned BEiT (not v2), give --mean 0.5 "
                "--std 0.5",
                self.path,
            )
            said = IMAGENET
        if said is not None and len(said[0]) == kernel.shape[1]:  # a layout's are of three
            config |= {"mean": list(said[0]), "std": list(said[1])}
        found, told = self.foreign.grid(), self.foreign.told_sizes()
        if found is not None:
            config["input_size"] = [n * p for n, p in zip(found[1], kernel.shape[2:], strict=True)]
        elif "pos_embed" not in self.weights and told:
            config["input_size"] = list(told[0])
        elif (side := size_of_tables(self.weights)) is not None:
            config["input_size"] = [side, side]
        return config

    def load_into(self, model: nn.Module) -> None:
        """Load what fits, with the position embedding interpolated; log what did not.

        Raises:
            UsageError: a checkpoint of another architecture, or with a weight that is not finite;
                the line says which keys and shapes.
        """
        own = model.state_dict()
        weights = dict(self.weights)
        old = weights.get("pos_embed")
        if old is not None and "pos_embed" in own and old.shape[2:] == own["pos_embed"].shape[2:]:
            weights["pos_embed"] = self._fit_pos_embed(weights["pos_embed"], model)
        ignored = [k for k in weights if k.startswith(PRETRAINING_ONLY)]
        ignored += [k for k in weights if k.startswith("head.") and own.keys() >= {k}
                    and weights[k].shape != own[k].shape]  # fmt: skip
        for key in ignored:
            del weights[key]
        missing, left_over, wrong = differences(own, weights)
        new = ("head.", "fc_norm.")
        # What a ViT is given for segmentation begins anew where a file has none of it at all.
        added = tuple(end for end in ADDED if not any(key.endswith(end) for key in weights))
        wrong += [
            f"{k} is missing"
            for k in missing
            if not k.startswith(new) and not (added and k.endswith(added))
        ]
        wrong += [f"{k} is unknown" for k in left_over if not k.startswith(("norm.", *new))]
        if wrong:
            raise UsageError(
                f"{self.foreign.named} is of another architecture, {len(wrong)} differences: "
                f"{'; '.join(wrong[:3])}. Check --model, --in_chans, --input_size "
                "and --global_pool or --cls_token" + self._advice(missing)
            )
        require_finite(weights, self.foreign.named)
        model.load_state_dict(weights, strict=False)
        log.info(
            "loaded %s, layout: %s; taken: %d tensors; new: %s; left over: %s",
            self.path, self.foreign.layout, len(own) - len(missing), _named(missing),
            _prefixes(ignored + left_over + self.foreign.left_over),
        )  # fmt: skip

    def _advice(self, missing: list[str]) -> str:
        if "norm.weight" in missing and "fc_norm.weight" in self.weights:
            return "; it was fine-tuned with --global_pool"
        return ""

    def _fit_pos_embed(self, pos_embed: Tensor, model: nn.Module) -> Tensor:
        """Positions for the model's grid; every change of the grid is interpolated and logged."""
        grid = tuple(model.patch_embed.grid_size)
        num_prefix = model.pos_embed.shape[1] - model.patch_embed.num_patches
        old = self._grid(pos_embed.shape[1] - num_prefix)
        if old is None and pos_embed.shape == model.pos_embed.shape:
            log.info("position embedding: taken as %s patches, which the file does not tell",
                     in_words(grid))  # fmt: skip
            return pos_embed
        if old is None:
            raise UsageError(
                f"{self.foreign.named}: {pos_embed.shape[1] - num_prefix} patches have positions "
                "and do not form a square grid: give the --input_size that it was trained with"
            )
        if old != grid:
            log.info("position embedding: %s -> %s patches", in_words(old), in_words(grid))
        return interpolate_pos_embed(pos_embed, old, grid)

    def _grid(self, num_patches: int) -> tuple[int, int] | None:
        """The grid of the file's positions; None where it does not tell one that is no square."""
        if self.config.get("grid"):
            return tuple(self.config["grid"])
        found = self.foreign.grid()
        if found is not None and found[1][0] * found[1][1] == num_patches:
            return found[1]
        return None


def _named(keys: list[str]) -> str:
    """Parameters by the modules that they are of, those of blocks by their name in each."""
    inside = {".".join(["blocks.*", *k.split(".")[2:]]) for k in keys if k.startswith("blocks.")}
    outside = {k.split(".")[0] for k in keys if not k.startswith("blocks.")}
    return ", ".join([*sorted(outside), *sorted(inside)]) or "none"


def _prefixes(keys: list[str]) -> str:
    return ", ".join(sorted({key.split(".")[0] for key in keys})) or "none"


class Features(nn.Module):
    """What a classifier's head sees: images [B, C, H, W] -> features [B, D]."""

    def __init__(self, vit: nn.Module):
        super().__init__()
        self.vit = vit

    def forward(self, imgs: Tensor) -> Tensor:
        return self.vit.forward_head(self.vit.forward_features(imgs), pre_logits=True)


class Pixels(nn.Module):
    """The images themselves as features [B, C·H·W]: the baseline of every representation."""

    def forward(self, imgs: Tensor) -> Tensor:
        return imgs.flatten(1)


class LinearProbe(nn.Module):
    """A frozen encoder, always in eval mode, under a trained head: images -> logits.

    The head is BatchNorm without affine parameters and a linear layer, as in MAE.
    """

    def __init__(self, encoder: nn.Module, dim: int, num_classes: int):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        self.head = nn.Sequential(nn.BatchNorm1d(dim, affine=False, eps=1e-6), linear)

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, imgs: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.encoder(imgs)
        return self.head(features.float())
