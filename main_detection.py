"""Detect objects: fine-tune an encoder under Mask R-CNN, evaluate (--eval), or predict (--predict).

python -m tools.scenes scenes --source digits
python main_detection.py --data_path scenes --finetune output_dir/pretrain/checkpoint-last.pth
"""

import argparse
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from encoders.load import SIZES, block_shapes, build_backbone, describe, layer_lookup, open_dense
from encoders.vit import Pretrained
from engine_detection import evaluate, train_one_round
from util.checks import image_size
from util.cluster import distributed
from util.data.dense.coco import Categories, CocoImages, load_coco
from util.data.dense.jitter import FitCanvas, LargeScaleJitter, Target, collate
from util.data.loader import Batches, open_batches
from util.data.transformed import TransformedPairs
from util.entry import run_main
from util.evaluation.dense.coco_ap import require_evaluator
from util.evaluation.dense.detections import write_detections
from util.flags import args as arguments
from util.flags import dense_args
from util.flags.parser import ArgumentParser, number
from util.training import optim, preflight
from util.training.drop_path import DropPaths
from util.training.nonfinite import NonFiniteLoss
from util.training.roi_sampling import RoISampling
from util.training.run import Run
from util.training.weight_mean import WeightMean
from util.weights.fit import load_weights

log = logging.getLogger(__name__)

ITERATIONS, MILESTONES = 184375, (163889, 177546)  # ViTDet's: 100 epochs of COCO, at 64


def get_args_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    add = dense_args.add_dense_data_flags(
        parser, "a folder in COCO's layout, or in that of tools.scenes or tools.shards"
    )
    for split in ("train", "val"):
        # fmt: off
        add(f"--{split}_json", default="", metavar="FILE",
            help="annotations in COCO's format, elsewhere than its layout has them")
        add(f"--{split}_images", default="", metavar="FOLDER",
            help="their images: a folder, or tar shards, as 'train-*.tar'")
        # fmt: on
    add("--empty_images", action=argparse.BooleanOptionalAction, default=False, help="train on "
        "images without objects, too, which the published recipe passes over")  # fmt: skip
    dense_args.add_iteration_flags(parser)
    arguments.add_run_flags(parser, "output_dir/detection")
    dense_args.add_dense_checkpoint_flags(parser)
    add = dense_args.add_backbone_flags(parser, tuple(SIZES))
    add(
        "--window",
        type=number(int, 1),
        default=14,
        help="tokens that a ViT's windows are wide; the last block of each quarter has none",
    )
    arguments.add_ema_flag(add)

    add = parser.add_argument_group("augmentation").add_argument
    # fmt: off
    add("--scales", type=number(float, 0.01), nargs=2, default=[0.1, 2.0], metavar="FACTOR",
        help="between which an image's size is drawn, against what fits into --input_size")
    add("--flip", action=argparse.BooleanOptionalAction, default=True, help="flip half the images")
    # fmt: on

    add = parser.add_argument_group("evaluation").add_argument
    # fmt: off
    add("--eval", action="store_true", help="only evaluate the model in --resume")
    add("--predict", default="", metavar="FOLDER",
        help="write pictures and a JSON of what the model in --resume finds in these images")
    add("--min_score", type=number(float, 0, 1), default=0.5, help="of what pictures show")
    # fmt: on
    parser.set_defaults(
        iterations=ITERATIONS,
        warmup_iterations=250,
        eval_every=18438,
        lr=1e-4,
        weight_decay=0.1,
        lr_schedule="multistep",
        lr_milestones=list(MILESTONES),
        batch_size=8,
        layer_decay=0.7,
        dataset="coco",
    )
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    args = arguments.parse_args(get_args_parser(), "detection", argv)
    if not args.settings.is_given("lr_milestones"):  # of shorter and longer runs: the same shares
        args.lr_milestones = [m * args.iterations // ITERATIONS for m in MILESTONES]
    dense_args.check_and_count(args)
    if args.eval or args.predict:
        args.settings.refuse("with --eval and --predict, whose --resume tells it", "window")
    if not args.predict:
        require_evaluator()
    return args


def build_model(
    args: argparse.Namespace, pretrained: Pretrained | None, num_classes: int
) -> nn.Module:
    """The detector that the flags describe, with the checkpoint's encoder, or all of it."""
    from heads.maskrcnn import build_detector

    is_trained = bool(args.eval or args.predict)
    if is_trained:
        args.window = pretrained.config["window"]
    encoder = build_backbone(pretrained, args, load=not is_trained)
    model = build_detector(encoder, num_classes, args.mean, args.std, args.window)
    if is_trained:
        load_weights(model, pretrained.raw, args.resume)
    return model


def config_of(
    args: argparse.Namespace, encoder: nn.Module, categories: Categories
) -> dict[str, object]:
    """Plain values from which --eval and --predict build the same model."""
    return describe(
        args,
        encoder,
        grid=list(encoder.patch_embed.grid_size),
        window=args.window,
        classes=categories.names,
        category_ids=categories.ids,
    )


def open_pairs(
    args: argparse.Namespace,
    images: CocoImages,
    view: Callable,
    training: bool,
    device: torch.device,
) -> Batches:
    """A loader of images with their boxes and masks; in training its epoch is a round."""
    pairs = TransformedPairs(images, view, args.seed)
    length = args.eval_every * args.accum_iter if training else None
    return open_batches(args, pairs, training, device, length=length, collate=collate)


def to_device(
    images: list[Tensor], targets: list[Target], device: torch.device
) -> tuple[list[Tensor], list[Target]]:
    return [image.to(device, non_blocking=True) for image in images], [
        {name: value.to(device, non_blocking=True) for name, value in target.items()}
        for target in targets
    ]


def main(args: argparse.Namespace) -> None:
    with Run(args) as run:
        pretrained = open_dense(args, "category_ids", "main_detection.py")
        args.input_size = list(image_size(args.input_size, 1))
        if args.eval or args.predict:
            config = pretrained.config
            categories = Categories(config["category_ids"], config["classes"])
        else:
            train_images, _ = load_coco(args, "train")
            categories = train_images.categories
        model = build_model(args, pretrained, len(categories.ids)).to(run.device)
        encoder = model.backbone.encoder
        shapes = block_shapes(encoder)
        precision = run.precision(max(dim for _, dim, _ in shapes))

        evaluated = model  # or the running mean of its weights

        def detect(images: list[Tensor]) -> list[dict[str, Tensor]]:
            with precision.autocast():
                return evaluated([image.to(run.device) for image in images])

        if args.predict:
            return run.finish(**write_detections(args, categories, model, detect, run.device))
        val_images, truth = load_coco(args, "val", categories)
        val_batches = open_pairs(args, val_images, FitCanvas(args.input_size), False, run.device)
        if args.eval:
            return run.finish(**evaluate(model, val_batches, detect, truth, args.output_dir))
        view = LargeScaleJitter(args.input_size, args.scales, args.flip)
        batches = open_pairs(args, train_images, view, True, run.device)
        groups = optim.layer_decay_groups(
            model, args.weight_decay, layer_lookup(encoder, "backbone.encoder."), args.layer_decay
        )
        optimizer = optim.adamw(groups)
        preflight.log_plan(args, model, batches, precision, 1, shapes, run.device)
        mean = WeightMean(model, args.ema_decay)
        evaluated = mean.model
        objects = mean.objects() | dict(optimizer=optimizer, scaler=precision)
        run.start(objects, config_of(args, encoder, categories), batches)
        drop_paths, sampling = DropPaths(model, args.seed), RoISampling(model, args.seed)
        if args.compile:
            distributed.compile_in_place(model.backbone, args.grad_checkpointing)
        wrapped = distributed.wrap(model, run.device, args.grad_compression, sync_buffers=False)

        def prepare(
            images: list[Tensor], targets: list[Target], step: int, micro: int
        ) -> tuple[list[Tensor], list[Target]]:
            drop_paths.draw(step, micro, len(images), run.device)
            sampling.draw(step, micro, len(images))
            return to_device(images, targets, run.device)

        while not run.is_finished():
            try:
                means = train_one_round(wrapped, prepare, optimizer, precision, run, mean.update)
                with run.testing(val_batches):
                    scores = evaluate(evaluated, val_batches, detect, truth, args.output_dir)
                run.log_epoch(means, run.keep_best(scores, "box_AP"))
                run.save_epoch()
            except NonFiniteLoss as error:
                run.recover(error)
        run.finish()


if __name__ == "__main__":
    run_main(main, parse_args)
