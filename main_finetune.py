r"""Fine-tune a pre-trained encoder end to end, or evaluate a fine-tuned one (--eval).

python main_finetune.py --finetune output_dir/pretrain/checkpoint-last.pth

With few labels, several draws of them, and the learning rate chosen on a part of them:

python main_finetune.py --finetune output_dir/pretrain/checkpoint-last.pth \
    --train_fraction 0.1 --draws 3 --choose_blr 1e-4 1e-3 1e-2
"""

import argparse
import logging
from collections.abc import Callable

from torch import Tensor, nn

from encoders.load import (
    SIZES,
    architecture,
    block_shapes,
    build_encoder,
    describe,
    layer_lookup,
    load_pretrained,
    open_checkpoint,
)
from encoders.vit import Pretrained
from engine_finetune import evaluate, train_one_epoch
from util.cluster import distributed
from util.data.loader import evaluation_view, open_batches
from util.data.transformed import TransformedImages
from util.data.transforms import AutoAugment, CropAndFlip, Normalize
from util.entry import run_main
from util.errors import UsageError
from util.evaluation import predictions
from util.flags import args as arguments
from util.flags.parser import ArgumentParser, number
from util.training import few_label_runs, muon, optim, preflight
from util.training.drop_path import DropPaths
from util.training.nonfinite import NonFiniteLoss
from util.training.run import Run
from util.training.same_run import check_tested_on
from util.training.weight_mean import WeightMean
from util.weights.fit import load_weights

log = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    arguments.add_data_flags(parser)
    arguments.add_cache_flags(parser)
    arguments.add_optimisation_flags(parser, "images_per_step")
    arguments.add_run_flags(parser, "output_dir/finetune")
    arguments.add_checkpoint_flags(parser)
    parser.set_defaults(epochs=100, min_lr=1e-6, blr=5e-4)

    add = parser.add_argument_group("model").add_argument
    arguments.add_encoder_flags(add, SIZES, "train from scratch", "the data set's")
    # fmt: off
    add("--global_pool", action="store_true", default=True,
        help="classify the mean of the patch tokens (the default)")
    add("--cls_token", action="store_false", dest="global_pool", help="classify the class token")
    add("--drop_path", type=number(float, 0, 0.99), default=0.1, help="of the last block")
    add("--layer_decay", type=number(float, 0, 1), default=0.65, help="of the learning rate")
    # fmt: on
    arguments.add_opt_flag(add)
    arguments.add_ema_flag(add)
    # fmt: off
    add("--grad_checkpointing", action="store_true", help="recompute blocks, to save memory")
    add("--test_every", type=number(int, 1), default=1,
        help="epochs between tests; after the last one there always is one")
    add("--eval", action="store_true", help="only evaluate the model in --resume")
    # fmt: on

    few_label_runs.add_flags(parser)
    add = parser.add_argument_group("augmentation").add_argument
    # fmt: off
    add("--min_crop", type=number(float, 0.01, 1), default=0.08,
        help="smallest area of a random resized crop; 1: none")
    add("--flip", action=argparse.BooleanOptionalAction, default=True, help="flip half the images")
    add("--aa", default="rand-m9-mstd0.5-inc1", help="RandAugment or AutoAugment; none: neither")
    add("--smoothing", type=number(float, 0, 1), default=0.1, help="label smoothing")
    add("--reprob", type=number(float, 0, 1), default=0.25, help="random erasing: probability")
    add("--remode", choices=("pixel", "const", "rand"), default="pixel", help="what it erases to")
    add("--recount", type=number(int, 1), default=1, help="erased boxes per image")
    add("--mixup", type=number(float, 0), default=0.8, help="alpha; 0: no mixup")
    add("--cutmix", type=number(float, 0), default=1.0, help="alpha; 0: no cutmix")
    add("--cutmix_minmax", type=float, nargs=2, help="range of the box's side, instead of alpha")
    add("--mixup_prob", type=number(float, 0, 1), default=1.0, help="of either")
    add("--mixup_switch_prob", type=number(float, 0, 1), default=0.5, help="of cutmix, of both")
    add("--mixup_mode", choices=("batch", "pair", "elem"), default="batch",
        help="one draw per 32 images of the global batch, as MAE, per pair or per image")
    # fmt: on
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    args = arguments.parse_args(get_args_parser(), "finetune", argv)
    if args.eval and args.resume in ("", "auto"):
        raise UsageError("--eval needs --resume FILE: name the fine-tuned checkpoint")
    few_label_runs.check_flags(args)
    if uses_mixup(args) and args.batch_size % 2 and not args.eval:
        raise UsageError(
            f"--batch_size {args.batch_size} is odd, and mixup pairs images: use an even one, or "
            "--mixup 0 --cutmix 0"
        )
    return args


def uses_mixup(args: argparse.Namespace) -> bool:
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def build_model(
    args: argparse.Namespace, pretrained: Pretrained | None, num_classes: int
) -> nn.Module:
    """The classifier that the flags describe, with the checkpoint's weights."""
    model = build_encoder(
        args.model,
        num_classes,
        args.input_size,
        args.in_chans,
        args.global_pool,
        args.drop_path,
        args.grad_checkpointing,
        architecture(pretrained, args.model),
    )
    if args.eval:
        check = "--model, --input_size and --cls_token"
        load_weights(model, pretrained.raw, args.resume, check=check)
        return model
    if pretrained:
        load_pretrained(pretrained, model)
    return model


def training_view(args: argparse.Namespace) -> CropAndFlip:
    augment = None if args.aa == "none" else AutoAugment(args.aa, args.input_size, args.mean)
    return CropAndFlip(args.input_size, args.min_crop, args.flip, augment=augment)


def build_augmentation(
    args: argparse.Namespace, normalize: nn.Module, num_classes: int
) -> Callable:
    """What is done to a training micro-batch on the device: normalise, erase, mix."""
    from timm.data.random_erasing import RandomErasing

    from util.data.batch_augmentation import BatchAugmentation, PositionalMixup

    if args.cutmix_minmax and uses_mixup(args):
        (low, high), side = args.cutmix_minmax, min(args.input_size)
        if not 0 <= low <= high <= 1 or int(low * side) >= int(high * side):
            raise UsageError(
                f"--cutmix_minmax {low:g} {high:g} are no shares of the image's side with a whole "
                f"number of {side} pixels between them: as 0.2 0.8"
            )
    erase = RandomErasing(args.reprob, mode=args.remode, max_count=args.recount)
    mix = None
    if uses_mixup(args):
        mix = PositionalMixup(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            cutmix_minmax=args.cutmix_minmax,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            mode=args.mixup_mode,
            label_smoothing=args.smoothing,
            num_classes=num_classes,
        )
    return BatchAugmentation(normalize, erase, mix, args.seed)


def main(args: argparse.Namespace) -> None:
    if args.draws:
        return few_label_runs.run_all(args, main)  # which runs this for each draw
    with Run(args) as run:
        source = (args.resume, "--resume") if args.eval else (args.finetune, "--finetune")
        pretrained = open_checkpoint(source[0], args, flag=source[1])
        train_images, val_images = few_label_runs.load(args)
        if args.eval:
            check_tested_on(args.resume, pretrained.config, train_images.classes, args)
        num_classes = len(train_images.classes)
        model = build_model(args, pretrained, num_classes).to(run.device)
        args.input_size = list(model.patch_embed.img_size)
        normalize = Normalize(args.mean, args.std).to(run.device)
        val = TransformedImages(val_images, evaluation_view(args), args.seed)
        val_batches = open_batches(args, val, False, run.device)
        shapes = block_shapes(model)
        precision = run.precision(max(dim for _, dim, _ in shapes))
        if args.eval:
            return run.finish(**evaluate(model, val_batches, normalize, precision))

        train = TransformedImages(train_images, training_view(args), args.seed)
        batches = open_batches(args, train, True, run.device)
        per_step = args.accum_iter * batches.global_size
        args.lr = optim.absolute_lr(args.lr, args.blr, per_step, args.blr_samples)
        groups = optim.layer_decay_groups(
            model, args.weight_decay, layer_lookup(model), args.layer_decay
        )
        optimizer = muon.new_optimizer(args.opt, model, groups)
        preflight.log_plan(args, model, batches, precision, 1, shapes, run.device)
        mean = WeightMean(model, args.ema_decay)
        objects = mean.objects() | dict(optimizer=optimizer, scaler=precision)
        about = dict(grid=list(model.patch_embed.grid_size), classes=train_images.classes)
        run.start(objects, describe(args, model, **about), batches)
        drop_paths = DropPaths(model, args.seed)
        if args.compile:
            distributed.compile_in_place(model, args.grad_checkpointing)
        wrapped = distributed.wrap(model, run.device, args.grad_compression, sync_buffers=False)
        augmentation = build_augmentation(args, normalize, num_classes)
        smoothing = 0.0 if augmentation.mix else args.smoothing  # mixup smooths its own targets

        def prepare(inputs: Tensor, targets: Tensor, *draw: int) -> tuple[Tensor, Tensor]:
            drop_paths.draw(*draw, len(inputs), run.device)
            return augmentation(inputs, targets, *draw)

        def test() -> dict[str, float]:
            with run.testing(val_batches):
                found = evaluate(mean.model, val_batches, normalize, precision, args.output_dir)
            return run.keep_best(found)

        while not run.is_finished():
            try:
                means = train_one_epoch(
                    wrapped, prepare, optimizer, precision, run, smoothing, mean.update
                )
                run.log_epoch(means, test() if run.is_due(args.test_every) else {})
                run.save_epoch()
            except NonFiniteLoss as error:
                run.recover(error)
        run.finish(**(test() if predictions.are_outdated(run, val_images) else {}))


if __name__ == "__main__":
    run_main(main, parse_args)
