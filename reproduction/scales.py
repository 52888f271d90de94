"""What a recipe becomes at each scale: ImageNet as in the paper, Fashion-MNIST, or digits."""

import argparse
import os
from dataclasses import dataclass, field

import submitit_launch
from models_mimae import resolve_num_masks
from util.flags.defaults import Share

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

MAINS = {  # by the kind of a run
    "scenes": "tools.scenes", "pretrain": "main_pretrain", "finetune": "main_finetune",
    "linprobe": "main_linprobe", "one_percent": "main_finetune", "detection": "main_detection",
    "segmentation": "main_segmentation", "top1": "main_robustness",
    "robustness": "main_robustness", "evaluate": "main_evaluate",
}  # fmt: skip
MODELS = dict(vit_base="vit_base_patch16", vit_small="vit_small_patch16", swin_base="swin_base")
UNTRAINED = ("robustness", "top1", "evaluate")  # kinds without a training batch
NEEDS = {  # flags of the data of a column, at the scale of ImageNet; of the others --imagenet
    "FT1%": ("imagenet", "one_percent_list"), "AP box": ("coco",), "AP mask": ("coco",),
    "mIoU": ("ade20k",), "A": ("imagenet", "imagenet_a"), "C": ("imagenet", "imagenet_c"),
}  # fmt: skip

Words = list[str]


def shown_path(path: str) -> str:
    """The path relative to the code's folder, where commands run, if it lies in there."""
    path = os.path.abspath(path)
    return os.path.relpath(path, ROOT) if path.startswith(ROOT + os.sep) else path


def recipe_word(recipe: str) -> str:
    """A recipe as the word @FILE of a command line that runs in the code's folder."""
    return f"@recipes/{recipe}.args"


def recipe_path(recipe: str) -> str:
    """Where a recipe's file is, whatever the folder one stands in."""
    return os.path.join(ROOT, recipe_word(recipe)[1:])


def recipe_values(kind: str, recipe: str) -> argparse.Namespace:
    """The values of all flags of a kind of run, as its recipe sets them or by default."""
    parser = submitit_launch.MAINS[MAINS[kind]].get_args_parser()
    return parser.parse_args([f"@{recipe_path(recipe)}"])


@dataclass(frozen=True)
class SmallScale:
    """Runs for a test of the claims without ImageNet: other images, smaller models, fewer epochs.

    Each recipe is followed by recipes/NAME/KIND.args, whose flags win.

    Args:
        share: passes over the images (each mask counted) as a share of the recipe's; as a whole
            number, that many passes of every pre-training, so that a short one learns, too.
        samples: masked samples in a pre-training step, images times masks.
        models: the small model in place of each of the recipes' models.
        scenes: flags of tools.scenes, which makes the images for detection and segmentation.
        data: the images, in words.
        left_out: by table, keys of the rows that run only where --rows names them.
        stand_ins: by recipe, another one whose run is the same at this scale, but perhaps for its
            warm-up's share.
        seconds_a_run: of one core, the mean over the runs of `all` (RESULTS.md).
    """

    name: str
    share: float | int
    samples: int
    models: dict[str, str]
    scenes: str
    data: str
    left_out: dict[str, Words] = field(default_factory=dict)
    stand_ins: dict[str, str] = field(default_factory=dict)
    seconds_a_run: float = 0.0

    @property
    def note(self) -> str:
        """What its tables say of the pre-trainings' lengths; empty where epochs tell them."""
        if not isinstance(self.share, int):
            return ""
        return (
            f"Every pre-training makes {self.share} passes over the images, each mask counted, "
            "whatever the epochs of its row: rows that differ in nothing else are one run."
        )

    def pretrain(self, recipe: str) -> tuple[Words, float]:
        """The flags that follow the recipe, and how many passes over the images the run makes."""
        args = recipe_values("pretrain", recipe)
        method, _, model = args.model.partition("_")
        num_masks = resolve_num_masks(args.num_masks, args.mask_ratio)
        passes = self.share if isinstance(self.share, int) else _passes(args) * self.share
        epochs = max(1, round(passes / num_masks)) if args.epochs else 0
        words = self._overlay("simmim" if model.startswith("swin") else "pretrain")
        words += ["--model", f"{method}_{self.models[model]}", "--epochs", str(epochs)]
        if args.epochs and not isinstance(args.warmup_epochs, Share):  # the same at all scales
            words += ["--warmup_epochs", f"{epochs * args.warmup_epochs / args.epochs:g}"]
        words += ["--images_per_step", str(max(1, self.samples // num_masks)), "--keep_epochs"]
        if args.lr_milestones:
            milestones = [f"{epochs * epoch / args.epochs:g}" for epoch in args.lr_milestones]
            words += ["--lr_milestones", *milestones]
        return words, epochs * num_masks

    def evaluation(self, kind: str, recipe: str, family: str, scenes: str) -> Words:
        """The flags that follow the recipe of an evaluation.

        Args:
            kind: a key of MAINS. family: a key of `paper.FAMILIES`. scenes: the scenes' folder.
        """
        words = self._overlay(kind)
        if kind in ("detection", "segmentation"):
            words += ["--data_path", scenes]
        if kind == "detection":
            words += ["--train_json", "instances_training.json"]
            words += ["--val_json", "instances_validation.json"]
        if kind == "segmentation":
            words += ["--classes", f"{scenes}/classes_and_ground.txt"]
        if kind not in UNTRAINED:
            words += self._overlay("swin") if family.startswith("swin") else []
            words += ["--model", self.models[MODELS[family]]]
        return words

    def lacks(self, column: str) -> str:
        """Why a column cannot be measured at this scale; empty if it can."""
        return "no such test set at this scale" if column == "A" else ""

    def _overlay(self, kind: str) -> Words:
        return [recipe_word(f"{self.name}/{kind}")]


@dataclass(frozen=True)
class ImageNet:
    """The paper's own runs on ImageNet, COCO and ADE20K; methods as those of `SmallScale`.

    Args:
        places: the user's folders and files, by the name of the flag that gives them.
    """

    places: dict[str, str] = field(default_factory=dict)
    name: str = "imagenet"
    scenes: str = ""
    data: str = "ImageNet-1k, COCO 2017 and ADE20K"
    left_out: dict[str, Words] = field(default_factory=dict)
    stand_ins: dict[str, str] = field(default_factory=dict)
    note: str = ""
    seconds_a_run: float = 0.0

    def pretrain(self, recipe: str) -> tuple[Words, float]:
        words = ["--data_path", self.places.get("imagenet", "")]
        return words, _passes(recipe_values("pretrain", recipe))

    def evaluation(self, kind: str, recipe: str, family: str, scenes: str) -> Words:
        if kind in ("robustness", "top1"):
            words = ["--imagenet", os.path.join(self.places["imagenet"], "val")]
            for name in ("imagenet_a", "imagenet_c") if kind == "robustness" else ():
                words += [f"--{name}", self.places[name]] if self.places.get(name) else []
            return words
        data = {"detection": "coco", "segmentation": "ade20k"}.get(kind, "imagenet")
        words = ["--data_path", self.places[data]]
        if kind == "one_percent":
            words += ["--subset_file", self.places["one_percent_list"]]
        return words

    def lacks(self, column: str) -> str:
        missing = [n for n in NEEDS.get(column, ("imagenet",)) if not self.places.get(n)]
        return f"needs {' and '.join(f'--{name}' for name in missing)}" if missing else ""


def _passes(args: argparse.Namespace) -> float:
    """A recipe's passes over the training images, each mask counted."""
    return args.epochs * resolve_num_masks(args.num_masks, args.mask_ratio)


Scale = SmallScale | ImageNet
SMALL_SCALES = {
    "demo": SmallScale(
        "demo", 64, 32,
        dict(vit_base_patch16="vit_tiny_patch2", vit_small_patch16="vit_nano_patch2",
             swin_base="swin_mini_patch2"),
        "--source digits --size 64 --images 200 --val_images 40 --one_class digit",
        "scikit-learn's digits, and scenes of them",
        {
            "table1": ["mae_1600", "mimae_400", "simmim", "misimmim"],
            "table2": ["supervised"],
            "table3a": ["c", "d", "e", "control_independent"],
            "table3b": ["lambda_1_1", "lambda_1_20", "lambda_0.5_10", "lambda_10_10"],
            "table4": ["vit_small_mae", "vit_small_mimae"],
            "figure2": ["complete_0.5", "complete_0.6", "complete_0.9", "four_0.6", "four_0.9",
                        "masks_2", "masks_3", "masks_5"],
        },
        dict.fromkeys(("mae_vit_base_1600ep", "table3/a_mae"), "mae_vit_base_800ep")
        | dict.fromkeys(("mimae_vit_base_400ep", "table3/f_mimae"), "mimae_vit_base_200ep"),
        seconds_a_run=2000 / 36,
    ),
    "small": SmallScale(
        "small", 0.12, 256,
        dict(vit_base_patch16="vit_tiny_patch7", vit_small_patch16="vit_nano_patch7",
             swin_base="swin_mini_patch2"),
        "--source fashion_mnist --size 70 --images 400 --val_images 100 --one_class garment",
        "Fashion-MNIST, and scenes of it",
    ),
}  # fmt: skip
SCALES = (*SMALL_SCALES, "imagenet")
