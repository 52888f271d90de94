"""The paper's tables: their rows, what is measured for each, and the numbers that it reports.

A number stands here to be shown beside one that was measured; it never takes its place. Rows whose
`title` says "not in the paper" are controls that we add.
"""

from dataclasses import dataclass, field

# A column is what one kind of run (recipes by `Family`) writes to results.json.
COLUMNS = {
    "FT": "fine-tuned", "LIN": "linear probe", "FT1%": "fine-tuned, 1 %",
    "AP box": "COCO, box AP", "AP mask": "COCO, mask AP", "mIoU": "ADE20K, mIoU",
    "top-1": "ImageNet", "A": "ImageNet-A", "C": "ImageNet-C, mCE",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """The recipes (names of files in recipes/) that evaluate encoders of one architecture."""

    finetune: str
    linprobe: str
    one_percent: str
    detection: str = "vit_base_detection"
    segmentation: str = "vit_base_ade20k"


FAMILIES = {
    "vit_base": Family("vit_base_finetune", "vit_base_linprobe", "vit_base_finetune_1percent"),
    "vit_small": Family("vit_small_finetune", "vit_small_linprobe", ""),
    "swin_base": Family("swin_base_finetune", "swin_base_linprobe", "swin_base_finetune_1percent"),
}


@dataclass(frozen=True)
class Public:
    """A checkpoint that its authors publish, in a layout that encoders/layouts.py can read."""

    file: str
    url: str
    layout: str


@dataclass(frozen=True)
class Row:
    """One row of a table: an encoder, and what the paper reports of it.

    Args:
        key: the row's name for `--rows`.
        recipe: of the pre-training; empty where we do not pre-train it.
        published: the paper's numbers by column, or a word ("collapse") in place of one.
        measured: columns that we measure though the paper does not report them.
        public: a published checkpoint to evaluate with --scale imagenet instead of a recipe.
        from_scratch: start from random weights, with `public` only at the small scales.
        source: where the paper's number comes from, if nobody published a checkpoint.
    """

    key: str
    title: str
    recipe: str = ""
    published: dict[str, float | str] = field(default_factory=dict)
    measured: tuple[str, ...] = ()
    family: str = "vit_base"
    epochs: int | None = None
    public: Public | None = None
    from_scratch: bool = False
    source: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that have something in this row, published or measured."""
        return tuple(dict.fromkeys([*self.published, *self.measured]))


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Args:
        picture: it is drawn as a figure, too.
        of_losses: it compares losses, so how often L_min moves the encoder is told below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    picture: bool = False
    of_losses: bool = False


def _scores(*values: float | None, columns: tuple[str, ...] = ("FT", "LIN", "FT1%")) -> dict:
    return {c: v for c, v in zip(columns, values, strict=False) if v is not None}


# ------------------------------------------------------------------------------ public checkpoints

_FACEBOOK = "https://dl.fbaipublicfiles.com"
_OPENMMLAB = "https://download.openmmlab.com"
DEIT = Public(
    "deit_base_patch16_224-b5f2ef4d.pth",
    f"{_FACEBOOK}/deit/deit_base_patch16_224-b5f2ef4d.pth",
    "timm's ViT",
)
DINO = Public(
    "dino_vitbase16_pretrain.pth",
    f"{_FACEBOOK}/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
    "timm's ViT",
)
MOCO_V3 = Public(
    "vit-b-300ep.pth.tar", f"{_FACEBOOK}/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar", "MoCo v3"
)
BEIT = Public(
    "beit_base_patch16_224_pt1k_800ep.pth",
    "https://github.com/microsoft/unilm/tree/master/beit2 (link in its README)",
    "BEiT",
)
SEMMAE = Public(
    "semmae_vit_base_800ep.pth",
    "https://drive.google.com/file/d/1GaGWNv8I-ADF8e-Bvftgr2k8qNeyLdTJ/view",
    "MAE",
)
MFF = Public(
    "mff_vit-base-p16_8xb512-amp-coslr-800e_in1k_20230801-3af7cd9d.pth",
    f"{_OPENMMLAB}/mmpretrain/v1.0/mff/mff_vit-base-p16_8xb512-amp-coslr-800e_in1k/"
    "mff_vit-base-p16_8xb512-amp-coslr-800e_in1k_20230801-3af7cd9d.pth",
    "mmpretrain's ViT",
)
PIXMIM = Public(
    "pixmim_vit-base-p16_8xb512-amp-coslr-800e_in1k_20230322-e8137924.pth",
    f"{_OPENMMLAB}/mmselfsup/1.x/pixmim/pixmim_vit-base-p16_8xb512-amp-coslr-800e_in1k/"
    "pixmim_vit-base-p16_8xb512-amp-coslr-800e_in1k_20230322-e8137924.pth",
    "mmpretrain's ViT",
)


# ------------------------------------------------------------------------------------------ tables

MAE_0, MAE_800, MAE_1600 = "mae_vit_base_0ep", "mae_vit_base_800ep", "mae_vit_base_1600ep"
MIMAE_200, MIMAE_400 = "mimae_vit_base_200ep", "mimae_vit_base_400ep"


def _controls(*columns: str) -> tuple[Row, Row]:
    """What a pre-training is to beat: the evaluation's own random weights, and MAE's.

    The two differ in how the weights are drawn, and in that the latter are fine-tuned with the
    recipe of pre-trained ones, its layer decay too.
    """
    return (
        Row("scratch", "no pre-training (not in the paper)", measured=columns, from_scratch=True),
        Row("initialisation", "MAE's initialisation, 0 steps (not in the paper)", MAE_0,
            measured=columns, epochs=0),
    )  # fmt: skip


TABLE1 = Table(
    "Table 1: ImageNet-1k",
    ("FT", "LIN", "FT1%"),
    (
        Row("supervised", "Supervised", published=_scores(81.8), public=DEIT, from_scratch=True),
        Row("dino", "DINO", "", _scores(82.8, 78.2), ("FT1%",), epochs=800, public=DINO),
        Row("moco_v3", "MoCo v3", "", _scores(83.2, 76.7, 63.4), epochs=300, public=MOCO_V3),
        Row("beit", "BEiT", "", _scores(83.2), ("LIN", "FT1%"), epochs=800, public=BEIT),
        Row("c_mae", "C-MAE", "", _scores(83.2), epochs=400, source="arXiv 2208.04164"),
        Row("semmae", "SemMAE", "", _scores(83.3, 65.0), ("FT1%",), epochs=800, public=SEMMAE),
        Row("mff", "MFF", "", _scores(83.6, 67.0, 48.0), epochs=800, public=MFF),
        Row("mae_800", "MAE", MAE_800, _scores(83.3, 65.6, 45.4), epochs=800),
        Row("mimae_200", "MI-MAE", MIMAE_200, _scores(83.9, 67.9, 48.2), epochs=200),
        Row("mae_1600", "MAE", MAE_1600, _scores(83.6, 68.0, 51.1), epochs=1600),
        Row("mimae_400", "MI-MAE", MIMAE_400, _scores(84.1, 69.3, 52.3), epochs=400),
        Row("pixmim", "PixMIM", "", _scores(83.5, 67.2, 47.9), epochs=800, public=PIXMIM),
        Row("simmim", "SimMIM", "simmim_swin_base_800ep", _scores(83.8, 56.7), ("FT1%",),
            "swin_base", 800),
        Row("misimmim", "MI-SimMIM", "misimmim_swin_base_400ep", _scores(84.1, 59.1, 49.1), (),
            "swin_base", 400),
        *_controls("FT", "LIN", "FT1%"),
    ),
    "Accuracy in percent. Supervised: ViT-B's own accuracy, DeiT's; the other rows are encoders.",
)  # fmt: skip

_DENSE = ("AP box", "AP mask", "mIoU")
TABLE2 = Table(
    "Table 2: COCO and ADE20K",
    _DENSE,
    (
        Row("supervised", "Supervised", "", _scores(47.9, 42.9, 47.4, columns=_DENSE),
            public=DEIT, from_scratch=True),
        Row("moco_v3", "MoCo v3", "", _scores(47.9, 42.7, 47.3, columns=_DENSE), epochs=300,
            public=MOCO_V3),
        Row("beit", "BEiT", "", _scores(49.8, 44.4, 47.1, columns=_DENSE), epochs=800,
            public=BEIT),
        Row("mae_1600", "MAE", MAE_1600, _scores(51.2, 45.5, 48.1, columns=_DENSE), epochs=1600),
        Row("mimae_400", "MI-MAE", MIMAE_400, _scores(52.0, 46.1, 49.3, columns=_DENSE),
            epochs=400),
        *_controls(*_DENSE),
    ),
    "Average precision and mean intersection over union, in percent.",
)  # fmt: skip


def _ablation(key: str, title: str, recipe: str, ft: float | str | None = None) -> Row:
    published, measured = ({"FT": ft}, ()) if ft is not None else ({}, ("FT",))
    if key in ("a", "c"):  # what shows a collapse
        measured = ("LIN",)
    return Row(key, title, recipe, published, measured)


BASELINE, FULL = "table3/a_mae", "table3/f_mimae"
TABLE3A = Table(
    "Table 3a: losses",
    ("FT", "LIN"),
    (
        _ablation("a", "(a) L_rec: MAE", BASELINE, 82.2),
        _ablation("b", "(b) L_rec, L_max", "table3/b_max", 82.5),
        _ablation("c", "(c) L_max", "table3/c_max_only", "collapse"),
        _ablation("d", "(d) L_rec, L_max, L_min, without L_apx",
                  "table3/d_untrained_approximation", 82.4),
        _ablation("e", "(e) L_rec, L_min, L_apx", "table3/e_min", 82.4),
        _ablation("f", "(f) all: MI-MAE", FULL, 82.8),
        _ablation("control_orthogonal", "four orthogonal masks, L_rec (not in the paper)",
                  "table3/control_orthogonal"),
        _ablation("control_independent", "four independent masks, L_rec (not in the paper)",
                  "table3/control_independent"),
    ),
    "The linear probes, which the paper does not report, tell a collapse.",
    of_losses=True,
)  # fmt: skip
TABLE3B = Table(
    "Table 3b: weights of the losses",
    ("FT",),
    tuple(
        _ablation(f"lambda_{low}_{high}", f"λ1 = {low}, λ2 = {high}",
                  FULL if (low, high) == ("1", "10") else f"table3/lambda_{low}_{high}", ft)
        for low, high, ft in (
            ("1", "1", 82.6), ("1", "10", 82.8), ("1", "20", 82.7), ("0.1", "10", 82.5),
            ("0.5", "10", 82.7), ("10", "10", 82.6),
        )
    ),
)  # fmt: skip
TABLE3C = Table(
    "Table 3c: masks",
    ("FT",),
    (
        _ablation("independent", "independent", "table3/independent", 82.6),
        _ablation("orthogonal", "orthogonal", FULL, 82.8),
    ),
)
TABLE4 = Table(
    "Table 4: models",
    ("FT", "LIN"),
    (
        Row("vit_base_mae", "ViT-B, MAE", MAE_800, _scores(83.3, 65.6), epochs=800),
        Row("vit_base_mimae", "ViT-B, MI-MAE", MIMAE_200, _scores(83.9, 67.9), epochs=200),
        Row("vit_small_mae", "ViT-S, MAE", "mae_vit_small_800ep", _scores(78.4, 50.5), (),
            "vit_small", 800),
        Row("vit_small_mimae", "ViT-S, MI-MAE", "mimae_vit_small_200ep", _scores(79.8, 53.1), (),
            "vit_small", 200),
    ),
)  # fmt: skip
_ROBUST = ("top-1", "A", "C")
TABLE5 = Table(
    "Table 5: robustness",
    _ROBUST,
    (
        Row("mae_800", "MAE", MAE_800, _scores(83.3, 35.9, 51.7, columns=_ROBUST), epochs=800),
        Row(
            "mimae_200", "MI-MAE", MIMAE_200, _scores(83.9, 37.4, 49.5, columns=_ROBUST), epochs=200
        ),
        *_controls(*_ROBUST),
    ),
    "ImageNet and ImageNet-A: accuracy in percent. ImageNet-C: mCE, the less the better.",
)
RATIOS = ("0.5", "0.6", "0.75", "0.9")
KINDS_OF_MASKS = {"complete": "complete masks", "four": "four masks"}
FIGURE2 = Table(
    "Figure 2 and Section 5.3: mask ratio and number of masks",
    ("FT",),
    (
        *(
            _ablation(f"{kind}_{ratio}", f"ratio {ratio}, {title}",
                      FULL if ratio == "0.75" else f"figure2/{kind}_{ratio}")
            for kind, title in KINDS_OF_MASKS.items()
            for ratio in RATIOS
        ),
        _ablation("masks_2", "ratio 0.75, 2 masks (not in the paper)", "figure2/masks_2"),
        _ablation("masks_3", "ratio 0.75, 3 masks", "figure2/masks_3", 82.9),
        _ablation("masks_5", "ratio 0.75, 5 masks", "figure2/masks_5", 82.7),
    ),
    "The figure's values are lost from our text, and which numbers of masks 82.9 and 82.7 belong "
    "to: 3 and 5 are our reading.",
    picture=True,
)  # fmt: skip

TABLES = {
    "table1": TABLE1, "table2": TABLE2, "table3a": TABLE3A, "table3b": TABLE3B, "table3c": TABLE3C,
    "table4": TABLE4, "table5": TABLE5, "figure2": FIGURE2,
}  # fmt: skip
