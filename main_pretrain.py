"""Pre-train an encoder with MI-MAE, or with what else --model names: MAE, SimMIM, MI-SimMIM.

Without arguments: a tiny ViT on scikit-learn's digits, in minutes on a CPU. The ImageNet run:
    torchrun --nproc_per_node 8 main_pretrain.py @recipes/mimae_vit_base_200ep.args --data_path ...
"""

import argparse
import logging
import math
import os

import torch
from torch import nn

import models_mae
import models_mimae
import models_simmim
from encoders import swin
from encoders.load import describe
from encoders.vit import Pretrained
from engine_pretrain import explained, train_one_epoch
from util.cluster import distributed
from util.data.datasets import load_images
from util.data.images import of_one_type, to_tensor
from util.data.loader import Batches, evaluation_view, open_batches
from util.data.transformed import TransformedImages
from util.data.transforms import CropAndFlip, Normalize
from util.entry import run_main
from util.errors import UsageError
from util.evaluation.frozen.knn import KNNMonitor
from util.evaluation.pretraining_monitor import Monitor, reconstructions
from util.flags import args as arguments
from util.flags.defaults import shown
from util.flags.parser import ArgumentParser, loss_or_share, number
from util.training import muon, optim, preflight
from util.training.checkpoint import MEAN_PATCH, BufferState
from util.training.nonfinite import NonFiniteLoss
from util.training.run import Run
from util.weights.fit import load_weights

log = logging.getLogger(__name__)

LITTLE = 0.05  # a run that explains less of the pixels is warned of
MAES_FLAGS = ("mask_ratio", "norm_pix_loss")  # that its files tell and a model has
# What one pre-training model has and another may not: left out where it is not asked for.
ONLY_MI = ("approximation.", "mi_head.")
MODELS = models_mimae.MODELS | models_mae.MODELS | models_simmim.MODELS


def get_args_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    arguments.add_data_flags(parser)
    arguments.add_cache_flags(parser)
    arguments.add_optimisation_flags(parser, "images_per_step * num_masks", least_epochs=0)
    arguments.add_run_flags(parser, "output_dir/pretrain")
    arguments.add_checkpoint_flags(parser)
    parser.set_defaults(weight_decay=0.05, warmup_epochs=10, epochs=200, blr=1.5e-4)
    _add_model_flags(parser)
    _add_mask_flags(parser)
    _add_mutual_information_flags(parser)
    _add_monitoring_flags(parser)
    return parser


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model and training").add_argument
    # fmt: off
    add("--model", choices=sorted(MODELS), metavar="NAME",
        help=f"one of {', '.join(MODELS)}. MAE's and SimMIM's bring their own defaults")
    add("--norm_pix_loss", action=argparse.BooleanOptionalAction, default=True,
        help="predict pixels normalised per patch")
    add("--lambda_rec", type=number(float, 0), default=1.0, help="weight of the reconstruction")
    add("--pred_ratio", type=float, default=1.0,
        help="share of each mask's masked patches that are decoded, a random draw: below 1 a step "
        "is cheaper and its loss is no longer MAE's (not in the paper)")
    add("--decoder_depth", type=number(int, 1), metavar="BLOCKS",
        help="blocks of the decoder (default: the model's; MAE's has 8)")
    add("--grad_checkpointing", action="store_true", help="recompute blocks, to save memory")
    arguments.add_opt_flag(add)
    add("--betas", type=number(float, 0, 0.999999), nargs=2, default=[0.9, 0.95], help="of AdamW")
    add("--min_crop", type=number(float, 0.01, 1), default=0.2,
        help="smallest area of a random resized crop; 1: none")
    add("--interpolation", choices=("bicubic", "bilinear"), default="bicubic", help="of the crop")
    add("--flip", action=argparse.BooleanOptionalAction, default=True, help="flip half the images")
    # fmt: on


def _add_mask_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("masks").add_argument
    # fmt: off
    add("--num_masks", type=number(int, 0), default=4,
        help="N, masks per image; 0: complete masking, max(2, round(1 / (1 - mask_ratio)))")
    add("--mask_ratio", type=float, default=0.75, help="masked share of the patches")
    add("--mask_type", choices=("orthogonal", "independent"), default="orthogonal",
        help="disjoint visible sets, or a new draw for each mask")
    add("--mask_jitter", type=number(float, 0), default=0.0, metavar="STRENGTH",
        help="each mask sees each channel with a contrast of 1 +- so much, and brightness shifted "
        "by up to so many standard deviations: for studies of MI-MAE, not the paper's")
    # fmt: on


def _add_mutual_information_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("mutual information").add_argument
    # fmt: off
    add("--lambda_max", type=number(float, 0), default=1.0,
        help="lambda 1, of InfoNCE. With --accum_iter its negatives come from one micro-batch only")
    add("--lambda_min", type=number(float, 0), default=10.0, help="lambda 2, of CLUB")
    add("--exact_accum", action="store_true",
        help="with --accum_iter, InfoNCE and CLUB see the whole step all the same, from a first "
        "pass of the encoder over all micro-batches; costs about a fifth more time")
    add("--temperature", type=float, default=0.07, help="of InfoNCE")
    add("--latent_pool", choices=("cls", "mean"), default="cls",
        help="the latent: class token, or mean of the visible patch tokens (our choice)")
    add("--mi_head", choices=("none", "mlp"), default="none",
        help="InfoNCE compares the latents, or a projection of them that is dropped afterwards "
        "(our choice: the paper names none)")
    add("--club_level", choices=("image", "token"), default="image",
        help="CLUB on one row per masked image, or per visible token (our choice)")
    add("--club_negatives", choices=("image", "batch"), default="image",
        help="the second term of Eq. 10 is over the masks of the same image, or of the batch")
    add("--club_floor", choices=("batch", "none"), default="batch",
        help="follow CLUB only where the batch's estimate is above zero, or always, as Eq. 10 is "
        "printed (our choice: mutual information is not negative)")
    add("--lambda_uniformity", type=number(float, 0), default=0.0,
        help="weight of U-MAE's term, the mean squared cosine between latents of different images, "
        "from the first step on: for studies, not MI-MAE's")
    add("--train_approximation", action="store_true", default=True,
        help="train the approximation network")
    add("--no_train_approximation", action="store_false", dest="train_approximation",
        help="leave it at its random weights (the paper's ablation d)")
    add("--mi_start_loss", type=loss_or_share, default="auto", metavar="LOSS",
        help="epsilon of Assumption 3: the MI losses count once the running mean of the "
        "reconstruction loss has been below it. A share such as 80%% is of the loss of predicting "
        "the data's mean patch, above which nothing of an image is learnt; auto: "
        f"{models_mimae.ReconstructionGate.auto}%; inf: from the first step. The paper's number is "
        "not known")
    # fmt: on


def _add_monitoring_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("monitoring").add_argument
    # fmt: off
    add("--knn_every", type=number(int, 0), default=0,
        help="epochs between k-NN evaluations of the class token; 0: none")
    add("--monitor_every", type=number(int, 0), default=0, metavar="EPOCHS",
        help="epochs between looks at the same 512 images: effective rank, image share, alignment "
        "and uniformity; reconstructions, attention, patch features, neighbours and the latents "
        "in the plane; to TensorBoard, report.html and pictures/. 0: none")
    add("--monitor_share", type=number(float, 0), default=0.05, metavar="SHARE",
        help="of the training time that these may take: they are left out while it is more")
    add("--visualize", type=number(int, 0), nargs="?", const=4, default=0, metavar="IMAGES",
        help="at the end, write reconstructions of so many images (4) to reconstructions.png")
    add("--visualize_stats", choices=("true", "visible"), default="true",
        help="de-normalise predicted patches with their own or the visible patches' mean and "
        "variance")
    # fmt: on


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    args = arguments.parse_args(get_args_parser(), "pretrain", argv)
    if args.model in models_mae.MODELS:
        others = [name for name in MI_FLAGS if name not in MAES_OWN]
        args.settings.refuse(f"with --model {args.model}, which is MAE alone", *others)
    if not args.monitor_every:
        args.settings.refuse("without --monitor_every", "monitor_share")
    return args


MI_FLAGS = (
    "num_masks", "mask_type", "lambda_rec", "lambda_max", "lambda_min", "temperature",
    "latent_pool", "mi_head", "club_level", "club_negatives", "club_floor", "lambda_uniformity",
    "train_approximation", "mi_start_loss",
)  # fmt: skip
# Of values that are not MAE's `build_model` tells; a gate that is open is common to a study's runs.
MAES_OWN = (
    "num_masks", "lambda_rec", "lambda_max", "lambda_min", "lambda_uniformity", "mi_start_loss",
)  # fmt: skip


def model_options(args: argparse.Namespace) -> dict[str, object]:
    """The arguments of the model in MODELS that the flags describe."""
    names = ("in_chans", "mask_ratio", "norm_pix_loss", "grad_checkpointing")
    if args.model not in models_simmim.MODELS:
        names += ("pred_ratio", *["decoder_depth"] * (args.decoder_depth is not None))
    if args.model not in models_mae.MODELS:
        names += MI_FLAGS
    if args.model in models_mimae.MODELS:
        names += ("mask_jitter",)
    return {"img_size": args.input_size} | {name: getattr(args, name) for name in names}


def build_model(args: argparse.Namespace) -> nn.Module:
    """The model that the flags describe, on the CPU."""
    if args.lambda_rec == 0 and args.mi_start_loss != math.inf:
        raise UsageError("--lambda_rec 0 never reaches --mi_start_loss: use --mi_start_loss inf")
    is_saving = args.pred_ratio != 1 or args.decoder_depth is not None
    if args.model in models_simmim.MODELS and is_saving:
        raise UsageError(
            "--pred_ratio and --decoder_depth save nothing on SimMIM, which has no decoder: leave "
            "them away"
        )
    if args.mask_jitter and args.model not in models_mimae.MODELS:
        raise UsageError(f"--mask_jitter is of MI-MAE's ViTs: leave it with --model {args.model}")
    others = args.lambda_max or args.lambda_min or args.lambda_uniformity or args.lambda_rec != 1
    if args.model in models_mae.MODELS and (others or args.num_masks != 1):
        raise UsageError(
            f"--model {args.model} has one mask and no other loss: leave --num_masks and "
            f"--lambda_* away, or take --model mi{args.model}"
        )
    return MODELS[args.model](**model_options(args))


def restored(found: Pretrained, name: str, **options) -> nn.Module:
    """The model `name` of MODELS with the weights of a checkpoint of this project, MAE or SimMIM.

    Args:
        options: the model's own, as `img_size` and `num_masks`; by default those of the
            checkpoint's run, else the model's.

    Raises:
        UsageError: a checkpoint of another architecture.
    """
    args = parse_args(["--model", name, "--dataset", "image_folder"])
    flags = found.foreign.flags  # those of MAE's have the same names
    told = {"norm_pix_loss": False} | found.config | flags  # MAE's own default
    known = flags if found.is_ours else {}
    known = known | {k: told[k] for k in MAES_FLAGS if k in told}
    depth = len({k.split(".")[1] for k in found.raw if k.startswith("decoder_blocks.")})
    known = known | ({"decoder_depth": depth} if depth else {})
    vars(args).update(known | {"model": name})
    told = found.encoder_config()
    vars(args).update({flag: told[flag] for flag in ("input_size", "in_chans") if flag in told})
    model = MODELS[name](**model_options(args) | options)
    own, weights = model.state_dict(), swin.convert_simmim(found.raw)
    weights = {k: v for k, v in weights.items() if k in own or not k.startswith(ONLY_MI)}
    what = "checkpoint, the model's name, img_size and in_chans"
    load_weights(model, weights, found.path, may_miss=ONLY_MI, check=what)
    return model


def main(args: argparse.Namespace) -> None:
    with Run(args) as run:
        model = build_model(args)
        model.to(run.device)
        args.input_size = [side * model.patch_size for side in model.grid]
        crop = CropAndFlip(
            args.input_size, args.min_crop, args.flip, interpolation=args.interpolation
        )
        images = load_images(args, "pretrain", min_crop=args.min_crop)
        data = TransformedImages(images, crop, args.seed)
        batches = open_batches(args, data, True, run.device)
        normalize = Normalize(args.mean, args.std).to(run.device)
        num_masks = model.masks.num_masks
        per_step = args.accum_iter * batches.global_size * num_masks
        args.lr = optim.absolute_lr(args.lr, args.blr, per_step, args.blr_samples)
        groups = optim.decay_groups(model, args.weight_decay)
        optimizer = muon.new_optimizer(args.opt, model, groups, args.betas)
        shapes = model.block_shapes()
        precision = run.precision(max(dim for _, dim, _ in shapes))
        monitor = knn_monitor(args, normalize, precision) if args.knn_every else None

        preflight.log_plan(args, model, batches, precision, num_masks, shapes, run.device)
        objects = dict(model=model, optimizer=optimizer, scaler=precision)
        objects[MEAN_PATCH] = BufferState(model.mean_patch)
        mi = getattr(model, "mi", None)  # MAE alone has none
        if mi is not None:
            objects["gate"] = BufferState(mi.gate)
        uses_mi = mi is not None and mi.is_used
        tell_of_micro_batches(args, uses_mi)
        run.start(
            objects, describe(args, patch_size=model.patch_size, grid=list(model.grid)), batches
        )
        look = Monitor(args, batches.dataset.images, normalize) if args.monitor_every else None
        if args.compile:
            distributed.compile_in_place(model, args.grad_checkpointing)
        wrapped = distributed.wrap(model, run.device, args.grad_compression, sync_buffers=False)

        while not run.is_finished():
            try:
                means = train_one_epoch(wrapped, normalize, optimizer, precision, run)
                extra = {"explained": explained(means)} if means else {}  # all steps skipped
                extra |= {"mi_losses": int(uses_mi and mi.gate.is_open)}
                run.check_weights()
                if monitor and run.is_due(args.knn_every):
                    extra |= neighbours(run, monitor, model)
                run.log_epoch(means, extra)
                if look and distributed.is_main():
                    look(model, run)
                run.save_epoch()
            except NonFiniteLoss as error:
                run.recover(error)

        if args.epochs == 0:  # a control: an encoder of this initialisation, never trained
            run.save(for_certain=True)
        if args.visualize and distributed.is_main():
            _visualize(model, batches, normalize, run, args)
        if run.progress.total_steps and distributed.is_main():
            warn_of_little_learnt(run.journal.last_line(), args, uses_mi)
        run.finish()


def tell_of_micro_batches(args: argparse.Namespace, uses_mi: bool) -> None:
    """Say that the MI losses see a part of a step, where they do."""
    if uses_mi and args.accum_iter > 1 and not args.exact_accum:
        log.info(
            "the MI losses see one micro-batch of the %d at a time: InfoNCE has its negatives "
            "in it, CLUB is followed where it is above zero there; --exact_accum sees the step",
            args.accum_iter,
        )


def warn_of_little_learnt(found: dict[str, float], args: argparse.Namespace, uses_mi: bool) -> None:
    """Say where the last line of the log shows that images were not learnt, or not compared."""
    if found.get("explained", 1.0) < LITTLE:
        log.warning(
            "this run has learnt next to nothing of images: L_rec %.4g explains %.0f %% of the "
            "%.4g that predicting the data's mean patch costs; train longer, or with another --lr",
            found["train_rec"], 100 * found["explained"], found["train_mean_patch"],
        )  # fmt: skip
    if uses_mi and not found.get("mi_losses"):
        log.warning(
            "L_rec never fell below --mi_start_loss %s: the run went on without MI losses",
            shown(args.mi_start_loss),
        )


def neighbours(run: Run, monitor: KNNMonitor, model: nn.Module) -> dict[str, float]:
    """What a monitor finds, if no signal comes meanwhile."""
    with run.testing(*monitor.loaders):
        return monitor(model)


def knn_monitor(args: argparse.Namespace, normalize: Normalize, precision) -> KNNMonitor:
    """A monitor of the test split's k-NN accuracy; between its runs no loader processes wait."""
    train, val = (
        open_batches(
            args,
            TransformedImages(
                load_images(args, split, min_crop=min_crop), evaluation_view(args), args.seed
            ),
            False,
            precision.device,
            keep_workers=False,
        )
        for split, min_crop in (("train", args.min_crop), ("val", 1.0))  # the cache of training
    )
    return KNNMonitor(train, val, normalize, precision)


def _visualize(model, batches: Batches, normalize: Normalize, run: Run, args) -> None:
    """Write reconstructions.png, and the same picture to TensorBoard."""
    model.eval()
    pictures = TransformedImages(batches.dataset.images, evaluation_view(args), args.seed)
    count = min(args.visualize, len(pictures))
    read = [pictures[0, i * len(pictures) // count][0] for i in range(count)]
    imgs = normalize(torch.stack(of_one_type(read)).to(run.device))
    generator = torch.Generator().manual_seed(args.seed)
    noise = torch.rand(model.masks.noise_shape(count), generator=generator)
    what = f"{args.visualize_stats} patch statistics" if args.norm_pix_loss else "predicted pixels"
    sheet = reconstructions(
        model,
        imgs,
        noise.to(run.device),
        normalize,
        args.visualize_stats,
        f"{args.model}, epoch {run.progress.epoch}, mask ratio {args.mask_ratio:g}: masked patches "
        f"shown with {what}, visible ones as they are",
    )
    path = os.path.join(args.output_dir, "reconstructions.png")
    try:
        sheet.save(path)
    except OSError as error:  # a full disk ends no run
        return log.error("%s cannot be written (%s)", path, error.strerror)
    run.journal.image("reconstructions", to_tensor(sheet), run.progress.total_steps)
    log.info("reconstructions: %s", path)


if __name__ == "__main__":
    run_main(main, parse_args)
