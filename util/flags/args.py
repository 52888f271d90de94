"""The flags that all mains share, and how a command line is read: defaults, sources, checks."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence

from util.cluster.distributed import launcher_environment
from util.data.datasets import DATASETS
from util.errors import UsageError
from util.flags import defaults
from util.flags.defaults import Share
from util.flags.parser import ArgumentParser, epochs_or_share, number, refuse_second_rate, service
from util.flags.settings import Settings, fit_image_flags


def add_data_flags(
    parser: argparse.ArgumentParser, training: bool = True, loading: bool = True
) -> None:
    """Add the flags of data whose images have one label each, or none.

    Args:
        training: add those that choose a part of the training set, too.
        loading: add those of a loader, too.
    """
    add = parser.add_argument_group("data").add_argument
    # fmt: off
    add("--dataset", choices=sorted(DATASETS), metavar="NAME",
        help=f"one of {', '.join(DATASETS)}; digits where no --data_path is given, else "
        "image_folder. It brings the defaults of the flags whose help says 'by data set'")
    add("--data_path", default="",
        help="the data's folder; image_folder: with train/ and val/; shards: tars, as "
        "'train-{0000..0099}.tar::val-{00..09}.tar', or their folder; csv: lists of path,label; "
        "hugging_face: .parquet files, or what save_to_disk wrote")
    add("--image_column", default="", metavar="NAME",
        help="hugging_face: where there are several of images")
    add("--label_column", default="", metavar="NAME",
        help="hugging_face: where the features do not tell which column has the classes")
    add("--download", action="store_true", help="let torchvision download what is missing")
    # fmt: on
    if training:
        # fmt: off
        add("--train_fraction", type=number(float, 1e-9, 1.0), default=1.0,
            help="train on this share of each class, drawn once and for all")
        add("--subset_file", default="",
            help="train on the images listed in this file, a name a line")
        # fmt: on
    add_image_flags(add)
    if loading:
        add_loading_flags(add)


def add_cache_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a cache of decoded images."""
    add = parser.add_argument_group("cache").add_argument
    # fmt: off
    add("--cache_images", type=number(int, 1), nargs="?", const=0, metavar="PX",
        help="decode the images once, into a file of raw pixels that all processes map. Larger "
        "ones are reduced, their shape kept: as evaluations resize them, whose pixels stay the "
        "same; for random crops so far that the smallest is not enlarged, or until the shorter "
        "side has PX pixels, which takes less room and blurs small crops")
    add("--cache_dir", default="",
        help="where such files lie, best a disk of each node (default: mimae/images in the user's "
        "cache folder)")
    # fmt: on


def add_image_flags(add: Callable) -> None:
    """Add the flags of an image's size, channels and normalisation.

    Args:
        add: `add_argument` of a group, here and below.
    """
    # fmt: off
    add("--input_size", type=number(int, 1), nargs="+", metavar="PX",
        help="pixels: one number, or height and width")
    add("--in_chans", type=number(int, 1), help="image channels")
    add("--mean", type=float, nargs="+", help="per channel, of values in 0..1")
    add("--std", type=number(float, 1e-6), nargs="+", help="per channel")
    add("--value_range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="the numbers that become 0 and 1 in files of more than 8 bits (default: 0 and 65535 "
        "of unsigned 16 bits; floats and other integers stay as they are)")
    # fmt: on


def add_loading_flags(add: Callable) -> None:
    """Add the flags of how images are read."""
    # fmt: off
    add("--max_bad_images", type=number(int, 0), default=100,
        help="unreadable images are logged and, in training, replaced; more of them than this in "
        "one process end the run")
    add("--num_workers", type=number(int, 0), default=10,
        help="processes that load images; more than there are cores are not started")
    add("--pin_mem", action=argparse.BooleanOptionalAction, default=True,
        help="pinned memory, for faster copies to the GPU")
    # fmt: on


def add_encoder_flags(
    add: Callable, models: Iterable[str], without: str, default_model: str
) -> None:
    """The checkpoint that a downstream main starts from, and the encoder in it.

    Args:
        add: of an argument group. models: names that --model takes. without: what the main does
            where no checkpoint is given. default_model: the model then.
    """
    # fmt: off
    add("--finetune", default="", help="the pre-trained checkpoint or folder, of any layout "
        f"in encoders/layouts.py; none: {without}")
    add("--model", choices=models, metavar="NAME",
        help=f"one of {', '.join(models)} (default: the checkpoint's, else {default_model})")
    add("--num_heads", type=number(int, 1),
        help="attention heads of the checkpoint's encoder, where they are not 64 wide and its file "
        "does not tell")
    # fmt: on


def add_optimisation_flags(
    parser: argparse.ArgumentParser, batch_rule: str, least_epochs: int = 1
) -> None:
    """Add the flags of training that is counted in epochs.

    Args:
        batch_rule: how the help calls the number of samples in a step, which scales --blr.
        least_epochs: the fewest that --epochs takes; 0 where a run without a step is of use.
    """
    add = parser.add_argument_group("optimisation").add_argument
    passes = "passes over the data"
    passes += "" if least_epochs else "; 0: save the weights of the start, and end"
    # fmt: off
    add("--epochs", type=number(int, least_epochs), default=100, help=passes)
    add("--warmup_epochs", type=epochs_or_share, default=5, metavar="EPOCHS",
        help="epochs of linear warm-up, or a share of the run as 5%%")
    add("--blr", type=number(float, 0),
        help=f"base learning rate: lr = blr * {batch_rule} / blr_samples")
    add("--blr_samples", type=number(int, 1), default=256, help="samples that --blr is meant for")
    # fmt: on
    add_step_flags(add, "epochs", "absolute learning rate, instead of --blr")


def add_step_flags(add: Callable, unit: str, lr_help: str) -> None:
    """Add the flags of an optimiser step and of the learning rate's schedule.

    Args:
        unit: in which the schedule is counted: "epochs" or "iterations".
    """
    # fmt: off
    add("--images_per_step", type=number(int, 1), metavar="N",
        help="images of an optimiser step, on all processes; --batch_size and --accum_iter follow. "
        "Processes that cannot share N evenly take the nearest number that they can")
    add("--max_batch_size", type=number(int, 1), metavar="N",
        help="with --images_per_step: images that a GPU holds; what is more goes to --accum_iter")
    add("--batch_size", type=number(int, 1), default=64, help="images per GPU and micro-batch")
    add("--accum_iter", type=number(int, 1), default=1,
        help="micro-batches whose gradients make one step")
    add("--lr", type=number(float, 0, 100), help=lr_help)
    add("--warmup_lr", type=number(float, 0), default=0.0, help="the warm-up starts here")
    add("--min_lr", type=number(float, 0), default=0.0, help="the cosine or the power ends here")
    add("--lr_schedule", choices=("cosine", "cosine_whole", "poly", "multistep"), default="cosine",
        help="a cosine from the warm-up's end; one that counts the warm-up too, as SimMIM's; "
        "a power of the share that is left, --lr_power; or steps down at --lr_milestones")
    add("--lr_power", type=number(float, 0), default=1.0, help="of poly; 1 is a straight line")
    add("--lr_milestones", type=number(float, 0), nargs="+", default=[],
        help=f"{unit} at which multistep multiplies the rate by --lr_gamma")
    add("--lr_gamma", type=number(float, 0), default=0.1, help="see --lr_milestones")
    add("--weight_decay", type=number(float, 0), default=0.05,
        help="none on 1-D parameters, but in detection's heads and a probe by sgd; in "
        "fine-tuning, nor on position embeddings and tokens")
    add("--clip_grad", type=number(float, 1e-9), help="clip the gradient to this norm")
    add("--max_steps", type=number(int, 1), help="end after this many optimiser steps in all")
    # fmt: on


def add_opt_flag(add: Callable) -> None:
    """Add --opt, for the mains whose `muon.new_optimizer` takes it."""
    add("--opt", choices=("adamw", "muon"), default="adamw",
        help="AdamW; or Muon for the matrices of the blocks and AdamW for all else, at the same "
        "rate and decay, for torch 2.9 or newer (not in the paper)")  # fmt: skip


def add_ema_flag(add: Callable) -> None:
    """Add --ema_decay, for the mains that can test and save a `WeightMean`."""
    add(
        "--ema_decay",
        type=number(float, 0, 1),
        default=0.0,
        help="test and save the running mean of the weights, which forgets at this rate at most "
        "(at first faster); 0: none",
    )


def add_run_flags(parser: argparse.ArgumentParser, output_dir: str, training: bool = True) -> None:
    """Add the flags of every run: output folder, seed, device, precision, processes.

    Args:
        training: add those that only training has a use for, too.
    """
    group = parser.add_argument_group("run")
    add = group.add_argument
    # fmt: off
    kept = "checkpoints, log.txt, results.json, TensorBoard" if training else "all that is written"
    add("--output_dir", default=output_dir, help=kept)
    add("--seed", type=number(int, 0), default=0,
        help="every random number is a function of it" if training else "of untrained weights, of "
        "what is trained and of corruptions; which few labels are drawn does not depend on it")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--amp", choices=("auto", "bf16", "fp16", "none"), default="auto",
        help="mixed precision; auto: bf16 where the GPU computes in it, else fp16 with loss "
        "scaling; on a CPU bf16 where it is faster and the model is at least 384 wide, else fp32")
    add("--log_seconds", type=number(float, 0), default=60.0,
        help="where there is no terminal, seconds between lines that tell how far the run is; the "
        "first ones come sooner")
    add("--dist_timeout", type=number(float, 0.01), default=10.0,
        help="minutes to wait for the other ranks")
    if not training:
        return
    add("--compile", action="store_true", help="torch.compile the model")
    add("--log_every", type=number(int, 1), default=20,
        help="steps between looks at the losses, which go to TensorBoard")
    add("--grad_compression", choices=("none", "fp16", "bf16"), default="none",
        help="send gradients between processes in 16 bits: half the bytes, rounded sums")
    add("--log_to", type=service, default="", metavar="SERVICE",
        help="wandb or trackio, or SERVICE:PROJECT: what TensorBoard gets goes there, too; a "
        "requeued run goes on there")
    # fmt: on


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of checkpoints, for the mains whose training is counted in epochs."""
    add = parser.add_argument_group("checkpoints").add_argument
    # fmt: off
    add("--save_every_epochs", type=number(int, 1), default=1, help="epochs between checkpoints")
    add("--keep_epochs", type=number(int, 1), nargs="*", default=[],
        help="epochs after which checkpoint-<epoch>.pth is kept for good")
    # fmt: on
    add_saving_flags(add)


def add_saving_flags(add: Callable) -> None:
    """Add the flags of saving, of resuming, and of rolling back after a NaN."""
    # fmt: off
    add("--resume", default="",
        help="a checkpoint of this main, or auto: the newest whole one in --output_dir, if any")
    add("--save_every_steps", type=number(int, 1), help="steps between checkpoints, too")
    add("--keep_checkpoints", type=number(int, 1), default=2, help="how many of the last to keep")
    add("--on_nonfinite", choices=("stop", "rollback"), default="stop",
        help="a NaN or infinite loss: stop, or go back to the last checkpoint and pass over "
        "that step's batch")
    add("--max_rollbacks", type=number(int, 1), default=5, help="after so many, stop")
    # fmt: on


def parse_args(
    parser: ArgumentParser,
    job: str,
    argv: Sequence[str] | None = None,
    folders: Sequence[str] = ("data_path",),
) -> argparse.Namespace:
    """Parse flags; those not given take the model's defaults, the data set's, then the parser's.

    Args:
        job: `pretrain`, `finetune`, `linprobe`, …: which tables of `util.flags.defaults` apply.
        argv: the command line without its first word; None takes the process's.
        folders: flags that name images in class folders, and so the data set where none is given.

    Returns:
        The values, and in `settings` where each comes from.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    by_dataset, by_model = defaults.by_dataset(job), defaults.by_model(job)
    parser.tell_defaults({"data set": by_dataset, "model": by_model})
    refuse_second_rate(parser, argv)
    args = parser.parse_args(argv)
    if getattr(args, "lr", None) is not None and parser.is_given("blr", argv):
        parser.error("--lr and --blr are both given: use one of them (--lr is absolute)")
    of_folder = any(getattr(args, name) for name in folders)
    args.dataset = args.dataset or ("image_folder" if of_folder else "digits")
    tables = {"data set": by_dataset[args.dataset]}
    tables["model"] = by_model.get(getattr(args, "model", None), {})
    dests = {action.dest for action in parser._actions}
    sources = {}
    for source, table in tables.items():
        known = {name: value for name, value in table.items() if name in dests}
        parser.set_defaults(**known)
        sources |= dict.fromkeys(known, source)
    args = parser.parse_args(argv, argparse.Namespace(dataset=args.dataset))
    args.settings = Settings(parser.groups(), sources | parser.sources(argv))
    if isinstance(getattr(args, "warmup_epochs", None), Share):
        args.warmup_epochs = args.warmup_epochs * args.epochs
    if getattr(args, "lr", None) is not None:
        args.blr = None  # a default
    if getattr(args, "lr_schedule", None) == "multistep" and not args.lr_milestones:
        unit = "iterations" if "iterations" in dests else "epochs"
        parser.error(f"--lr_schedule multistep needs --lr_milestones: name the {unit}")
    try:
        fit_image_flags(args)
        set_batch_size(args)
    except UsageError as error:
        parser.error(str(error))
    return args


UNEVEN = 0.02  # by so much a step may differ from --images_per_step where it cannot be shared


def set_batch_size(args: argparse.Namespace) -> None:
    """Set --batch_size and --accum_iter from --images_per_step, where it is given, for the
    processes that were launched.

    Raises:
        UsageError: flags that contradict it, or processes that cannot share it.
    """
    wanted = getattr(args, "images_per_step", None)
    if wanted is None:
        if getattr(args, "max_batch_size", None) is not None:
            raise UsageError("--max_batch_size is of --images_per_step: give that, or --batch_size")
        return
    launched = launcher_environment()
    processes = int(launched["world_size"]) if launched else 1
    limit = args.max_batch_size or wanted
    of_each = round(wanted / processes)  # images on a process
    batch_size, accum_iter = of_each, 1
    if args.settings.is_given("batch_size"):
        batch_size, accum_iter = args.batch_size, max(1, round(of_each / args.batch_size))
    elif args.settings.is_given("accum_iter"):
        batch_size, accum_iter = round(of_each / args.accum_iter), args.accum_iter
    elif of_each > limit:
        accum_iter = -(-of_each // limit)
        batch_size = round(of_each / accum_iter)
    images = batch_size * accum_iter * processes
    given = args.accum_iter if args.settings.is_given("accum_iter") else accum_iter
    if abs(images / wanted - 1) > UNEVEN or batch_size > limit or given != accum_iter:
        raise UsageError(
            f"--images_per_step {wanted} is not {processes} process(es) x --batch_size "
            f"{args.batch_size if args.settings.is_given('batch_size') else batch_size} x "
            f"--accum_iter {given}"
            + f", with --max_batch_size {limit}" * (args.max_batch_size is not None)
            + ": leave --batch_size and --accum_iter away, or start another number of processes"
        )
    for name, value in (("batch_size", batch_size), ("accum_iter", accum_iter)):
        if not args.settings.is_given(name):
            setattr(args, name, value)
            args.settings.sources[name] = "--images_per_step"
