"""Features of any images by a frozen encoder, in one file; the nearest of them to a query; and how
alike two encoders are, block by block.

python -m tools.features runs/mimae/checkpoint-last.pth photos/ features.npy --what cls
python -m tools.features runs/mimae/checkpoint-last.pth photos/ features.npy --query one.jpg two.jpg
python -m tools.features runs/mimae/checkpoint-last.pth photos/ cka.png --like runs/mae/last.pth

Row i of OUT is the image in line i of NAME.names.txt; NAME.about.json says what was computed. A run
that was stopped goes on by the same command, on any number of processes (torchrun), and leaves the
same bytes.
"""

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from encoders.frozen import CLASS_TOKEN, PATCH_MEAN, FrozenEncoder, open_frozen
from encoders.load import SIZES
from util.cluster import agreement, distributed
from util.data.any_images import SPLITS, load_any, source_of
from util.data.datasets import DATASETS
from util.data.image_sets import Images
from util.data.loader import evaluation_view, loading, open_batches
from util.entry import run_main
from util.errors import EXIT_DATA, RunError, UsageError
from util.evaluation.frozen import neighbours, two_encoders, whole_file
from util.evaluation.frozen.features import (
    FeatureStore,
    check_batch_size,
    checksum,
    how_encoded,
    images_checksum,
    write_aside,
)
from util.evaluation.frozen.whole_file import FORMATS
from util.evaluation.heat_map import heat_map
from util.evaluation.tables import column_names
from util.flags import args as arguments
from util.flags.parser import ArgumentParser, number
from util.progress import ProgressLine
from util.provenance import commit
from util.training.precision import Precision
from util.training.run import Run

log = logging.getLogger(__name__)

AS_SAID_HERE = {"--output_dir": "OUT", "--data_path": "IMAGES", "--finetune": "CHECKPOINT"}
KINDS = {  # the summaries of tokens that each --what puts one after the other
    "cls": (CLASS_TOKEN,), "mean": (PATCH_MEAN,), "cls_mean": (CLASS_TOKEN, PATCH_MEAN),
    "maps": ("maps",),
}  # fmt: skip


def get_args_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    # fmt: off
    parser.add_argument("finetune", metavar="CHECKPOINT",
        help="of this project or anybody's; or `untrained`: random weights of --model")
    parser.add_argument("data_path", metavar="IMAGES",
        help="a folder of any depth, or with train/ and val/; a list (.csv, .tsv, .txt: "
        "path,label a line, or paths alone); shards (.tar); or a data set's name, as digits")
    parser.add_argument("out", metavar="OUT",
        help=f"the file to write ({', '.join(FORMATS)}); with --like its picture and JSON")

    add = parser.add_argument_group("features").add_argument
    add("--what", choices=KINDS, help="class token, mean of the patch tokens, both, or every patch "
        "token in its place [h, w, D] (default: cls, of a Swin mean)")
    add("--layer", type=number(int, 0), metavar="N",
        help="the output of block N (of a Swin: stage N), from 0 on, before any norm (default: the "
        "encoder's final, normed output)")
    add("--dtype", choices=("fp16", "fp32"), default="fp32", help="fp16: half the disk")
    add("--format", choices=FORMATS.values(), help="where OUT has another suffix")
    add("--overwrite", action="store_true", help="compute anew what lies at OUT")

    add = parser.add_argument_group("instead of, or after them").add_argument
    add("--query", nargs="+", default=[], metavar="IMAGE",
        help="show the images nearest to these, by cosine: NAME.query.png and NAME.query.json")
    add("--neighbours", type=number(int, 1), default=8, help="of each query")
    add("--like", default="", metavar="CHECKPOINT",
        help="instead: linear CKA of each block with each of another encoder")
    add("--images", type=number(int, 4), metavar="N",
        help="with --like: a random draw of so many (default: all)")

    add = parser.add_argument_group("encoder and machine").add_argument
    add("--model", choices=SIZES, metavar="NAME", help="the encoder, where no checkpoint says it")
    add("--num_heads", type=number(int, 1),
        help="attention heads of a checkpoint that does not tell them")
    add("--batch_size", type=number(int, 4), default=128, help="images per process")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--amp", choices=("auto", "bf16", "fp16", "none"), default="auto", help="mixed precision")
    add("--log_seconds", type=number(float, 0), default=60.0,
        help="where there is no terminal, seconds between lines that tell how far it is")
    add("--dist_timeout", type=number(float, 0.01), default=10.0,
        help="minutes to wait for the other processes")
    add("--seed", type=number(int, 0), default=0, help="of untrained weights and of draws")

    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=sorted(DATASETS), metavar="NAME",
        help=f"how IMAGES is read, one of {', '.join(DATASETS)} (default: as it looks)")
    add("--split", choices=SPLITS, default="",
        help="of images that have one (default: all of lists and shards; else train)")
    add("--subset_file", default="", help="only the images listed in this file, a name a line")
    arguments.add_image_flags(add)
    arguments.add_loading_flags(add)
    # fmt: on
    parser.set_defaults(train_fraction=1.0, download=False)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = get_args_parser()
    given = parser.parse_args(argv)
    argv += [] if given.dataset else ["--dataset", source_of(given.data_path)]
    args = arguments.parse_args(parser, "evaluate", argv)
    if args.data_path in DATASETS and not os.path.exists(args.data_path):
        args.data_path = ""  # where the set lies by itself
    stem, suffix = os.path.splitext(args.out)
    args.stem = stem if suffix in (*FORMATS, ".png", ".json") else args.out
    args.output_dir = f"{args.out}.parts"
    if args.images and not args.like:
        raise UsageError("--images is of --like: --subset_file names a part of the images")
    if args.like:
        if args.query or args.layer is not None:
            raise UsageError("--like compares all blocks: leave --query and --layer away")
        args.settings.refuse("with --like", "dtype", "format", "neighbours")
        if os.path.exists(f"{args.stem}.json") and not args.overwrite:
            raise UsageError(f"OUT {args.stem}.json is there: name another one, or --overwrite")
        return args
    args.format = args.format or FORMATS.get(suffix)
    if args.format is None:
        raise UsageError(f"OUT {args.out}: end it with {' or '.join(FORMATS)}, or give --format")
    others = [args.stem + end for end in FORMATS if args.stem + end != args.out]
    taken = [path for path in others if os.path.exists(path)]
    if taken:
        raise UsageError(
            f"OUT {args.out}: {taken[0]} is there, and the names beside it would be of both: name "
            "another file, or move it away"
        )
    if args.query and args.what == "maps":
        raise UsageError("--query compares images by one vector each: use --what cls or mean")
    if absent := [path for path in args.query if not os.path.isfile(path)]:
        raise UsageError(f"--query {absent[0]} is no file: check the path")
    if not args.query:
        args.settings.refuse("without --query", "neighbours")
    check_batch_size(args.batch_size)
    return args


def main(args: argparse.Namespace) -> None:
    try:
        with Run(args) as run:
            try:
                compare(run, args) if args.like else extract(run, args)
            finally:
                if distributed.is_main():
                    _remove_if_empty(args.output_dir)
    except UsageError as error:
        told = str(error)
        for flag, word in AS_SAID_HERE.items():
            told = told.replace(flag, word)
        raise UsageError(told) from None


def _remove_if_empty(folder: str) -> None:
    """Remove the folder of parts where nothing but its lock is in it."""
    if os.path.isdir(folder) and set(os.listdir(folder)) <= {".lock"}:
        shutil.rmtree(folder)


# --------------------------------------------------------------------------------------- features


def kind_of(args: argparse.Namespace, model: FrozenEncoder, name: str) -> str:
    """The value of --what, which the encoder must have; by default its first.

    Raises:
        UsageError: an encoder without blocks, or a class token where there is none.
    """
    if model.encoder is None:
        raise UsageError("pixels have no encoder: name a checkpoint, or untrained")
    what = args.what or ("cls" if CLASS_TOKEN in model.kinds else "mean")
    if "cls" in what and CLASS_TOKEN not in model.kinds:
        raise UsageError(f"--what {what}: {name} has no class token: use mean or maps")
    return what


def pick(layer: dict[str, Tensor], what: str) -> Tensor:
    """What --what means of a layer's summaries: [B, D], [B, 2·D] or [B, h, w, D]."""
    return torch.cat([layer[kind] for kind in KINDS[what]], dim=-1)


def extract(run: Run, args: argparse.Namespace) -> None:
    """Write OUT and what is beside it, where it is not there yet; then answer --query."""
    model, flags = open_frozen(args, args.finetune)
    what = kind_of(args, model, args.finetune)
    if args.layer is not None and args.layer >= model.depth:
        raise UsageError(f"--layer {args.layer}: {args.finetune} has blocks 0 to {model.depth - 1}")
    model.to(run.device)
    images, view = load_any(flags), evaluation_view(flags)
    precision = run.precision(width=0)  # on a CPU always fp32
    about = dict(
        what=what, layer="final" if args.layer is None else args.layer, encoder=checksum(model),
        model=flags.model, image_names=images_checksum(images),
        **how_encoded(flags, view, precision),
    )  # fmt: skip

    def encode(imgs: Tensor) -> Tensor:
        with precision.autocast():
            found = pick(model.layers(imgs)[-1 if args.layer is None else args.layer], what).float()
        kept = found.half() if args.dtype == "fp16" else found
        if not kept.isfinite().all():
            raise RunError(
                f"{args.finetune} gives features that are not finite in --dtype {args.dtype}: use "
                "fp32 and --amp none; or its weights are damaged"
            )
        return found

    out = whole_file.WholeFile(args.out, args.stem, args.format)
    wanted = about | {"dtype": args.dtype, "format": args.format}
    if args.overwrite or not agreement.main_does(lambda: out.is_there(wanted, images)):
        store = compute(run, args, images, about, encode, view)
        facts = {"checkpoint": args.finetune, "images": args.data_path or args.dataset}
        agreement.main_does(lambda: out.write(store, images, wanted | facts | {"commit": commit()}))
    if args.query:
        query = neighbours.Query(args.query, flags, view, lambda imgs: encode(imgs.to(run.device)))
        asked = (query, out, images, args.neighbours, run.device)
        agreement.main_does(lambda: save_results(f"{args.stem}.query", *neighbours.answer(*asked)))


def compute(
    run: Run, args: argparse.Namespace, images: Images, about: dict,
    encode: Callable[[Tensor], Tensor], view: Callable,
) -> FeatureStore:  # fmt: skip
    """Compute the parts that are missing, on all ranks."""
    folder = os.path.join(args.output_dir, "kept")

    def begin() -> FeatureStore:
        return FeatureStore(folder, about, images, args.dtype, flag="OUT")

    try:
        store = begin()
    except UsageError:  # others, of a run that was stopped
        if not args.overwrite:
            raise
        agreement.main_does(lambda: shutil.rmtree(folder, ignore_errors=True))
        store = begin()
    store.extract(
        lambda imgs, _: {whole_file.NAME: encode(imgs)}, view, run.device, "images",
        **loading(args, run.device),
    )  # fmt: skip
    if not len(store.ids()):
        raise RunError(f"IMAGES {args.data_path}: none of {len(images)} can be read", EXIT_DATA)
    return store


def save_results(stem: str, picture: Image.Image, content: object) -> None:
    """Write STEM.png and STEM.json."""
    try:
        write_aside(f"{stem}.png", lambda file: picture.save(file, "PNG"))
        whole_file.write_json(f"{stem}.json", content)
    except OSError as error:
        raise RunError(f"{stem}.png cannot be written ({error.strerror}): free space") from None
    log.info("%s.png and %s.json", stem, stem)


# -------------------------------------------------------------------------------- two encoders


def compare(run: Run, args: argparse.Namespace) -> None:
    """Write the CKA of two encoders' blocks, as a picture and as numbers."""
    words = (args.finetune, args.like)
    sides = []
    for word in words:
        model, flags = open_frozen(args, word, sides[0][1] if sides else None)
        sides.append((model.to(run.device), flags, kind_of(args, model, word)))
    sets = [load_any(flags) for _, flags, _ in sides]
    order = np.random.default_rng(args.seed).permutation(len(sets[0]))[: args.images]
    precision: Precision = run.precision(width=0)

    def features(side: int, imgs: Tensor) -> list[Tensor]:
        model, _, what = sides[side]
        with precision.autocast():
            return [pick(layer, what).flatten(1) for layer in model.layers(imgs.to(run.device))]

    data = two_encoders.TwoViews(*sets, *(evaluation_view(flags) for _, flags, _ in sides), order)
    own = two_encoders.own_part(len(order), args.batch_size)
    batches = open_batches(args, data.at(own), False, run.device, alone=True)
    depths = [model.depth + 1 for model, _, _ in sides]
    line = ProgressLine("images", len(own))
    values, num_images = two_encoders.align(batches, features, depths, run.device, line)
    unreadable = sum(agreement.gather(len(batches.own_left_out)))
    if not distributed.is_main():
        return
    names = column_names([], words) if words[0] != words[1] else ["first", "second"]
    ticks = [[*map(str, range(depth - 1)), "end"] for depth in depths]
    about = dict(
        cka=[[None if v != v else v for v in row] for row in values], images=num_images,
        unreadable=unreadable,
        batch_size=args.batch_size, checkpoints=list(words), what=[what for _, _, what in sides],
        layers=ticks, data=args.data_path or args.dataset, seed=args.seed, commit=commit(),
    )  # fmt: skip
    kinds = " and ".join(dict.fromkeys(what for _, _, what in sides))
    title = ["Linear CKA, block by block", f"{kinds} of {num_images} images, unbiased estimate"]
    axes = [(f"blocks of {name}", ticks[side]) for side, name in enumerate(names)]
    save_results(args.stem, heat_map(title, values, *axes), about)


if __name__ == "__main__":
    run_main(main, parse_args)
