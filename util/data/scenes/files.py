"""Write and resume a folder of scenes: pictures, label maps, COCO's annotations; `tools.scenes`."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from PIL import Image

from util.data.dense.rle import segmentation
from util.data.loader import num_cores
from util.data.scenes.compose import World, compose
from util.data.scenes.stickers import SPLITS
from util.errors import EXIT_DATA, RunError, UsageError
from util.progress import ProgressLine

RECORD = "scenes.json"  # the flags that the folder's scenes were made with
UNFINISHED = "unfinished"  # annotations of the blocks that are done, until all are
BLOCK = 32  # scenes that a process makes in one go


def write_scene(world: World, out: str, split: str, index: int) -> dict:
    """Write a scene's image and label map; its entries of COCO's JSON, annotations without ids."""
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
    """Write the file by a rename, so that it is never half written."""
    with open(f"{path}.tmp", "w") as file:
        json.dump(content, file, separators=(",", ":"))
    os.replace(f"{path}.tmp", path)


def _blocks(world: World, out: str, counts: dict[str, int], num_workers: int) -> Iterator[tuple]:
    """(split, records of its scenes) block by block in order, whichever process makes them."""
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
    """Write all files of `counts[split]` scenes of each split; the annotations of all splits."""
    for folder in ("images", "annotations"):
        for split in counts:
            os.makedirs(f"{out}/{folder}/{split}", exist_ok=True)
    os.makedirs(f"{out}/{UNFINISHED}", exist_ok=True)
    for name, ground in (("classes", []), ("classes_and_ground", ["ground"])):
        with open(f"{out}/{name}.txt", "w") as file:
            file.writelines(f"{name}\n" for name in ground + world.classes)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(world.classes)]
    splits = {split: {"images": [], "annotations": []} for split in counts}
    progress = ProgressLine("scenes", sum(counts.values()))
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
    """Make the folder for these flags' scenes; True where all of them are in it already.

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
