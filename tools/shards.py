"""Write a folder of images as tar shards, in WebDataset's layout, for --dataset shards.

python -m tools.shards /data/imagenet /shared/imagenet-shards

FOLDER has train/CLASS/IMAGE and val/CLASS/IMAGE, or is any tree of images without labels. Files are
copied as they are, in the order of --dataset image_folder: member CLASS/NAME.jpg and, with the
class's number, CLASS/NAME.cls. The same folder makes the same bytes.
"""

import argparse
import io
import os
import tarfile
from collections.abc import Iterator

from PIL import Image

from util.data.image_folders import load_flat, load_image_folder
from util.data.image_sets import Images
from util.data.images import ARRAY_START
from util.entry import run_main
from util.errors import UsageError
from util.flags.parser import ArgumentParser, number
from util.logging import setup_logging
from util.progress import ProgressLine

SUFFIXES = {"JPEG": ".jpg", "JPEG2000": ".jp2", "MPO": ".jpg"}  # of Pillow's formats


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="of images")
    parser.add_argument("out", metavar="OUT", help="an empty or new folder for the shards")
    parser.add_argument("--shard_mb", type=number(float, 1e-6), default=500,
        help="a shard ends with the image that makes it so large")  # fmt: skip
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    setup_logging()
    splits = _open(args.folder)
    try:
        os.makedirs(args.out, exist_ok=True)
        if os.listdir(args.out):
            raise UsageError(f"OUT {args.out} is not empty: name another folder")
        for split, images in splits.items():
            count = write_shards(images, os.path.join(args.out, split), args.shard_mb * 2**20)
            print(f"{args.out}: {len(images)} images of {split} in {count} shards")
    except OSError as error:
        raise UsageError(f"{error.filename or args.out}: {error.strerror}") from None


def _open(folder: str) -> dict[str, Images]:
    """The images of each split."""
    try:
        if not os.path.isdir(os.path.join(folder, "train")):
            return {"train": load_flat("pretrain", folder, 3, False)}
        splits = ["train"] + ["val"] * os.path.isdir(os.path.join(folder, "val"))
        return {split: load_image_folder(split, folder, 3, False) for split in splits}
    except UsageError as error:
        raise UsageError(str(error).replace("--data_path", "FOLDER")) from None


def write_shards(images: Images, stem: str, most_bytes: float) -> int:
    """Write STEM-0000.tar and so on; the number of shards.

    A shard has its name when it is whole.
    """
    progress, done, count = ProgressLine("images", len(images)), 0, 0
    for count, part in enumerate(_parts(images, most_bytes), 1):
        path = f"{stem}-{count - 1:04d}.tar"
        with tarfile.open(f"{path}.part", "w", format=tarfile.GNU_FORMAT) as shard:
            for index, key in part:
                with open(images.name(index), "rb") as file:
                    data = file.read()
                _add(shard, key + _suffix(images.name(index), data), data)
                if images.targets[index] >= 0:
                    _add(shard, f"{key}.cls", str(images.targets[index]).encode())
                done += 1
                progress.update(done)
        os.replace(f"{path}.part", path)
        progress.update(done, os.path.basename(path))
    progress.close()
    return count


def _parts(images: Images, most_bytes: float) -> Iterator[list[tuple[int, str]]]:
    """What each shard holds: indices and keys."""
    part, filled = [], 0
    for index, key in enumerate(_keys(images)):
        part.append((index, key))
        filled += os.path.getsize(images.name(index))
        if filled >= most_bytes:
            yield part
            part, filled = [], 0
    if part:
        yield part


def _keys(images: Images) -> Iterator[str]:
    """Each image's key, whose name has no dot; one that is taken gets a number."""
    taken: set[str] = set()
    for index in range(len(images)):
        folder, name = os.path.split(os.path.splitext(images.relative_name(index))[0])
        if images.classes:  # a key's folder is the class
            folder, *deeper = folder.split(os.sep)
            name = "_".join([*deeper, name])
        key = wanted = os.path.join(folder, name.replace(".", "_"))
        again = 1
        while key in taken:
            again += 1
            key = f"{wanted}-{again}"
        taken.add(key)
        yield key


def _suffix(name: str, data: bytes) -> str:
    """The suffix of a file, by its content where its name has none: members need one."""
    suffix = os.path.splitext(name)[1]
    if suffix:
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
