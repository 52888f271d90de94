"""Write images as tar shards, in WebDataset's layout.

python -m tools.shards /data/imagenet /shared/imagenet-shards

FOLDER has train/CLASS/IMAGE and val/CLASS/IMAGE, or is any tree of images without labels, or what
--dataset says. Files are copied as they are, in the data set's order: member CLASS/NAME.jpg and,
with the class's number, CLASS/NAME.cls. For --dataset shards.

FOLDER may also be COCO's, ADE20K's or a folder of tools.scenes: member NAME.jpg, with its label map
NAME.seg.png where there is one; annotations and class lists are copied beside the shards. For
main_detection.py and main_segmentation.py. The same folder makes the same bytes.
"""

import argparse
import contextlib
import functools
import io
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator

from PIL import Image

from util.data.datasets import DATASETS, columns_of
from util.data.dense.ade20k import CLASS_LISTS, FolderPairs
from util.data.dense.coco import LAYOUTS, SHARDED
from util.data.file_index import IMAGE_SUFFIXES, JUNK_FOLDERS
from util.data.image_folders import load_flat
from util.data.image_sets import FileImages, Images
from util.data.images import ARRAY_START
from util.entry import run_main
from util.errors import UsageError, first_line
from util.flags.parser import ArgumentParser, number
from util.logging import setup_logging
from util.progress import ProgressLine

SUFFIXES = {"JPEG": ".jpg", "JPEG2000": ".jp2", "MPO": ".jpg"}  # of Pillow's formats
COPIED = ("csv", "hugging_face", "image_folder", "shards")

Members = list[tuple[str, bytes]]  # of a sample: names, the image's first, and contents


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="of images")
    parser.add_argument("out", metavar="OUT", help="an empty or new folder for the shards")
    # fmt: off
    parser.add_argument("--dataset", choices=COPIED, metavar="NAME",
        help=f"what FOLDER is: one of {', '.join(COPIED)} (default: what its folders say)")
    parser.add_argument("--image_column", default="", metavar="NAME", help="of hugging_face")
    parser.add_argument("--label_column", default="", metavar="NAME", help="of hugging_face")
    parser.add_argument("--shard_mb", type=number(float, 1e-6), default=500,
        help="a shard ends with the image that makes it so large")
    # fmt: on
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    setup_logging()
    try:
        splits, beside = _open(args)
    except UsageError as error:
        raise UsageError(str(error).replace("--data_path", "FOLDER")) from None
    try:
        os.makedirs(args.out, exist_ok=True)
        if os.listdir(args.out):
            raise UsageError(f"OUT {args.out} is not empty: name another folder")
        for split, (samples, total) in splits.items():
            stem = os.path.join(args.out, split)
            count = write_shards(samples, total, stem, args.shard_mb * 2**20)
            print(f"{args.out}: {total} images of {split} in {count} shards")
        for path, name in beside.items():
            shutil.copyfile(path, os.path.join(args.out, name))
    except OSError as error:
        raise UsageError(f"{error.filename or args.out}: {error.strerror}") from None
    except UsageError:
        raise
    except ValueError as error:  # an image that is not there
        raise UsageError(f"FOLDER: {first_line(error)}") from None


def _open(
    args: argparse.Namespace,
) -> tuple[dict[str, tuple[Iterator[Members], int]], dict[str, str]]:
    """Each split's samples and their number, and what is copied beside them: paths and names."""
    if args.dataset is None and (found := _dense(args.folder)):
        return found
    is_split = args.dataset or os.path.isdir(os.path.join(args.folder, "train"))
    if not is_split:
        images = load_flat("pretrain", args.folder, 3, False)
        return {"train": (samples_of(images), len(images))}, {}
    load = functools.partial(DATASETS[args.dataset or "image_folder"].load, in_chans=3)
    load = functools.partial(load, data_path=args.folder, download=False, **columns_of(args))
    splits = {"train": load("pretrain")}
    if args.dataset or os.path.isdir(os.path.join(args.folder, "val")):
        try:
            splits["val"] = load("val")
        except UsageError as error:
            if not args.dataset:
                raise
            print(f"no shards of val: {str(error).replace('--data_path', 'FOLDER')}")
    return {name: (samples_of(images), len(images)) for name, images in splits.items()}, {}


def _dense(folder: str) -> tuple[dict, dict] | None:
    """The same of images with label maps or objects; None where the folder has none."""
    splits, beside = {}, {}
    for layout in LAYOUTS:
        for split, (annotations, images) in layout.items():
            kind, name = os.path.split(images)
            maps = os.path.join(folder, "annotations", name)
            has_objects = os.path.isfile(os.path.join(folder, annotations))
            has_maps = kind == "images" and os.path.isdir(maps)
            if not os.path.isdir(os.path.join(folder, images)) or not (has_maps or has_objects):
                continue
            if has_objects:
                beside[os.path.join(folder, annotations)] = SHARDED[split][0]
            pairs = FolderPairs(folder, name) if has_maps else None
            loaded = load_flat("pretrain", os.path.join(folder, images), 3, False)
            splits[split] = (_dense_samples(loaded, pairs), len(loaded))
    lists = (os.path.join(folder, name) for name in CLASS_LISTS)
    beside |= {path: os.path.basename(path) for path in lists if os.path.isfile(path)}
    return (splits, beside) if splits else None


# -------------------------------------------------------------------------------------- the shards


def write_shards(samples: Iterable[Members], total: int, stem: str, most_bytes: float) -> int:
    """Write STEM-0000.tar and so on; the number of shards.

    A shard has its name when it is whole.

    Args:
        samples: what lies under a key. total: their number, for the progress line.
    """
    progress, done, count = ProgressLine("images", total), 0, 0
    each = iter(samples)
    sample = next(each, None)
    while sample is not None:
        path, filled = f"{stem}-{count:04d}.tar", 0
        with _whole(path) as shard:
            while sample is not None and filled < most_bytes:
                for name, data in sample:
                    _add(shard, name, data)
                filled += len(sample[0][1])
                done += 1
                progress.update(done)
                sample = next(each, None)
        count += 1
        progress.update(done, os.path.basename(path))
    progress.close()
    return count


@contextlib.contextmanager
def _whole(path: str) -> Iterator[tarfile.TarFile]:
    """A tar that has its name once it is whole, and leaves nothing where something fails."""
    try:
        with tarfile.open(f"{path}.part", "w", format=tarfile.GNU_FORMAT) as shard:
            yield shard
        os.replace(f"{path}.part", path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(f"{path}.part")
        raise


def samples_of(images: Images) -> Iterator[Members]:
    """Images with their classes' numbers."""
    for index, key in enumerate(_keys(images)):
        data = images.content(index)
        members = [(key + _suffix(images.name(index), data), data)]
        if images.targets[index] >= 0:
            members.append((f"{key}.cls", str(images.targets[index]).encode()))
        yield members


def _dense_samples(images: FileImages, pairs: FolderPairs | None) -> Iterator[Members]:
    """Images with their label maps, where there are some."""
    place = {path: index for index, path in enumerate(pairs.paths)} if pairs else {}
    for index, key in enumerate(_keys(images)):
        data, path = images.content(index), images.relative_name(index)
        members = [(key + _suffix(images.name(index), data), data)]
        if path in place:
            number = place[path]
            suffix = os.path.splitext(pairs.map_paths[number])[1]
            members.append((f"{key}.seg{suffix}", pairs.map_content(number)))
        yield members


def _keys(images: Images) -> Iterator[str]:
    """Each image's key, whose name has no dot; one that is taken gets a number."""
    taken: set[str] = set()
    last: Counter[str] = Counter()
    root = _root(images)
    for index in range(len(images)):
        path = os.path.splitext(images.relative_name(index))[0]
        folder, name = os.path.split(os.path.relpath(path, root) if os.path.isabs(path) else path)
        folder = os.path.join("", *map(_plain, folder.split(os.sep)))
        if images.classes and images.targets[index] >= 0:  # a key's folder is the class
            label = _plain(images.classes[images.targets[index]].replace(os.sep, "_"))
            own, *deeper = folder.split(os.sep)
            folder, name = label, "_".join([*deeper, name] if own == label else [name])
        key = wanted = os.path.join(folder, name.replace(".", "_"))
        while key in taken:
            last[wanted] += 1
            key = f"{wanted}-{last[wanted] + 1}"
        taken.add(key)
        yield key


def _root(images: Images) -> str:
    """The folder that images named by whole paths, as in a list, have in common; else none."""
    names = map(images.relative_name, range(len(images)))
    folders = {os.path.dirname(name) for name in names if os.path.isabs(name)}
    return os.path.commonpath(folders) if folders else ""


def _plain(part: str) -> str:
    """A folder of a key under a name that readers of shards do not pass over."""
    is_junk = part.startswith(".") or part.lower() in JUNK_FOLDERS
    return f"_{part}" if is_junk else part


def _suffix(name: str, data: bytes) -> str:
    """The suffix of a file, by its content where its name has no image's: members need one."""
    suffix = os.path.splitext(name)[1]
    if suffix.lower() in IMAGE_SUFFIXES:
        return suffix
    if data.startswith(ARRAY_START):
        return ".npy"
    try:
        with Image.open(io.BytesIO(data)) as image:
            return SUFFIXES.get(image.format, f".{image.format.lower()}")
    except OSError:
        raise UsageError(f"FOLDER: {name} is no image: remove it, or give it a suffix") from None


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    shard.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    run_main(main, parse_args)
