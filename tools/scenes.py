"""A small world for segmentation and detection: scenes of pasted objects, whose masks are exact.

python -m tools.scenes OUT --source digits --images 2000 --size 128

OUT gets, for SPLIT in training and validation, which share no source image:
    images/SPLIT/00000000.jpg          the scenes
    annotations/SPLIT/00000000.png     ADE20K's label maps: 0 is nothing, classes count from 1
    instances_SPLIT.json               COCO's annotations; category ids are the label map's classes
    classes.txt                        their names, a line each
    classes_and_ground.txt             the same after `ground`, for maps read with --first_class 0
Segmentations are polygons along the pixels' edges, or uncompressed RLE for crowds and for what has
holes; decoded they are the visible mask to the pixel. Beyond COCO's keys, `sources` of an
annotation names what it was pasted from. A scene is a function of (seed, split, index).
"""

import logging

from util.data.loader import num_cores
from util.data.scenes.compose import World
from util.data.scenes.files import open_folder, write_world
from util.data.scenes.grounds import Photographs, Plain, Textures
from util.data.scenes.stickers import DEBIAN_STAMPS, SOURCES, SPLITS
from util.entry import run_main
from util.errors import UsageError
from util.flags.parser import ArgumentParser, number
from util.logging import setup_logging

VERSION = 1  # of the scenes: another one draws others from the same flags

log = logging.getLogger(__name__)


def parse_args(argv: list[str] | None = None):
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    # fmt: off
    add("out", metavar="OUT", help="the folder that is written: a new one, or one to go on with")
    add("--source", choices=tuple(SOURCES), default="digits", help="what is pasted")
    add("--images", type=number(int, 1), default=2000, help="training scenes")
    add("--val_images", type=number(int, 1), help="validation scenes (default: a fifth as many)")
    add("--one_class", default="", metavar="NAME",
        help="all objects are of this class (default: of their sources')")
    add("--size", type=number(int, 32, 4096), nargs="+", default=[128], metavar="PX",
        help="pixels: one number, or height and width; at least 64, with --tiles 32")
    add("--tiles", type=number(int, 8), default=0, metavar="PX",
        help="one object in each square of so many pixels, upright, white on black, in place of "
        "some of all sizes on textures: which class it is can be learnt in minutes")
    add("--seed", type=number(int, 0), default=0, help="every scene is a function of it")
    add("--data_path", default="",
        help=f"the source's folder (fashion_mnist: Debian's; stamps: {DEBIAN_STAMPS})")
    add("--download", action="store_true", help="let torchvision download fashion_mnist")
    add("--grounds", default="", help="a folder of photographs to paste on, instead of textures")
    add("--num_workers", type=number(int, 0), default=num_cores(),
        help="processes; more than there are cores are not started")
    # fmt: on
    args = parser.parse_args(argv)
    if len(args.size) > 2:
        parser.error(f"--size {args.size} takes one number, or a height and a width")
    if args.tiles > min(args.size) or (not args.tiles and min(args.size) < 64):
        parser.error(f"--size {min(args.size)} is below {args.tiles or 64}: use more pixels")
    if args.tiles and args.grounds:
        parser.error("--tiles lie on black: leave --grounds")
    args.val_images = args.val_images or max(1, args.images // 5)
    return args


def main(args) -> None:
    setup_logging()
    height, width = args.size[0], args.size[-1]
    stickers = SOURCES[args.source](args.data_path, args.download)
    if args.tiles:
        grounds = Plain()
    else:
        grounds = Photographs(args.grounds) if args.grounds else Textures()
    world = World(stickers, grounds, args.seed, height, width, args.one_class, args.tiles)
    names = ("source", "images", "val_images", "seed", "data_path", "grounds", "one_class")
    flags = {name: getattr(args, name) for name in names}
    flags |= {"tiles": args.tiles} if args.tiles else {}  # as before there were any
    flags |= {"size": [height, width], "version": VERSION}
    counts = dict(zip(SPLITS, (args.images, args.val_images), strict=True))
    try:
        if open_folder(args.out, flags):
            log.info("%s holds all of these scenes already", args.out)
            return
        annotations = write_world(world, args.out, counts, args.num_workers)
    except OSError as error:
        raise UsageError(
            f"OUT {args.out} cannot be written ({error.strerror}): free space on its disk or name "
            "another folder; the same command goes on where it ended"
        ) from None
    log.info(
        "%s: %d training and %d validation scenes of %d x %d, %d classes, %d objects, %d crowds",
        args.out,
        *counts.values(),
        height,
        width,
        len(world.classes),
        *(sum(about["iscrowd"] == is_crowd for about in annotations) for is_crowd in (0, 1)),
    )


if __name__ == "__main__":
    run_main(main, parse_args)
