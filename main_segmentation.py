"""Segment images: fine-tune an encoder under UperNet, evaluate (--eval), or predict (--predict).

python -m tools.scenes scenes --source digits
python main_segmentation.py --data_path scenes --finetune output_dir/pretrain/checkpoint-last.pth
"""

import argparse
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from encoders.load import (
    SIZES,
    architecture,
    block_shapes,
    build_backbone,
    describe,
    layer_lookup,
    open_dense,
    segmenter_architecture,
)
from encoders.vit import Pretrained
from engine_segmentation import Predict, evaluate, train_one_round
from util.checks import image_size
from util.cluster import agreement, distributed
from util.data.dense import label_values
from util.data.dense.ade20k import Labels, load_mapped_images, read_labels
from util.data.dense.transforms import (
    Pad,
    PhotometricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    unchanged,
)
from util.data.loader import Batches, open_batches
from util.data.transformed import TransformedPairs
from util.data.transforms import Normalize
from util.data.value_scale import check_scale
from util.entry import run_main
from util.errors import UsageError
from util.evaluation.dense import windows
from util.evaluation.dense.label_pictures import write_predictions
from util.flags import args as arguments
from util.flags import dense_args
from util.flags.parser import ArgumentParser, number
from util.training import optim, preflight
from util.training.drop_path import DropPaths
from util.training.nonfinite import NonFiniteLoss
from util.training.precision import Precision
from util.training.run import Run
from util.weights.fit import load_weights

log = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    add = dense_args.add_dense_data_flags(
        parser,
        "a folder with images/ and annotations/, each with training/ and validation/; or of tar "
        "shards, or a pattern of them",
    )
    # fmt: off
    add("--classes", default="",
        help="a file with a class a line (default: the data's classes.txt or objectInfo150.txt)")
    add("--first_class", type=number(int, 0, 1), default=1,
        help="the first class's value in a label map: 1, as in ADE20K, whose 0 is nothing, or 0")
    add("--palette", default="",
        help="a file of lines R G B CLASS (- is nothing), for label maps in colours")
    # fmt: on
    dense_args.add_iteration_flags(parser)
    arguments.add_run_flags(parser, "output_dir/segmentation")
    dense_args.add_dense_checkpoint_flags(parser)
    add = dense_args.add_backbone_flags(parser, tuple(SIZES))
    # fmt: off
    add("--decoder_channels", type=number(int, 1),
        help="of UperNet (default: a ViT's width; the last stage's of a Swin, at most 512)")
    add("--rel_pos_bias", action=argparse.BooleanOptionalAction, default=True,
        help="add relative position biases to each block of a ViT, zero at first, as published; a "
        "BEiT keeps its own")
    add("--layer_scale", type=number(float, 0), default=1.0,
        help="at first, of a ViT's blocks that have none, as published; 0: none")
    add("--auxiliary_weight", type=number(float, 0), default=0.4, help="of the FCN head's loss")
    # fmt: on
    _add_view_flags(parser)
    parser.set_defaults(
        iterations=160000,
        warmup_iterations=1500,
        eval_every=16000,
        lr=1e-4,
        lr_schedule="poly",
        batch_size=2,
        layer_decay=0.65,
        dataset="ade20k",
    )
    return parser


def _add_view_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("augmentation").add_argument
    # fmt: off
    add("--scales", type=number(float, 0.01), nargs=2, default=[0.5, 2.0], metavar="FACTOR",
        help="between which an image's shorter side is drawn, in sides of --input_size")
    add("--max_class_share", type=number(float, 0, 1), default=0.75,
        help="of a crop that one class may fill, or it is drawn anew; 1: any")
    add("--flip", action=argparse.BooleanOptionalAction, default=True, help="flip half the images")
    add("--photometric", action=argparse.BooleanOptionalAction, default=True,
        help="distort brightness, contrast, saturation and hue")
    # fmt: on

    add = parser.add_argument_group("evaluation").add_argument
    # fmt: off
    add("--eval", action="store_true", help="only evaluate the model in --resume")
    add("--predict", default="", metavar="FOLDER",
        help="write label maps and overlays of these images, by the model in --resume")
    add("--test_mode", choices=("slide", "whole"), default="slide",
        help="windows of --input_size, or the image in one piece")
    add("--stride", type=number(int, 1), nargs="+", metavar="PX",
        help="of the windows (default: two thirds of their side, 341 of 512)")
    add("--test_scales", type=number(float, 0.01), nargs="+", default=[1.0], metavar="FACTOR",
        help="the views of an image whose mean probabilities decide; published: 0.5 0.75 1 1.25 "
        "1.5 1.75")
    add("--test_flip", action="store_true", help="the mirrored views, too")
    # fmt: on


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    args = arguments.parse_args(get_args_parser(), "segmentation", argv)
    dense_args.check_and_count(args)
    if args.predict:
        told = ("classes", "first_class", "palette")
        args.settings.refuse("with --predict, whose --resume has the classes", *told)
    if args.test_mode == "whole":
        args.settings.refuse("with --test_mode whole", "stride")
    if not args.data_path and not args.predict:
        raise UsageError(
            "--data_path is missing: name a folder with images/ and annotations/ (python -m "
            "tools.scenes FOLDER writes one)"
        )
    return args


def build_model(
    args: argparse.Namespace, pretrained: Pretrained | None, num_classes: int
) -> nn.Module:
    """The segmenter that the flags describe, with the checkpoint's encoder, or all of it."""
    from heads.upernet import UperNet

    is_trained = bool(args.eval or args.predict)
    if is_trained:
        known = architecture(pretrained, args.model)
        if args.decoder_channels is None:
            args.decoder_channels = pretrained.config.get("decoder_channels")
    else:
        known = segmenter_architecture(pretrained, args.model, args.rel_pos_bias, args.layer_scale)
    encoder = build_backbone(pretrained, args, args.test_mode == "whole", not is_trained, known)
    tell_what_it_is(args, known)
    model = UperNet(encoder, num_classes, args.decoder_channels)
    if is_trained:
        load_weights(model, pretrained.raw, args.resume)
    return model


def tell_what_it_is(args: argparse.Namespace, known: dict | None) -> None:
    """Let the flags say what the encoder has, whose checkpoint may have brought it.

    Args:
        known: its architecture; None: as its name says.

    Raises:
        UsageError: flags that ask for something else.
    """
    found = known or {}
    has_bias = bool(found.get("rel_pos_bias") or found.get("use_rel_pos_bias"))
    scale = found.get("init_values") or 0.0
    for name, value in (("rel_pos_bias", has_bias), ("layer_scale", scale)):
        if args.settings.is_given(name) and bool(getattr(args, name)) != bool(value):
            has = "has its own" if value else "has none"
            raise UsageError(f"--{name} is not for this {args.model}, which {has}: leave it away")
        setattr(args, name, value)


def class_labels(args: argparse.Namespace, pretrained: Pretrained | None) -> Labels:
    """The classes: the data's, which a trained model must have, too; without data, the model's.

    Raises:
        UsageError: they differ.
    """
    if args.predict:
        config = pretrained.config
        return Labels(config["classes"], config["first_class"], config["palette"])
    first_class = args.first_class
    if args.eval and not args.settings.is_given("first_class"):
        first_class = pretrained.config["first_class"]
    labels = read_labels(args.data_path, args.classes, first_class, args.palette)
    if args.eval and not args.palette and pretrained.config["palette"]:
        labels = Labels(labels.classes, first_class, pretrained.config["palette"])
    if args.eval and labels.classes != pretrained.config["classes"]:
        known = pretrained.config["classes"]
        differing = [
            pair for pair in zip(known, labels.classes, strict=False) if len(set(pair)) > 1
        ]
        shown = f", the first that differ are {' and '.join(differing[0])}" if differing else ""
        raise UsageError(
            f"--resume {args.resume} has {len(known)} classes, the data {len(labels.classes)}"
            f"{shown}: give the data or the --classes that it was trained on"
        )
    return labels


def config_of(args: argparse.Namespace, model: nn.Module, labels: Labels) -> dict:
    """Plain values from which --eval and --predict build the same model."""
    return describe(
        args,
        model.encoder,
        grid=list(model.encoder.patch_embed.grid_size),
        decoder_channels=model.channels,
        classes=labels.classes,
        first_class=labels.first_class,
        palette=labels.palette,
    )


def build_predict(
    args: argparse.Namespace, model: nn.Module, normalize: nn.Module, precision: Precision
) -> Predict:
    """The function that predicts the classes of whole images, as the flags of evaluation say."""
    window = args.input_size
    stride = args.stride or [max(1, 2 * side // 3) for side in window]
    if len(stride) > 2:
        raise UsageError(f"--stride {' '.join(map(str, stride))}: give one number, or height width")
    stride = [stride[0], stride[-1]]
    if any(step > side for step, side in zip(stride, window, strict=True)):
        raise UsageError(
            f"--stride {stride[0]} {stride[1]} leaves pixels between windows of {window[0]} x "
            f"{window[1]}: lower it"
        )

    def logits(imgs: Tensor) -> Tensor:
        with precision.autocast():
            return model(imgs)

    def segment(imgs: Tensor) -> Tensor:
        if args.test_mode == "whole":
            return windows.whole(logits, imgs, model.unit)
        return windows.by_windows(logits, imgs, window, stride)

    def predict(imgs: Tensor) -> Tensor:
        return windows.predict(
            segment, imgs, normalize, min(window), args.test_scales, args.test_flip
        )

    return predict


def training_view(args: argparse.Namespace) -> Callable:
    from torchvision.transforms.v2 import Compose

    size = tuple(args.input_size)
    steps = [RandomResize(size, args.scales), RandomCrop(size, args.max_class_share)]
    steps += [RandomFlip()] * args.flip + [PhotometricDistortion()] * args.photometric
    return Compose([*steps, Pad(size, args.mean)])


def open_pairs(
    args: argparse.Namespace, labels: Labels, split: str, device: torch.device
) -> Batches:
    """A split's loader; evaluation takes images of any size, one by one."""
    images = load_mapped_images(args.data_path, split, labels, args.in_chans, args.value_range)
    agreement.all_or_none(lambda: check_scale(images, args))
    if not args.eval:
        label_values.tell(images, split)
    if split == "training":
        view = training_view(args)
        options = dict(training=True, length=args.eval_every * args.accum_iter)
    else:
        view, options = unchanged, dict(training=False, batch_size=1)
    return open_batches(args, TransformedPairs(images, view, args.seed), device=device, **options)


def main(args: argparse.Namespace) -> None:
    with Run(args) as run:
        pretrained = open_dense(args, "first_class", "main_segmentation.py")
        args.input_size = list(image_size(args.input_size, 1))
        if not (args.eval or args.predict) and args.batch_size * distributed.world_size() == 1:
            raise UsageError("--batch_size 1 on one process: BatchNorm needs 2 images at least")
        labels = class_labels(args, pretrained)
        model = build_model(args, pretrained, len(labels.classes)).to(run.device)
        normalize = Normalize(args.mean, args.std).to(run.device)
        shapes = block_shapes(model.encoder)
        precision = run.precision(max(dim for _, dim, _ in shapes))
        predict = build_predict(args, model, normalize, precision)
        if args.predict:
            return run.finish(**write_predictions(args, labels, model, predict, run.device))
        val_batches = open_pairs(args, labels, "validation", run.device)
        if args.eval:
            scores, ious = evaluate(model, val_batches, predict, run.device)
            return run.finish(**scores, **ious)

        batches = open_pairs(args, labels, "training", run.device)
        groups = optim.layer_decay_groups(
            model, args.weight_decay, layer_lookup(model.encoder, "encoder."), args.layer_decay
        )
        optimizer = optim.adamw(groups)
        preflight.log_plan(args, model, batches, precision, 1, shapes, run.device)
        run.start(
            dict(model=model, optimizer=optimizer, scaler=precision),
            config_of(args, model, labels),
            batches,
        )
        drop_paths = DropPaths(model, args.seed)
        if args.compile:
            distributed.compile_in_place(model, args.grad_checkpointing)
        wrapped = distributed.wrap(model, run.device, args.grad_compression, sync_buffers=False)

        def prepare(imgs: Tensor, maps: Tensor, *draw: int) -> tuple[Tensor, Tensor]:
            drop_paths.draw(*draw, len(imgs), run.device)
            return normalize(imgs), maps.long()

        def test() -> tuple[dict[str, float], dict[str, float]]:
            with run.testing(val_batches):
                return evaluate(model, val_batches, predict, run.device)

        ious: dict[str, float] = {}
        while not run.is_finished():
            try:
                means = train_one_round(
                    wrapped, prepare, optimizer, precision, run, args.auxiliary_weight
                )
                scores, ious = test()
                run.log_epoch(means, run.keep_best(scores, "mIoU"))
                run.save_epoch()
            except NonFiniteLoss as error:
                run.recover(error)
        if not ious:  # a run that had finished before
            _, ious = test()
        run.finish(**ious)


if __name__ == "__main__":
    run_main(main, parse_args)
