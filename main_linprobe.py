"""Linear probing (LARS, frozen encoder) or k-NN (--knn) of a pre-trained encoder.

    python main_linprobe.py --finetune output_dir/pretrain/checkpoint-last.pth

Without --finetune it measures a random encoder, with --model pixels the raw images: the two
baselines that a representation has to beat.
"""

import argparse
import logging

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from encoders.load import (
    SIZES,
    architecture,
    build_encoder,
    describe,
    load_pretrained,
    open_checkpoint,
)
from encoders.vit import Features, LinearProbe, Pixels
from engine_finetune import evaluate, train_one_epoch
from util.checks import image_size
from util.cluster import distributed
from util.data.datasets import load_images
from util.data.loader import Batches, evaluation_view, open_batches
from util.data.transformed import TransformedImages
from util.data.transforms import CropAndFlip, Normalize
from util.data.unreadable import LEFT_OUT, beside
from util.entry import run_main
from util.errors import UsageError
from util.evaluation import predictions
from util.evaluation.frozen.knn import extract_features, readable, weighted_knn
from util.flags import args as arguments
from util.flags.parser import ArgumentParser, number
from util.flags.settings import take_from_checkpoint
from util.training import optim, preflight
from util.training.nonfinite import NonFiniteLoss
from util.training.run import Run
from util.training.same_run import check_tested_on
from util.weights.checkpoint_file import read_checkpoint
from util.weights.fit import load_weights
from util.weights.opened_by_all import opened_by_all

log = logging.getLogger(__name__)

MODELS = (*SIZES, "pixels")


def get_args_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    arguments.add_data_flags(parser)
    arguments.add_cache_flags(parser)
    arguments.add_optimisation_flags(parser, "images_per_step")
    arguments.add_run_flags(parser, "output_dir/linprobe")
    arguments.add_checkpoint_flags(parser)
    parser.set_defaults(batch_size=512, epochs=90, warmup_epochs=10, weight_decay=0.0, blr=0.1)

    add = parser.add_argument_group("linear probe").add_argument
    arguments.add_encoder_flags(add, MODELS, "a random encoder", "the data set's")
    # fmt: off
    add("--global_pool", action="store_true", help="probe the mean of the patch tokens")
    add("--cls_token", action="store_false", dest="global_pool",
        help="probe the class token (the default)")
    add("--optimizer", choices=("lars", "sgd"), default="lars", help="both with momentum 0.9")
    add("--min_crop", type=number(float, 0.01, 1), default=0.08,
        help="smallest area of a random resized crop; 1: none. Without crop and flip the "
        "features are computed once")
    add("--flip", action=argparse.BooleanOptionalAction, default=True, help="flip half the images")
    add("--eval", action="store_true", help="only evaluate the probe in --resume")
    add("--knn", action="store_true", help="k-NN accuracy of the features instead of a probe")
    add("--knn_k", type=number(int, 1), default=20, help="neighbours")
    add("--knn_temperature", type=number(float, 1e-3), default=0.07, help="of their votes")
    # fmt: on
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    args = arguments.parse_args(get_args_parser(), "linprobe", argv)
    if args.eval and args.resume in ("", "auto"):
        raise UsageError("--eval needs --resume FILE: name the probe's checkpoint")
    if args.knn and args.resume not in ("", "auto"):  # auto: a launcher gives it to every job
        raise UsageError("--knn takes its encoder from --finetune: leave --resume away")
    if args.batch_size == 1 and not (args.knn or args.eval):
        raise UsageError("--batch_size 1 gives the head's BatchNorm no variance: use more")
    if not args.knn:
        args.settings.refuse("without --knn", "knn_k", "knn_temperature")
    if args.model == "pixels":
        args.settings.refuse("with --model pixels", "global_pool")
    if args.model == "pixels" and args.finetune:
        raise UsageError("--model pixels has no weights: leave --finetune away")
    return args


def build_frozen(args: argparse.Namespace) -> tuple[nn.Module, int]:
    """The frozen encoder that the flags describe, and the width of its features."""
    pretrained = described = open_checkpoint(args.finetune, args)
    if args.eval:
        probe = opened_by_all(args.resume, lambda: read_checkpoint(args.resume, "--resume"))
        config = probe.get("config")
        if isinstance(config, dict) and config.get("model") == "pixels":
            take_from_checkpoint(args, config)
        else:
            described = open_checkpoint(args.resume, args, flag="--resume")
    if args.model == "pixels":
        size = image_size(args.input_size, 1)
        return Pixels(), args.in_chans * size[0] * size[1]
    encoder = build_encoder(
        args.model,
        0,
        args.input_size,
        args.in_chans,
        args.global_pool,
        architecture=architecture(described, args.model),
    )
    if pretrained:
        load_pretrained(pretrained, encoder)
    elif args.knn or not args.resume:
        log.warning("no --finetune: the encoder is random")
    return Features(encoder), encoder.num_features


class FeatureSet(Dataset):
    """Features computed once, as the loader reads them: (epoch, index) -> (feature, target, index
    of an image that could not be read, or −1)."""

    def __init__(self, source: TransformedImages, features: Tensor, targets: Tensor):
        self.images, self.problem = source.images, source.problem
        self.features, self.targets = features, targets

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int, int]:
        index, target = item[1], int(self.targets[item[1]])
        return self.features[index], target, index if target == LEFT_OUT else -1


def load_trained(probe: LinearProbe, classes: list[str], args: argparse.Namespace) -> None:
    """The weights that --eval tests, of data with these classes."""
    found = read_checkpoint(args.resume)
    check_tested_on(args.resume, found.get("config", {}), classes, args)
    check = "--model, --input_size and --global_pool"
    load_weights(probe, found.get("model", {}), args.resume, check=check)


def new_optimizer(args: argparse.Namespace, head: nn.Module) -> torch.optim.Optimizer:
    kind = optim.LARS if args.optimizer == "lars" else torch.optim.SGD
    return kind(head.parameters(), weight_decay=args.weight_decay, momentum=0.9)


def main(args: argparse.Namespace) -> None:
    with Run(args) as run:
        encoder, dim = build_frozen(args)
        encoder.to(run.device)
        if args.compile:
            distributed.compile_in_place(encoder, False)
        precision = run.precision(0 if args.model == "pixels" else dim)
        args.input_size = list(image_size(args.input_size, 1))
        normalize = Normalize(args.mean, args.std).to(run.device)
        train_transform = CropAndFlip(args.input_size, args.min_crop, args.flip, tf_style=True)
        view = evaluation_view(args)
        train_images = load_images(args, "train", min_crop=1.0 if args.knn else args.min_crop)
        val_images = load_images(args, "val")
        train = TransformedImages(train_images, view if args.knn else train_transform, args.seed)
        val = TransformedImages(val_images, view, args.seed)
        if args.knn:
            return knn(args, run, encoder, normalize, precision, train, val)

        probe = LinearProbe(encoder, dim, len(train_images.classes)).to(run.device)
        if args.eval:  # before features are computed with it
            load_trained(probe, train_images.classes, args)
        trained: nn.Module = probe
        if not train_transform.is_random:  # the features never change
            sets = [val] if args.eval else [train, val]
            sets = features_once(args, run, encoder, normalize, precision, sets)
            train, val = sets[0], sets[-1]
            trained, normalize = probe.head, nn.Identity()
        val_batches = loader(args, val, run, training=False)
        if args.eval:
            return run.finish(**evaluate(trained, val_batches, normalize, precision))

        batches = loader(args, train, run, training=True)
        per_step = args.accum_iter * batches.global_size
        args.lr = optim.absolute_lr(args.lr, args.blr, per_step, args.blr_samples)
        optimizer = new_optimizer(args, probe.head)
        preflight.log_plan(args, probe, batches, precision, 1, [], run.device)
        before = [weight.clone() for weight in encoder.parameters()]
        objects = dict(model=probe, optimizer=optimizer, scaler=precision)
        about = describe(args, getattr(encoder, "vit", None), classes=train_images.classes)
        run.start(objects, about, batches)
        if trained is not probe:
            check_same_encoder(before, encoder, args.resume)
        model = distributed.wrap(trained, run.device, args.grad_compression)

        def prepare(inputs: Tensor, targets: Tensor, *_) -> tuple[Tensor, Tensor]:
            return normalize(inputs), targets

        def test() -> dict[str, float]:
            with run.testing(val_batches):
                found = evaluate(trained, val_batches, normalize, precision, args.output_dir)
            return run.keep_best(found)

        while not run.is_finished():
            try:
                means = train_one_epoch(model, prepare, optimizer, precision, run)
                run.log_epoch(means, test())
                run.save_epoch()
            except NonFiniteLoss as error:
                run.recover(error)
        run.finish(**(test() if predictions.are_outdated(run, val_images) else {}))


def check_same_encoder(before: list[Tensor], encoder: nn.Module, resume: str) -> None:
    """Raises UsageError where a checkpoint's encoder is not the one that gave the features."""
    if not all(map(torch.equal, before, encoder.parameters())):
        raise UsageError(
            f"--resume {resume} probes another encoder than the one whose features were "
            "computed: give the same --finetune again"
        )


def loader(args: argparse.Namespace, data: Dataset, run: Run, training: bool) -> Batches:
    options = {"num_workers": 0} if isinstance(data, FeatureSet) else {}
    return open_batches(args, data, training, run.device, **options)


def features_of(
    args, run: Run, encoder, normalize, precision, data: TransformedImages, to_train: bool = False
) -> tuple[Tensor, Tensor]:
    batches = loader(args, data, run, False)
    return extract_features(encoder, batches, normalize, precision, to_train)


def features_once(
    args, run: Run, encoder, normalize, precision, sets: list[TransformedImages]
) -> list[FeatureSet]:
    """What a probe without augmentation is trained on, and tested on, the last of the sets."""
    log.info("no augmentation: features of %d images, once", sum(map(len, sets)))
    return [
        FeatureSet(
            data, *features_of(args, run, encoder, normalize, precision, data, data is not sets[-1])
        )
        for data in sets
    ]


def knn(args, run: Run, encoder, normalize, precision, train: TransformedImages, val) -> None:
    features = [features_of(args, run, encoder, normalize, precision, d) for d in (train, val)]
    read = [readable(*pair) for pair in features]
    options = dict(k=args.knn_k, temperature=args.knn_temperature, device=run.device)
    accuracy = weighted_knn(*read, **options)
    in_bank, in_test = (len(f[0]) - len(r[0]) for f, r in zip(features, read, strict=True))
    run.finish(
        knn_acc1=accuracy, **beside(in_test), **({"unreadable_train": in_bank} if in_bank else {})
    )


if __name__ == "__main__":
    run_main(main, parse_args)
