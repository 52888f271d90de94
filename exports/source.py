"""What a checkpoint holds, whoever wrote it, as the models of this project that are exported.

C channels, H x W pixels, D the encoder's width.
"""

import argparse
import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from encoders.load import (
    SIZES,
    architecture,
    build_backbone,
    build_encoder,
    build_for,
    load_classifier,
    load_pretrained,
    model_name,
)
from encoders.swin import SIZES as SWINS
from encoders.swin import convert_simmim, is_swin
from encoders.vit import Pretrained, encoder_name
from util.checks import image_size
from util.data.datasets import DATASETS
from util.errors import UsageError
from util.flags.defaults import SIMMIM, shown
from util.weights.fit import load_weights

log = logging.getLogger(__name__)

ENCODER, MAE, SIMMIM_KIND, CLASSIFIER = "encoder", "MAE", "SimMIM", "classifier"
PROBE, SEGMENTER, DETECTOR = "linear probe", "segmenter", "detector"
BIAS_TABLE = ".attn.relative_position_bias_table"


class Source:
    """A checkpoint that is exported.

    Args:
        path: a file or folder of any layout in `encoders.layouts.LAYOUTS`.
        encoder_only: leave out the decoder, head or segmenter that it has.
        input_size, mean, std, num_heads: what the user says, in place of what the file does.

    Attributes:
        kind: one of the constants above. config: `model`, `input_size` (height, width),
        `in_chans`, `mean`, `std` and, where they are known, what else the file tells.
        flags: of the run that wrote it.

    Raises:
        UsageError: a file that cannot be read, or that does not tell what an export needs.
    """

    def __init__(
        self, path: str, encoder_only: bool = False, input_size: Sequence[int] | None = None,
        mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
        num_heads: int | None = None,
    ):  # fmt: skip
        self.path = path
        self.pretrained = Pretrained(path, num_heads, "CHECKPOINT")
        self._check_config()
        self.layout = self.pretrained.foreign.layout
        self.run = self.pretrained.foreign.run
        self.flags = {**self.pretrained.foreign.flags}
        self.weights, self.raw = self.pretrained.weights, self.pretrained.raw
        self.whole_kind = self._kind()
        if encoder_only and self.whole_kind == DETECTOR:
            raise UsageError(
                f"--encoder_only: {path} is a detector, whose encoder attends in windows: export "
                "the checkpoint that it began with"
            )
        self.kind = ENCODER if encoder_only else self.whole_kind
        told = self.pretrained.encoder_config()
        self.is_assumed = not self.pretrained.is_ours and (
            self.pretrained.foreign.normalization is None and not (mean and std)
        )
        self.config = told | {"model": model_name(self.pretrained)}
        for name, given in (("mean", mean), ("std", std)):
            values = list(given or self.config.get(name) or [])
            values = values * self.config["in_chans"] if len(values) == 1 else values
            if len(values) != self.config["in_chans"]:
                raise UsageError(
                    f"{path} does not tell the {name} of its {self.config['in_chans']} channels: "
                    f"give --{name} with one number, or one per channel"
                )
            values = [float(value) for value in values]
            if self.pretrained.is_ours and values != told.get(name, values):
                log.warning(
                    "--%s %s as asked, not the checkpoint's %s", name, shown(values),
                    shown(told[name]),
                )  # fmt: skip
            self.config[name] = values
        self.trained_size = self._trained_size()
        size = input_size or self.trained_size
        if size is None:
            raise UsageError(f"{path} does not tell the size of its images: give --input_size")
        self.config["input_size"] = list(image_size(size, 1))
        self.args = argparse.Namespace(
            **{name: self.config[name] for name in ("model", "input_size", "in_chans")},
            drop_path=0.0, grad_checkpointing=False, num_heads=num_heads,
        )  # fmt: skip

    def _check_config(self) -> None:
        """Refuse what says that it is this project's, and is not."""
        config = self.pretrained.config
        if not self.pretrained.is_ours:
            return
        name = encoder_name(str(config["model"]))
        is_known = name in SIZES or isinstance(config.get("architecture"), dict)
        absent = [key for key in ("input_size", "in_chans") if not config.get(key)]
        if not is_known or absent:
            what = f"names no {absent[0]}" if absent else f"is of a model {name}"
            raise UsageError(f"{self.path} {what}: it is no checkpoint of this project")

    def _kind(self) -> str:
        config = self.pretrained.config
        if "first_class" in config:
            return SEGMENTER
        if "category_ids" in config:
            return DETECTOR
        if "head.0.running_mean" in self.raw:
            return PROBE
        if "head.weight" in self.weights or "head.fc.weight" in self.weights:
            return CLASSIFIER
        if "decoder_pred.weight" not in self.weights:
            return ENCODER
        return MAE if "decoder_blocks.0.norm1.weight" in self.weights else SIMMIM_KIND

    def _trained_size(self) -> list[int] | None:
        """The (height, width) of the images that the weights are for; None: not told."""
        if self.pretrained.is_ours:
            return list(image_size(self.pretrained.config["input_size"], 1))
        if "input_size" in self.config:
            return self.config["input_size"]
        table = next((v for k, v in self.weights.items() if k.endswith(BIAS_TABLE)), None)
        if table is None:
            return None
        side = (round((len(table) - 3) ** 0.5) + 1) // 2  # a BEiT's: 3 are of the class token
        return [side * self.weights["patch_embed.proj.weight"].shape[-1]] * 2

    def leave_out_decoder(self) -> list[str]:
        """For what holds an encoder alone: be one, and say so."""
        if self.kind not in (MAE, SIMMIM_KIND):
            return []
        self.kind = ENCODER
        return ["the decoder is left out"]

    @property
    def input_size(self) -> tuple[int, int]:
        return tuple(self.config["input_size"])

    @property
    def classes(self) -> list[str] | None:
        """The classes' names, where the checkpoint has them."""
        return self.pretrained.classes()

    @property
    def crop_share(self) -> float:
        """The share of a resized image that evaluation's centre crop keeps: what a folder of timm's
        or transformers' says, else the data set's."""
        config = self.pretrained.config
        known = DATASETS.get(self.config.get("dataset"), DATASETS["image_folder"])
        timm, size, crop = (config.get(n) for n in ("pretrained_cfg", "size", "crop_size"))
        if isinstance(timm, dict) and timm.get("crop_pct"):
            return float(timm["crop_pct"])
        if isinstance(size, int):  # transformers' old form: resized to this square, then cut
            cut = config.get("do_center_crop")
            crop = crop.get("height", size) if isinstance(crop, dict) else crop or size
            return min(1.0, crop / size) if cut else 1.0
        if isinstance(size, dict) and "height" in size:
            return 1.0
        if isinstance(size, dict) and isinstance(crop, dict) and size.get("shortest_edge"):
            return min(1.0, crop.get("height", 0) / size["shortest_edge"]) or known.crop_share
        return known.crop_share

    def pretraining(self, name: str, default: object) -> object:
        """What the file says of its pre-training: a flag's value, or its configuration's."""
        found = self.flags.get(name)
        return self.pretrained.config.get(name, default) if found is None else found

    def images(self, count: int, seed: int = 0) -> Tensor:
        """Noise in place of normalised images, [count, C, H, W]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, self.config["in_chans"], *self.input_size, generator=generator)

    # ------------------------------------------------------------------------------------ models

    def encoder(self) -> nn.Module:
        """timm's model without a head, which has this checkpoint's weights, in eval mode."""
        if self.whole_kind == SEGMENTER:
            found = architecture(self.pretrained, self.args.model)
            return build_backbone(self.pretrained, self.args, known=found).eval()
        model = build_for(self.pretrained, self.args).eval()
        self._check_windows(model)
        return model

    def _check_windows(self, model: nn.Module) -> None:
        """Refuse a Swin whose windows this project's would not have at the size it was made for."""
        if not is_swin(model) or list(self.input_size) != list(self.trained_size or []):
            return
        own = model.state_dict()
        other = [
            key
            for key, table in convert_simmim(self.weights).items()
            if key.endswith(BIAS_TABLE) and key in own and table.shape != own[key].shape
        ]
        if other:
            raise UsageError(
                f"{self.path} has other windows than this project's Swins of its size "
                f"({other[0]}): its export would be another model"
            )

    def classifier(self) -> nn.Module:
        """timm's model with the checkpoint's head, images -> logits, in eval mode.

        The BatchNorm of a linear probe is folded into its linear layer.
        """
        if self.kind == CLASSIFIER:
            return load_classifier(self.pretrained, self.args).eval()
        weight, bias = self.raw["head.1.weight"], self.raw["head.1.bias"]
        mean, var = self.raw["head.0.running_mean"], self.raw["head.0.running_var"]
        model = build_encoder(
            self.args.model, len(weight), self.input_size, self.args.in_chans,
            global_pool="fc_norm.weight" in self.weights,
            architecture=architecture(self.pretrained, self.args.model),
        )  # fmt: skip
        load_pretrained(self.pretrained, model)
        weight = weight / (var + 1e-6).sqrt()  # [classes, D], the probe's eps
        head = model.get_classifier()
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias - weight @ mean)
        return model.eval()

    def model(self) -> nn.Module:
        """The classifier of a checkpoint that has one, else its encoder: timm's, in eval mode."""
        return self.classifier() if self.kind in (CLASSIFIER, PROBE) else self.encoder()

    def segmenter(self) -> nn.Module:
        """UperNet on its encoder, images -> logits [B, classes, h, w], in eval mode."""
        from heads.upernet import UperNet

        found = architecture(self.pretrained, self.args.model)
        encoder = build_backbone(self.pretrained, self.args, load=False, known=found)
        channels = self.pretrained.config.get("decoder_channels")
        model = UperNet(encoder, len(self.classes), channels)
        load_weights(model, self.raw, self.path)
        return model.eval()

    def masked(self) -> nn.Module:
        """MAE or SimMIM with one mask for each image and this checkpoint's decoder, in eval mode.

        Raises:
            UsageError: another size than the decoder's positions are for, or a Swin whose size
                this project does not have.
        """
        if list(self.input_size) != list(self.trained_size):
            raise UsageError(
                f"--input_size {self.input_size[0]} {self.input_size[1]} is not the decoder's: "
                "give --encoder_only, too"
            )
        model = self._mae() if self.kind == MAE else self._simmim()
        own = model.state_dict()
        load_weights(model, {k: v for k, v in self.weights.items() if k in own}, self.path)
        return model.eval()

    def _mae(self) -> nn.Module:
        from models_mae import SIZES, MAEViT

        vit, weights = self.encoder(), self.weights
        heads = SIZES.get(self.args.model, {}).get("decoder_num_heads", 16)  # 16: MAE's
        heads = self.pretrained.config.get("decoder_num_attention_heads", heads)
        depth = len({k.split(".")[1] for k in weights if k.startswith("decoder_blocks.")})
        return MAEViT(
            self.input_size, vit.patch_embed.patch_size[0], self.args.in_chans, vit.embed_dim,
            len(vit.blocks), vit.blocks[0].attn.num_heads,
            len(weights["decoder_embed.weight"]), depth, heads,
            mlp_ratio=len(weights["blocks.0.mlp.fc1.weight"]) / vit.embed_dim,
            norm_layer=partial(nn.LayerNorm, eps=vit.blocks[0].norm1.eps),
            mask_ratio=self.pretraining("mask_ratio", 0.75),
            norm_pix_loss=bool(self.pretraining("norm_pix_loss", False)),
        )  # fmt: skip

    def _simmim(self) -> nn.Module:
        from encoders.vit import SIZES as VITS
        from models_simmim import SimMIMSwin, SimMIMViT

        options = SIMMIM | dict(
            img_size=self.input_size, in_chans=self.args.in_chans,
            mask_ratio=self.pretraining("mask_ratio", 0.6),
            norm_pix_loss=bool(self.pretraining("norm_pix_loss", False)),
        )  # fmt: skip
        name = self.args.model
        if name in SWINS:
            return SimMIMSwin(name, **options)
        if name in VITS:
            return SimMIMViT(**VITS[name], **options)
        raise UsageError(f"{self.path}: its decoder is for a model of another size: --encoder_only")
