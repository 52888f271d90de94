"""Images with label maps in tar shards, by WebDataset's keys: KEY.jpg and KEY.seg.png.

KEY.jpg is any format of images; the map is the key's other one, which `seg` in its name tells from
further ones. A shard's name says its split, as `training-0000.tar`.
"""

import os

import numpy as np

from util.data.kept_index import Made, indexed, stamp
from util.data.packed_files import PackedFiles
from util.data.shards import SHARD, Sample, samples
from util.data.split_files import needed_files
from util.errors import UsageError

SEG = "seg"


def are_sharded(data_path: str) -> bool:
    """Whether a folder, or a pattern, is of shards."""
    if not os.path.isdir(data_path):
        return SHARD in data_path
    is_tree = os.path.isdir(os.path.join(data_path, "images"))
    return not is_tree and any(name.endswith(SHARD) for name in os.listdir(data_path))


class ShardPairs:
    """Pairs of an image and its label map in shards, by number; see `ade20k.FolderPairs`.

    Args:
        data_path: a folder or patterns. split: `training` or `validation`.
    """

    def __init__(self, data_path: str, split: str):
        shards = needed_files(data_path, "val" if split == "validation" else "train", (SHARD,))
        index = indexed("pairs in shards 2", shards, lambda: _made(shards))
        self.packed, arrays = PackedFiles(shards, index), index.arrays
        self.shard_of, self.places = arrays["shards"], arrays["places"]
        if not len(self.places):
            raise UsageError(f"--data_path {data_path}: its {split} shards hold no image")
        self.map_folder = self.packed.root
        self.paths, self.map_paths = (
            [os.path.join(self._shard(i), os.fsdecode(name)) for i, name in enumerate(arrays[kind])]
            for kind in ("images", "maps")
        )

    def _shard(self, index: int) -> str:
        path = self.packed.paths[int(self.shard_of[index])]
        return os.path.relpath(path, self.packed.root)

    def name(self, index: int) -> str:
        return os.path.join(self.packed.root, self.paths[index])

    def map_name(self, index: int) -> str:
        return os.path.join(self.packed.root, self.map_paths[index])

    def content(self, index: int) -> bytes:
        offset, size = self.places[index, :2].tolist()
        return self.packed.part(int(self.shard_of[index]), offset, size, self.name(index))

    def map_content(self, index: int) -> bytes:
        offset, size = self.places[index, 2:].tolist()
        return self.packed.part(int(self.shard_of[index]), offset, size, self.map_name(index))

    def map_stamp(self, index: int) -> list[int]:
        modified, _ = self.packed.known[int(self.shard_of[index])]
        return [int(self.places[index, 3]), modified]

    def files(self, index: int) -> tuple[str, ...]:
        return (self.packed.paths[int(self.shard_of[index])],)


def _made(shards: list[str]) -> Made:
    made_of = [(real, stamp(real)) for real in map(os.path.realpath, shards)]
    rows = [
        (number, *_pair(sample, key, path))
        for number, path in enumerate(shards)
        for key, sample in samples(path).items()
        if sample.images
    ]
    arrays = {
        "shards": np.array([row[0] for row in rows], dtype=np.int32),
        "images": np.array([os.fsencode(row[1]) for row in rows], dtype=bytes),
        "maps": np.array([os.fsencode(row[2]) for row in rows], dtype=bytes),
        "places": np.array([(*row[3], *row[4]) for row in rows], dtype=np.int64).reshape(-1, 4),
    }
    return {}, arrays, made_of


def _pair(sample: Sample, key: str, path: str) -> tuple[str, str, tuple, tuple]:
    """The names of a sample's image and map, and their offsets and sizes."""
    images = [name for name in sample.images if os.path.splitext(name)[0] == key]
    maps = [name for name in sample.images if name not in images]
    named = [name for name in maps if name.removeprefix(f"{key}.").split(".")[0] == SEG]
    maps = named if len(maps) > 1 else maps
    if len(images) != 1 or len(maps) != 1:
        raise UsageError(
            f"--data_path: {path} has {len(images)} images and {len(maps)} label maps under the "
            f"key {key}: it takes one each, as {key}.jpg and {key}.{SEG}.png"
        )
    return images[0], maps[0], sample.images[images[0]], sample.images[maps[0]]
