"""Fine-tuned classifiers on shifted and corrupted test images, side by side.

    python main_robustness.py MAE/checkpoint-last.pth MI-MAE/checkpoint-last.pth \\
        --imagenet IN/val --imagenet_a IN-A --imagenet_r IN-R --imagenet_c IN-C --real_labels

    python main_robustness.py output_dir/finetune/checkpoint-last.pth --dataset fashion_mnist

The second corrupts the test images of a data set on the fly. Writes robustness.md, robustness.json
and severity.png to --output_dir. No training image is read.
"""

import argparse
import copy
import logging
import os
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from encoders.load import SIZES, block_shapes, load_classifier, open_checkpoint
from encoders.vit import Pretrained
from util.checks import image_size
from util.cluster import agreement, distributed
from util.data import imagenet
from util.data.corruption.corruptions import CORRUPTIONS, SEVERITIES
from util.data.datasets import DATASETS
from util.data.imagenet import read_real_labels
from util.data.loader import loading
from util.data.robustness_sets import TestSet, is_published, open_sets
from util.data.transforms import Normalize
from util.entry import run_main
from util.errors import UsageError
from util.evaluation.frozen.features import (
    FeatureStore,
    check_batch_size,
    checksum,
    images_checksum,
    where_given,
)
from util.evaluation.robustness import report as robustness_report
from util.evaluation.robustness.errors import EXTRA, Robustness
from util.evaluation.tables import column_names
from util.flags import args as arguments
from util.flags.parser import ArgumentParser, number
from util.progress import Pace
from util.training.precision import Precision
from util.training.run import Run

log = logging.getLogger(__name__)

SETS = (*imagenet.TEST_SETS, "ImageNet-C")
FOLDERS = [published.flag[2:] for published in imagenet.TEST_SETS.values()]  # of the clean ones


def get_args_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    arguments.add_data_flags(parser, training=False)
    arguments.add_run_flags(parser, "output_dir/robustness", training=False)
    add = parser.add_argument_group("classifiers").add_argument
    # fmt: off
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help="of main_finetune.py, or anybody's")
    add("--baseline", default="", metavar="CHECKPOINT",
        help="errors are told relative to this one's, instead of AlexNet's")
    add("--names", nargs="+", default=[], help="of the checkpoints in the tables")
    add("--model", choices=SIZES, metavar="NAME",
        help="the encoder, where a checkpoint does not tell it")
    add("--num_heads", type=number(int, 1),
        help="attention heads of a checkpoint that does not tell them")
    add("--class_list", default="", metavar="FILE",
        help="the classes of the logits of checkpoints that do not tell them, a name a line in "
        "their order (default: 1000 logits are ImageNet's synsets, sorted)")
    add("--batch_size", type=number(int, 1), default=128, help="images per GPU")
    add("--predictions", default="", help="where they are kept (default: in --output_dir)")
    # fmt: on

    add = parser.add_argument_group("ImageNet's test sets").add_argument
    for name, published in imagenet.TEST_SETS.items():
        add(published.flag, default="", metavar="FOLDER", help=f"{name}: CLASS/IMAGE")
    # fmt: off
    add("--real_labels", metavar="JSON", nargs="?", const="timm",
        help="ImageNet-ReaL's file, for --imagenet; without a name timm's copy")
    add("--imagenet_c", default="", metavar="FOLDER",
        help="CORRUPTION/SEVERITY/CLASS/IMAGE: ImageNet-C's images, or what "
        "`python -m tools.corrupt` made")
    add("--partial", action="store_true", help="go on where some of them is missing; no mCE then")
    # fmt: on

    add = parser.add_argument_group("corruptions").add_argument
    # fmt: off
    add("--corrupt", action=argparse.BooleanOptionalAction,
        help="corrupt the clean images on the fly (default: if not ImageNet's)")
    add("--corruptions", nargs="+", choices=list(CORRUPTIONS), default=list(CORRUPTIONS),
        metavar="NAME", help=f"which of: {', '.join(CORRUPTIONS)}")
    add("--severities", nargs="+", type=int, choices=SEVERITIES, default=list(SEVERITIES),
        help="which")
    add("--extra", nargs="*", choices=EXTRA, default=[],
        help="of --imagenet_c, these of the four extra ones, too; never part of mCE")
    add("--max_images", type=number(int, 1), help="of each set, a fair draw: for a quick look")
    # fmt: on

    add = parser.add_argument_group("protocol").add_argument
    # fmt: off
    add("--crop_share", type=number(float, 0.1, 1),
        help="of the resized image's side, what the centre crop keeps (default: 224 of 256; small "
        "images: all)")
    add("--interpolation", choices=("bilinear", "bicubic"), default="bicubic",
        help="of resizing; bicubic as in fine-tuning, the sets' authors take bilinear")
    add("--stored", nargs="*", choices=SETS, default=["ImageNet-C"], metavar="SET",
        help="whose images are stored at 224 x 224 pixels and are taken as they are")
    # fmt: on
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    args = arguments.parse_args(
        get_args_parser(), "robustness", argv, ("data_path", "imagenet_c", *FOLDERS)
    )
    check_batch_size(args.batch_size)
    of_imagenet = is_of_imagenet(args)
    if of_imagenet and (args.data_path or args.settings.is_given("dataset")):
        raise UsageError("--dataset and --data_path name other images than --imagenet…: use one")
    if args.real_labels and not args.imagenet:
        raise UsageError("--real_labels are of ImageNet's validation set: name it, --imagenet DIR")
    if args.corrupt and args.imagenet_c:
        raise UsageError("--corrupt makes what --imagenet_c reads: use one of them")
    if args.extra and not args.imagenet_c:
        raise UsageError("--extra needs --imagenet_c: only the published images have those")
    if args.corrupt is None:
        args.corrupt = not of_imagenet and not args.imagenet_c
    if not (args.corrupt or args.imagenet_c):
        args.settings.refuse("without --corrupt or --imagenet_c", "corruptions", "severities")
    if not (of_imagenet or args.imagenet_c):
        args.settings.refuse("without a published set", "partial")
    words = [*args.checkpoints, *[b for b in [args.baseline] if b and b not in args.checkpoints]]
    if args.names and len(words) > len(args.checkpoints):
        args.names = [*args.names, "baseline"]
    args.names, args.checkpoints = column_names(args.names, words), words
    return args


def is_of_imagenet(args: argparse.Namespace) -> bool:
    """Whether the test images are ImageNet's published ones, and not --dataset's."""
    return any(getattr(args, name) for name in FOLDERS) or bool(
        args.imagenet_c and not args.data_path
    )


@dataclass
class Classifier:
    """A checkpoint's model with the flags that are its own, its logits' names, and its results."""

    name: str
    path: str
    model: nn.Module  # images, uint8 or in 0..1, [B, C, H, W] -> logits
    width: int
    flags: argparse.Namespace
    classes: list[str]
    found: Robustness = field(default_factory=Robustness)

    def __post_init__(self) -> None:
        self.checksum = checksum(self.model, self.flags.mean, self.flags.std)


def open_classifier(args: argparse.Namespace, name: str, path: str) -> Classifier:
    flags = copy.copy(args)
    flags.settings = copy.deepcopy(flags.settings)
    flag = "--baseline" if path == args.baseline else "CHECKPOINT"
    pretrained = open_checkpoint(path, flags, flag=flag)
    model = load_classifier(pretrained, flags)
    flags.input_size = list(image_size(flags.input_size, 1))
    classes = agreement.all_or_none(lambda: class_names(pretrained, model.num_classes, flags))
    width = max(dim for _, dim, _ in block_shapes(model))
    model = nn.Sequential(Normalize(flags.mean, flags.std), model).eval()
    return Classifier(name, path, model, width, flags, classes)


def class_names(pretrained: Pretrained, num_logits: int, args: argparse.Namespace) -> list[str]:
    """The classes of a checkpoint's logits, in their order.

    Raises:
        UsageError: it does not tell them, or is of other classes than the test sets.
    """
    path, known = pretrained.path, pretrained.config.get("classes")
    trained_on = pretrained.config.get("dataset", args.dataset)
    is_guess = not (args.settings.is_given("dataset") or is_of_imagenet(args))
    if trained_on != args.dataset and is_guess:
        raise UsageError(f"{path} was fine-tuned on {trained_on}: give --dataset {trained_on}")
    listed = imagenet.read_class_list(args.class_list) if args.class_list else None
    if known and listed and known != listed:
        raise UsageError(
            f"--class_list {args.class_list} has other classes than {path} tells, or in another "
            "order: leave it away"
        )
    classes = known or listed
    if classes is None and num_logits == imagenet.NUM_CLASSES:
        classes = list(imagenet.synsets())
    classes = classes or pretrained.classes()
    if classes is None and DATASETS[args.dataset].crop_share == 1:
        classes = [str(number) for number in range(num_logits)]  # a data set of arrays
    if classes is None or len(classes) != num_logits:
        raise UsageError(
            f"{path} has {num_logits} logits, and "
            + (f"{len(classes)} classes are listed" if classes else "does not tell their classes")
            + ": name them in their order with --class_list"
        )
    return classes


def main(args: argparse.Namespace) -> None:
    with Run(args) as run:
        words = list(zip(args.names, args.checkpoints, strict=True))
        classifiers = [open_classifier(args, name, path) for name, path in words]
        precision = run.precision(min(one.width for one in classifiers))
        groups = [open_group(members) for members in with_the_same_view(classifiers)]
        protocol = [line for group in groups for line in group.protocol]
        whole = Pace(sum(group.num_images() for group in groups))
        for group in groups:
            while group.sets:
                test_set = group.sets.pop(0)  # and with it the images that it keeps
                for classifier in group.members:
                    predicted = predict(run, precision, classifier, test_set, whole)
                    keep(classifier, test_set, predicted, group.real)
        if distributed.is_main():
            write(run, args, classifiers, list(dict.fromkeys(protocol)))


@dataclass
class Group:
    """Classifiers with the same view of the images, and what they are tested on.

    real: ReaL's labels of the first set's images; None: they were not asked for.
    """

    members: list[Classifier]
    sets: list[TestSet]
    real: list[frozenset[int]] | None
    protocol: list[str]

    def num_images(self) -> int:
        """How many predictions there are to make."""
        return len(self.members) * sum(len(one.images) for one in self.sets)


def with_the_same_view(classifiers: list[Classifier]) -> list[list[Classifier]]:
    """The classifiers, those together that share their images."""
    groups: dict[str, list[Classifier]] = {}
    for one in classifiers:
        flags = one.flags
        key = checksum(flags.input_size, flags.in_chans, one.classes, flags.value_range)
        groups.setdefault(key, []).append(one)
    return [*groups.values()]


def open_group(members: list[Classifier]) -> Group:
    """Open all sets before any is looked at: what does not fit a classifier names its file.

    Raises:
        UsageError: what `open_sets` and `read_real_labels` find.
    """
    flags, classes = members[0].flags, members[0].classes
    try:
        sets = open_sets(flags, classes)
        real = None
        if flags.real_labels:  # then ImageNet itself is the first set
            of_images = (flags.real_labels, sets[0].images, classes)
            real = agreement.all_or_none(lambda: read_real_labels(*of_images))
    except UsageError as error:
        raise UsageError(f"{error} (for {members[0].path})") from None
    return Group(members, sets, real, robustness_report.protocol(flags, sets))


def predict(
    run: Run, precision: Precision, classifier: Classifier, test_set: TestSet, whole: Pace
) -> FeatureStore:
    """A classifier's predictions on a test set, computed where they are not on the disk."""
    flags, model = classifier.flags, classifier.model.to(run.device)
    competing = None
    if test_set.competing is not None:
        competing = torch.tensor(test_set.competing, device=run.device)
    about = test_set.about | dict(
        classifier=classifier.checksum,
        image_names=images_checksum(test_set.images),
        view=str(test_set.view),
        precision=precision.name,
        competing=test_set.competing,
        batch_size=flags.batch_size,
        **where_given(flags),
    )

    @torch.no_grad()
    def encode(imgs: Tensor, detailed: bool) -> dict[str, Tensor]:
        with precision.autocast():
            logits = model(imgs)
        if competing is None:
            return {"predicted": logits.argmax(1)}
        return {"predicted": competing[logits[:, competing].argmax(1)]}

    root = flags.predictions or os.path.join(flags.output_dir, "predictions")
    folder = os.path.join(root, *(n.replace(os.sep, "_") for n in (classifier.name, test_set.name)))
    store = FeatureStore(folder, about, test_set.images, "fp32", flag="--predictions")
    store.extract(
        encode,
        test_set.view,
        run.device,
        f"{classifier.name}, {test_set.name}",
        whole,
        **loading(flags, run.device),
    )
    return store


def keep(
    classifier: Classifier,
    test_set: TestSet,
    predictions: FeatureStore,
    real: list[frozenset[int]] | None,
) -> None:
    """Add to a classifier's results which of a test set's images it got right.

    Args:
        real: ReaL's labels of ImageNet's images; None: they were not asked for.
    """
    if not distributed.is_main():
        return
    predicted, found = predictions.read("predicted").long().numpy(), classifier.found
    ids, right = predictions.ids(), np.full(len(test_set.images), np.nan)
    right[ids] = predicted == predictions.targets().numpy()
    log.info("%s, %s: %.2f %% right", classifier.name, test_set.name, 100 * np.nanmean(right))
    if predictions.left_out:
        found.unreadable[test_set.name] = len(predictions.left_out)
    if test_set.corruption:
        found.corrupted[test_set.corruption, test_set.severity] = right
        return
    found.clean[test_set.name] = right
    if real is not None and test_set.name == "ImageNet":
        right = np.full(len(real), np.nan)  # of images without any label, too
        for index, label in zip(ids, predicted, strict=True):
            if real[index]:
                right[index] = label in real[index]
        found.clean["ImageNet-ReaL"] = right


def write(
    run: Run, args: argparse.Namespace, classifiers: list[Classifier], protocol: list[str]
) -> None:
    """Print the tables, and write them, the JSON and the picture to the output folder."""
    report = robustness_report.Report(
        {one.name: one.found for one in classifiers},
        args.names[args.checkpoints.index(args.baseline)] if args.baseline else None,
        is_published(args),
        protocol,
    )
    text = report.markdown()
    print(text)
    checkpoints = dict(zip(args.names, args.checkpoints, strict=True))
    run.folder.write({
        "robustness.md": text + "\n",
        "robustness.json": {"checkpoints": checkpoints} | report.as_json(),
        "severity.png": report.picture(),
    })  # fmt: skip
    run.finish(**report.headline())


if __name__ == "__main__":
    run_main(main, parse_args)
