"""See what a checkpoint makes of pictures: reconstructions, attention, features as colours.

    python -m tools.visualize output_dir/pretrain/checkpoint-last.pth
    python -m tools.visualize MIMAE.pth cat.jpg dogs/ --num_masks 4 --mask_ratio 0.75
    python -m tools.visualize MIMAE.pth cat.jpg --like MAE.pth --mask hole.png

Without pictures it takes some of the checkpoint's data set. Writes reconstructions.png (of
pre-training checkpoints, which have what predicts pixels), attention.png (the class token's, in the
last block) and features.png (the first three principal components of the patches, over all
pictures, as red, green and blue) to --output_dir. Pictures of any size are resized to the model's;
small ones are shown enlarged, pixel by pixel.
"""

import argparse
import copy
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

import main_pretrain
from encoders.attention import class_token_attention, patch_map
from encoders.frozen import FrozenEncoder
from encoders.load import SIZES, build_for, open_checkpoint
from encoders.vit import Pretrained
from models_masked import DrawnMask
from models_mimae import OrthogonalMasks
from util.checks import image_size
from util.cluster import distributed
from util.data.datasets import load_images
from util.data.drawn_mask import read_mask
from util.data.file_index import find_images
from util.data.images import read_image, to_float
from util.data.transforms import Normalize, ResizeCenterCrop
from util.entry import run_main
from util.errors import UsageError, first_line
from util.evaluation.pictures import (
    heat_map,
    picture_sheet,
    principal_colours,
    reconstruction_columns,
    to_image,
)
from util.evaluation.tables import column_names
from util.flags import args as arguments
from util.flags.parser import ArgumentParser, number
from util.logging import setup_logging

log = logging.getLogger(__name__)

KINDS = ("reconstructions", "attention", "features")
MOST, OF_DATA = 64, 6  # pictures at most; of a data set, where none is named
LARGEST = 448  # pixels of a picture's longer side on a sheet


def get_args_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    arguments.add_data_flags(parser, training=False, loading=False)
    add = parser.add_argument_group("what is shown").add_argument
    # fmt: off
    add("checkpoint", metavar="CHECKPOINT", help="of this project or anybody's")
    add("images", nargs="*", metavar="IMAGES", help="files, or folders of them (default: some of "
        "the checkpoint's data set, or of --dataset)")
    add("--like", default="", metavar="OTHER", help="another checkpoint, beside the first")
    add("--only", nargs="+", choices=KINDS, default=list(KINDS), help="these sheets")
    add("--output_dir", default="output_dir/visualize", help="the sheets are written there")
    add("--model", choices=SIZES, metavar="NAME", help="the encoder, where no checkpoint says it")
    add("--num_heads", type=number(int, 1),
        help="attention heads of a checkpoint that does not tell them")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    # fmt: on
    add = parser.add_argument_group("masks").add_argument
    # fmt: off
    add("--num_masks", type=number(int, 1), default=4, help="beside each other, for each picture")
    add("--mask_ratio", type=float, help="masked share of the patches (default: the run's)")
    add("--mask_type", choices=("orthogonal", "independent"), default="orthogonal",
        help="disjoint visible sets, or a draw for each mask")
    add("--mask", default="", metavar="FILE",
        help="one mask of your own: a picture, of which what is dark is hidden")
    add("--stats", choices=("true", "visible"), default="true",
        help="de-normalise predicted patches with their own or the visible patches' mean and "
        "variance")
    add("--seed", type=number(int, 0), default=0, help="of the masks")
    # fmt: on
    parser.set_defaults(subset_file="", train_fraction=1.0)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    args = arguments.parse_args(get_args_parser(), "evaluate", argv)
    if args.mask:
        args.settings.refuse("with --mask", "num_masks", "mask_ratio", "mask_type", "seed")
    return args


@dataclass
class Subject:
    """A checkpoint with what it shows.

    Args:
        originals: [B, C, H, W] in 0..1. normalize: what the encoder does to them.
        pretrained: the model that predicts pixels; None: the checkpoint has none.
    """

    name: str
    flags: argparse.Namespace
    frozen: FrozenEncoder
    originals: Tensor
    pretrained: nn.Module | None

    @property
    def normalize(self) -> Normalize:
        return self.frozen.normalize

    def shown(self) -> list[Image.Image]:
        return [to_image(image) for image in self.originals]


def main(args: argparse.Namespace) -> None:
    setup_logging()
    device = distributed.init_process_group(args.device)
    paths = [args.checkpoint, *([args.like] if args.like else [])]
    names = ["first", "second"] if paths[1:] == paths[:1] else column_names([], paths)
    named = zip(names, paths, strict=True)
    subjects = [open_subject(args, name, path, device) for name, path in named]
    makers = {
        "reconstructions": reconstructions, "attention": attention, "features": features,
    }  # fmt: skip
    sheets = {kind: makers[kind](subjects, args) for kind in dict.fromkeys(args.only)}
    sheets = {kind: sheet for kind, sheet in sheets.items() if sheet is not None}
    if not sheets:
        raise UsageError(f"{args.checkpoint} has nothing to show of: {', '.join(args.only)}")
    try:
        os.makedirs(args.output_dir, exist_ok=True)
        for kind, sheet in sheets.items():
            path = os.path.join(args.output_dir, f"{kind}.png")
            sheet.save(path)
            print(path)
    except OSError as error:
        raise UsageError(
            f"--output_dir {args.output_dir} cannot be written ({error.strerror}): name another one"
        ) from None


def open_subject(args: argparse.Namespace, name: str, path: str, device: torch.device) -> Subject:
    flags = copy.copy(args)
    flags.settings = copy.deepcopy(args.settings)
    opened = open_checkpoint(path, flags, flag="--like" if path == args.like else "CHECKPOINT")
    frozen = FrozenEncoder(build_for(opened, flags), Normalize(flags.mean, flags.std)).to(device)
    dataset = opened.config.get("dataset")
    if dataset and not args.settings.is_given("dataset") and not args.data_path:
        flags.dataset = dataset
    pixels = read_pictures(flags).to(device)
    pretrained = open_pretrained(opened, flags) if "reconstructions" in args.only else None
    if pretrained is not None:
        pretrained = pretrained.to(device).eval()
    return Subject(name, flags, frozen, pixels, pretrained)


# ---------------------------------------------------------------------------------- the pictures


def read_pictures(flags: argparse.Namespace) -> Tensor:
    """The pictures as the model sees them, before normalisation: [B, C, H, W] in 0..1.

    Raises:
        UsageError: one that cannot be read, none, or too many.
    """
    view = ResizeCenterCrop(image_size(flags.input_size, 1), 1.0)
    if flags.images:
        images = [read_picture(path, flags) for path in picture_paths(flags.images)]
    else:
        data = load_images(flags, "pretrain" if flags.dataset == "flat" else "val")
        count = min(OF_DATA, len(data))
        chosen = [i * len(data) // count for i in range(count)]
        images = [_read(lambda i=i: data.read(i), data.name(i)) for i in chosen]
    return torch.stack([to_float(view(image)) for image in images])


def picture_paths(words: Sequence[str]) -> list[str]:
    """The files that the command line names, those of folders among them."""
    paths = []
    for word in words:
        if os.path.isdir(word):
            paths += [os.path.join(word, path) for path in find_images(word)]
        else:
            paths.append(word)
    if not 1 <= len(paths) <= MOST:
        raise UsageError(f"{' '.join(words)}: {len(paths)} pictures: name 1 to {MOST}")
    return paths


def read_picture(path: str, flags: argparse.Namespace) -> Tensor:
    return _read(lambda: read_image(path, flags.in_chans, flags.value_range), path)


def _read(act: Callable[[], Tensor], path: str) -> Tensor:
    try:
        return act()
    except Exception as error:  # whatever a decoder makes of a damaged file
        raise UsageError(f"{path} cannot be read: {first_line(error)}") from None


# -------------------------------------------------------------------------------- reconstructions


def open_pretrained(opened: Pretrained, flags: argparse.Namespace) -> nn.Module | None:
    """The pre-training model of a checkpoint of this project or MAE's, with the masks that the
    flags say; None where it has none."""
    name = opened.config.get("model", f"mae_{flags.model}")
    if name not in main_pretrain.MODELS or "decoder_pred.weight" not in opened.raw:
        return None
    model = main_pretrain.restored(opened, name, img_size=flags.input_size, in_chans=flags.in_chans)
    units = model.masks.num_patches
    if flags.mask:
        model.masks = DrawnMask(read_mask(flags.mask, model.grid, units))
        return model
    ratio = flags.mask_ratio
    if ratio is None:
        ratio = opened.foreign.flags.get("mask_ratio", 0.75)
    model.masks = OrthogonalMasks(units, flags.num_masks, ratio, flags.mask_type)
    return model


def reconstructions(subjects: Sequence[Subject], args: argparse.Namespace) -> Image.Image | None:
    """Originals, and for each mask what is seen of them and what each checkpoint predicts."""
    shown, columns = [s for s in subjects if s.pretrained is not None], {}
    for subject in subjects:
        if subject.pretrained is None:
            log.warning("%s has nothing that predicts pixels: no reconstructions", subject.name)
    if not shown:
        return None
    found = [_predicted(subject, args) for subject in shown]
    share_masks = all(torch.equal(found[0][1], one[1]) for one in found)
    for subject, one in zip(shown, found, strict=True):
        for name, pictures in reconstruction_columns(*one).items():
            is_shared = share_masks and name.startswith("mask")
            columns[name if is_shared else _named(subject, name, shown)] = pictures
    masks = shown[0].pretrained.masks
    share = 1 - masks.num_visible / masks.num_patches
    what = f"with {args.stats} patch statistics" * shown[0].pretrained.norm_pix_loss
    caption = f"{100 * share:.0f} % of the patches masked, shown {what or 'as predicted'}"
    ordered = {"original": shown[0].shown()} | _by_mask(columns)
    return picture_sheet(ordered, caption=caption, max_cell=LARGEST)


def _named(subject: Subject, name: str, among: Sequence[Subject]) -> str:
    """A column's name, with whose it is where there are several."""
    return f"{subject.name}, {name}" if len(among) > 1 else name


def _by_mask(columns: dict[str, list[Image.Image]]) -> dict[str, list[Image.Image]]:
    """The columns of several checkpoints, those of the same mask beside each other."""
    return dict(sorted(columns.items(), key=lambda item: int(item[0].rsplit(" ", 1)[1])))


@torch.no_grad()
def _predicted(subject: Subject, args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Originals [B, C, H, W], what is masked [B, N, H, W] and what is predicted [B, N, …]."""
    model, imgs = subject.pretrained, subject.normalize(subject.originals)
    generator = torch.Generator().manual_seed(args.seed)
    noise = torch.rand(model.masks.noise_shape(len(imgs)), generator=generator).to(imgs.device)
    is_masked, predicted = model.reconstruct(imgs, noise, args.stats)
    is_masked = is_masked.view(len(imgs), -1, *model.grid)
    for side in (2, 3):
        is_masked = is_masked.repeat_interleave(model.patch_size, side)
    predicted = subject.normalize.inverse(predicted).unflatten(0, (len(imgs), -1))
    return subject.originals, is_masked, predicted


# ------------------------------------------------------------------------- attention and features


def attention(subjects: Sequence[Subject], args: argparse.Namespace) -> Image.Image | None:
    """Originals beside the class token's attention: the mean over heads; of one checkpoint each
    head, too."""
    columns = {}
    for subject in subjects:
        maps = class_token_attention(subject.frozen, subject.originals)
        if maps is None:
            log.warning("%s has no class token: no attention", subject.name)
            continue
        name = _named(subject, f"mean of {maps.shape[1]} heads", subjects)
        columns[name] = _heat_maps(subject, maps.mean(1))
        for head in range(maps.shape[1]) if len(subjects) == 1 else ():
            columns[f"head {head + 1}"] = _heat_maps(subject, maps[:, head])
    if not columns:
        return None
    caption = "the class token's attention to patches, last block; each map from its least to most"
    columns = {"original": subjects[0].shown()} | columns
    return picture_sheet(columns, caption=caption, max_cell=LARGEST)


def _heat_maps(subject: Subject, maps: Tensor) -> list[Image.Image]:
    pairs = zip(subject.shown(), maps, strict=True)
    return [heat_map(values, picture.size) for picture, values in pairs]


def features(subjects: Sequence[Subject], args: argparse.Namespace) -> Image.Image:
    """Originals beside their patch features as colours, those of each checkpoint by its own PCA."""
    columns = {"original": subjects[0].shown()}
    for subject in subjects:
        colours = principal_colours(patch_map(subject.frozen, subject.originals))
        side = subject.originals.shape[:1:-1]  # width, height
        name = subject.name if len(subjects) > 1 else "patch features"
        columns[name] = [to_image(c).resize(side, Image.Resampling.NEAREST) for c in colours]
    caption = "three principal components of all patches as red, green, blue" + (
        ", of each checkpoint its own: equal colours mean nothing between them"
    ) * (len(subjects) > 1)
    return picture_sheet(columns, caption=caption, max_cell=LARGEST)


if __name__ == "__main__":
    run_main(main, parse_args)
