"""Defaults of flags that depend on the data set or the model: one place for all mains.

What the user gives beats the checkpoint's (of downstream mains), which beats the model's, the data
set's and the parser's own, in this order.
"""

from collections.abc import Mapping

from util.data.datasets import DATASETS, IMAGENET_MEAN, IMAGENET_STD


class Share(float):
    """A length as a share of the run: 0.05 is `5%` on a command line."""

    def __str__(self) -> str:
        return f"{100 * self:g}%"


# The encoder that fits a data set's images.
_ENCODERS = {
    "digits": "vit_tiny_patch2", "fashion_mnist": "vit_tiny_patch4", "cifar10": "vit_tiny_patch4",
    "cifar100": "vit_tiny_patch4", "openclipart": "vit_tiny_patch4",
    "openclipart_fine": "vit_tiny_patch4", "stl10": "vit_small_patch16",
    "scenes": "vit_small_patch16", "image_folder": "vit_base_patch16", "flat": "vit_base_patch16",
    "shards": "vit_base_patch16", "csv": "vit_base_patch16", "hugging_face": "vit_base_patch16",
}  # fmt: skip
_FLIPPED = {"digits": False, "fashion_mnist": True, "cifar10": True, "cifar100": True,
            "openclipart": True, "openclipart_fine": True}  # fmt: skip

# Small images: a hard crop would destroy their classes, Adam's rate is for --blr's 256 masked
# samples, and pixels are not normalised.
_SMALL = {
    "pretrain": dict(min_crop=0.8, blr=1e-3, norm_pix_loss=False),
    "linprobe": dict(min_crop=1.0, flip=False, batch_size=64, optimizer="sgd", blr=1.0),
    "finetune": dict(min_crop=0.6),
    # LARS's steps are relative: few of them need a larger rate than the protocol's.
    "evaluate": dict(min_crop=0.8, attentive_blr=[0.1, 1.0, 10.0]),
}  # fmt: skip
# Drawings survive a hard crop.
_OWN = {"pretrain": {name: dict(min_crop=0.3) for name in ("openclipart", "openclipart_fine")}}
# 1415 images of 64 pixels: what ends well within a minute of two cores. Augmentation needs longer.
_DIGITS = {
    "pretrain": dict(epochs=24, warmup_epochs=Share(0.25), batch_size=32, blr=2e-3),
    "finetune": dict(
        epochs=8, warmup_epochs=1, batch_size=32, blr=8e-3, layer_decay=1.0, drop_path=0.0,
        min_crop=1.0, aa="none", reprob=0.0, mixup=0.0, cutmix=0.0,
    ),
}  # fmt: skip

# SimMIM's constructors have these values, too.
SIMMIM = dict(
    num_masks=1, mask_ratio=0.6, lambda_max=0.0, lambda_min=0.0, latent_pool="mean",
    norm_pix_loss=False,
)  # fmt: skip
MISIMMIM = SIMMIM | dict(num_masks=0, lambda_max=1.0, lambda_min=10.0)
_SIMMIM_RECIPE = dict(
    input_size=[192], min_crop=0.67, clip_grad=5.0, betas=[0.9, 0.999], blr=1e-4, blr_samples=512
)
_SIMMIM_ENCODERS = {
    "swin_mini_patch2": dict(input_size=[32], betas=[0.9, 0.999], clip_grad=5.0),
    "swin_tiny": _SIMMIM_RECIPE,
    "swin_small": _SIMMIM_RECIPE,
    "swin_base": _SIMMIM_RECIPE,
    "vit_base_patch16": _SIMMIM_RECIPE | dict(input_size=[224]),
}
# What plain MAE is to the flags of main_pretrain.py, and the encoders that it comes with.
MAE = dict(num_masks=1, lambda_max=0.0, lambda_min=0.0)
VITS = (
    "vit_nano_patch2", "vit_nano_patch7", "vit_tiny_patch2", "vit_tiny_patch4", "vit_tiny_patch7",
    "vit_small_patch16", "vit_base_patch16", "vit_large_patch16", "vit_huge_patch14",
)  # fmt: skip
_BY_MODEL = {
    "pretrain": {f"mae_{encoder}": MAE for encoder in VITS}
    | {
        f"{method}_{encoder}": flags | dict(interpolation="bilinear") | recipe
        for method, flags in (("simmim", SIMMIM), ("misimmim", MISIMMIM))
        for encoder, recipe in _SIMMIM_ENCODERS.items()
    }
}

_PHOTOGRAPHS = dict(
    model="vit_base_patch16", in_chans=3, mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD),
    num_workers=10,
)  # fmt: skip
# Jobs that have one layout of data, and its defaults.
_DENSE = {
    "segmentation": {"ade20k": _PHOTOGRAPHS | dict(input_size=[512])},
    "detection": {"coco": _PHOTOGRAPHS | dict(input_size=[1024])},
}


def by_dataset(job: str) -> dict[str, dict]:
    """The defaults of each data set's flags for a job: `pretrain`, `finetune`, `linprobe`, …"""
    if job in _DENSE:
        return _DENSE[job]
    prefix = "mimae_" if job == "pretrain" else ""
    tables = {}
    for name, info in DATASETS.items():
        table = dict(
            model=prefix + _ENCODERS[name], input_size=[info.input_size], in_chans=info.in_chans,
            mean=list(info.mean), std=list(info.std), num_workers=info.num_workers,
        )  # fmt: skip
        if name in _FLIPPED:
            table |= dict(flip=_FLIPPED[name]) | _SMALL.get(job, {})
        own = _DIGITS.get(job, {}) if name == "digits" else {}
        tables[name] = table | own | _OWN.get(job, {}).get(name, {})
    return tables


def by_model(job: str) -> dict[str, dict]:
    """The defaults that the value of --model brings for a job."""
    return _BY_MODEL.get(job, {})


def in_words(tables: Mapping[str, Mapping[str, object]], name: str) -> str:
    """What the tables say of one flag: `8 of digits, 28 of fashion_mnist`; empty: nothing."""
    owners: dict[str, list[str]] = {}
    for owner, table in tables.items():
        if name in table:
            owners.setdefault(shown(table[name]), []).append(owner)
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in owners.items())


def shown(value: object) -> str:
    """A flag's value as one writes it on the command line."""
    if isinstance(value, list | tuple):
        return " ".join(shown(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if type(value) is float:
        return f"{value:g}"
    return "none" if value in (None, "") else str(value)
