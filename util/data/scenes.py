"""A small world for segmentation and detection: scenes of pasted objects, whose masks are exact.

python -m util.data.scenes OUT --source digits --images 2000 --size 128

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

import contextlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from PIL import Image

from util import args as arguments
from util.args import number
from util.data.compose import World, compose
from util.data.grounds import Photographs, Textures
from util.data.loader import num_cores
from util.data.rle import segmentation
from util.data.stickers import DEBIAN_STAMPS, SOURCES, SPLITS
from util.entry import run_main
from util.errors import EXIT_DATA, RunError, UsageError
from util.logging import ProgressLine, setup_logging

VERSION = 1  # of the scenes: another one draws others from the same flags
RECORD = "scenes.json"  # the flags that the folder's scenes were made with
UNFINISHED = "unfinished"  # annotations of the blocks that are done, until all are
BLOCK = 32  # scenes that a process makes in one go

log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------- files


def write_scene(world: World, out: str, split: str, index: int) -> dict:
    """Write image and label map; what COCO's JSON says of them, but for the annotations' ids."""
    image, things = compose(world, split, index)
    labels = np.zeros((world.height, world.width), dtype=np.uint8)
    annotations = []
    for thing in things:
        labels[thing.visible] = number = world.class_of(thing) + 1
        about = {"image_id": index + 1, "category_id": number}
        about |= segmentation(thing.visible, thing.is_crowd)
        annotations.append(about | {"sources": thing.sources})
    name = f"{index:08d}"
    Image.fromarray(image).save(f"{out}/images/{split}/{name}.jpg", quality=92, subsampling=0)
    Image.fromarray(labels).save(f"{out}/annotations/{split}/{name}.png")
    about_image = {"id": index + 1, "file_name": f"{name}.jpg"}
    about_image |= {"height": world.height, "width": world.width}
    return {"image": about_image, "annotations": annotations}


_world: World | None = None  # a process's own: pickled once, not with every block


def _start_worker(world: World) -> None:
    global _world
    _world = world
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to report


def _write_block(world: World | None, out: str, split: str, first: int, last: int) -> list[dict]:
    """Scenes first to last - 1; a block that an earlier run has finished is not made again."""
    path = f"{out}/{UNFINISHED}/{split}-{first:08d}-{last:08d}.json"
    if os.path.exists(path):
        with open(path) as file:
            return json.load(file)
    scenes = [write_scene(world or _world, out, split, index) for index in range(first, last)]
    _write_json(path, scenes)
    return scenes


def _write_json(path: str, content) -> None:
    """At once or not at all."""
    with open(f"{path}.tmp", "w") as file:
        json.dump(content, file, separators=(",", ":"))
    os.replace(f"{path}.tmp", path)


def _blocks(world: World, out: str, counts: dict[str, int], num_workers: int) -> Iterator[tuple]:
    """(split, its scenes' records), block after block, whatever process makes them."""
    tasks = [
        (split, first, min(first + BLOCK, count))
        for split, count in counts.items()
        for first in range(0, count, BLOCK)
    ]
    num_workers = min(num_workers, num_cores(), len(tasks))
    if num_workers == 0:
        for task in tasks:
            yield task[0], _write_block(world, out, *task)
        return
    with ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(world,)) as pool:
        futures = [pool.submit(_write_block, None, out, *task) for task in tasks]
        try:
            for task, future in zip(tasks, futures, strict=True):
                yield task[0], future.result()
        except BaseException as error:
            for future in futures:  # else the pool's end would wait for all of them
                future.cancel()
            if isinstance(error, BrokenProcessPool):
                message = "a process died, perhaps for want of memory: lower --num_workers"
                raise RunError(f"{message}; the same command goes on", EXIT_DATA) from None
            raise


def write_world(world: World, out: str, counts: dict[str, int], num_workers: int) -> list[dict]:
    """Write all files of `counts[split]` scenes; the annotations of all splits."""
    for folder in ("images", "annotations"):
        for split in counts:
            os.makedirs(f"{out}/{folder}/{split}", exist_ok=True)
    os.makedirs(f"{out}/{UNFINISHED}", exist_ok=True)
    for name, ground in (("classes", []), ("classes_and_ground", ["ground"])):
        with open(f"{out}/{name}.txt", "w") as file:
            file.writelines(f"{name}\n" for name in ground + world.classes)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(world.classes)]
    splits = {split: {"images": [], "annotations": []} for split in counts}
    progress = ProgressLine("scenes", sum(counts.values()), 1)
    with contextlib.closing(_blocks(world, out, counts, num_workers)) as blocks:
        for split, records in blocks:
            content = splits[split]
            for record in records:
                content["images"].append(record["image"])
                for about in record["annotations"]:
                    content["annotations"].append({"id": len(content["annotations"]) + 1} | about)
            progress.update(sum(len(content["images"]) for content in splits.values()))
    progress.close()
    for split, content in splits.items():
        _write_json(f"{out}/instances_{split}.json", content | {"categories": categories})
    shutil.rmtree(f"{out}/{UNFINISHED}")
    return [about for content in splits.values() for about in content["annotations"]]


def open_folder(out: str, flags: dict) -> bool:
    """Make OUT the folder of these flags' scenes; whether all of them are there already.

    Raises:
        UsageError: it holds other things, or scenes of other flags; nothing is touched.
    """
    os.makedirs(out, exist_ok=True)
    names = sorted(name for name in os.listdir(out) if not name.endswith(".tmp"))
    if not names:
        _write_json(f"{out}/{RECORD}", flags)
        return False
    if RECORD not in names:
        raise UsageError(f"OUT {out} holds other things ({names[0]}): name a new or empty folder")
    with open(f"{out}/{RECORD}") as file:
        known = json.load(file)
    differing = [name for name in flags if known.get(name, "") != flags[name]]
    if differing:
        raise UsageError(
            f"OUT {out} holds scenes of other flags (--{differing[0]} was "
            f"{known.get(differing[0])}): name a new folder, or remove that one"
        )
    return UNFINISHED not in names and f"instances_{SPLITS[-1]}.json" in names


# ----------------------------------------------------------------------------------------- command


def parse_args(argv: list[str] | None = None):
    parser = arguments.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("out", metavar="OUT", help="the folder that is written: a new one, or one to go on with")
    add("--source", choices=tuple(SOURCES), default="digits", help="what is pasted")
    add("--images", type=number(int, 1), default=2000, help="training scenes")
    add("--val_images", type=number(int, 1), help="validation scenes (default: a fifth as many)")
    add("--one_class", default="", metavar="NAME",
        help="all objects are of this class (default: of their sources')")  # fmt: skip
    add("--size", type=number(int, 64, 4096), nargs="+", default=[128], metavar="PX",
        help="pixels: one number, or height and width; at least 64")  # fmt: skip
    add("--seed", type=number(int, 0), default=0, help="every scene is a function of it")
    add("--data_path", default="",
        help=f"the source's folder (fashion_mnist: Debian's; stamps: {DEBIAN_STAMPS})")  # fmt: skip
    add("--download", action="store_true", help="let torchvision download fashion_mnist")
    add("--grounds", default="", help="a folder of photographs to paste on, instead of textures")
    add("--num_workers", type=number(int, 0), default=num_cores(),
        help="processes; more than there are cores are not started")  # fmt: skip
    args = parser.parse_args(argv)
    if len(args.size) > 2:
        parser.error(f"--size {args.size} takes one number, or a height and a width")
    args.val_images = args.val_images or max(1, args.images // 5)
    return args


def main(args) -> None:
    setup_logging()
    height, width = args.size[0], args.size[-1]
    stickers = SOURCES[args.source](args.data_path, args.download)
    grounds = Photographs(args.grounds) if args.grounds else Textures()
    world = World(stickers, grounds, args.seed, height, width, args.one_class)
    names = ("source", "images", "val_images", "seed", "data_path", "grounds", "one_class")
    flags = {name: getattr(args, name) for name in names}
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
        args.out, *counts.values(), height, width, len(world.classes),
        *(sum(about["iscrowd"] == is_crowd for about in annotations) for is_crowd in (0, 1)),
    )  # fmt: skip


if __name__ == "__main__":
    run_main(main, parse_args)
