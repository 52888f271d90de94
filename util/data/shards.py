"""Images in tar files, in WebDataset's layout, read at any place by an index of their offsets.

A shard is a plain tar; what has one path up to the first dot of its name is one sample: an image,
and its label in KEY.cls or KEY.json. Where it has neither, the label is the folder in the key, or
the synset with which its name begins. As a map, not a stream: the order, a resume inside an epoch
and the number of processes are as with files.
"""

import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from util.data.file_index import IMAGE_SUFFIXES, JUNK_FOLDERS
from util.data.image_folders import published_set
from util.data.image_sets import Images
from util.data.images import NamedBytes, decode_image
from util.data.kept_index import Index, Made, indexed, stamp
from util.data.label_numbers import check_labelled, classes_of, labels_in, one_to_one, targets_of
from util.data.packed_files import PackedFiles
from util.data.split_files import needed_files, split_files
from util.errors import UsageError

log = logging.getLogger(__name__)

NUM_THREADS = 8
SHARD = ".tar"
BLOCK = 512  # bytes, a tar's unit
LARGEST = 2**20  # bytes of a label file
LABEL_KEYS = ("label", "cls", "class", "target")  # of a sample's JSON
NAME_KEYS = ("class_name", "synset", "wnid")
SYNSET = re.compile(r"(n\d{8})_")


class ShardImages(Images):
    """Images in tar files, which `relative_name` names as seen from the folder that has them all.

    Args:
        index: of `shard_index`. shards: what it is of.
    """

    def __init__(
        self, shards: Sequence[str], index: Index, targets: np.ndarray, classes: list[str],
        in_chans: int,
    ):  # fmt: skip
        self.packed, self.in_chans = PackedFiles(shards, index), in_chans
        self.targets, self.classes = targets, classes
        arrays = index.arrays
        self.members, self.shard_of = arrays["members"], arrays["shards"]
        self.places = arrays["places"]  # [n, 2]: offset and size

    def read(self, index: int) -> torch.Tensor:
        """Raises: OSError, ValueError: as `read_image`, or a shard that has changed."""
        data = NamedBytes(self.content(index), self.name(index))
        return decode_image(data, self.name(index), self.in_chans, self.value_range)

    def content(self, index: int) -> bytes:
        """The bytes of an image's file."""
        number, (offset, size) = int(self.shard_of[index]), self.places[index].tolist()
        return self.packed.part(number, offset, size, self.name(index))

    def name(self, index: int) -> str:
        shard = self.packed.paths[int(self.shard_of[index])]
        return os.path.join(shard, os.fsdecode(self.members[index]))

    def relative_name(self, index: int) -> str:
        return os.path.relpath(self.name(index), self.packed.root)

    def files(self, index: int) -> tuple[str, ...]:
        return (self.packed.paths[int(self.shard_of[index])],)


def load_shards(split: str, data_path: str, in_chans: int, download: bool) -> Images:
    """--dataset shards, as `util.data.datasets` has its sources."""
    paths = needed_files(data_path, split, (SHARD,))
    index = shard_index(paths)
    labels = known = labels_in(index)
    if split == "val" and (train := split_files(data_path, "train", (SHARD,), deep=True)):
        known = labels_in(shard_index(train))
    if labels.numbered != known.numbered:
        raise UsageError(
            f"--data_path {data_path}: the labels of one split are numbers, and the other's are "
            "names: both need the same"
        )
    classes = classes_of(known, data_path)
    targets = targets_of(labels, classes, data_path)
    images = ShardImages(paths, index, targets, classes, in_chans)
    check_labelled(targets, images.name, split, data_path)
    names = {classes[number] for number in np.unique(targets) if number >= 0}
    images.published = published_set(len(images), names) if split == "val" else ""
    return images


# -------------------------------------------------------------------------------------- the index


@dataclass
class Sample:
    """What lies under one key: images by name, with offset and size, and what labels it."""

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    word: str | None = None  # of a label file
    name: str | None = None  # of the class, where the word is its number


def shard_index(paths: Sequence[str]) -> Index:
    """The index of some shards.

    Arrays: `members` [n] (names), `shards` [n] (places in `paths`), `places` [n, 2] (offset, size),
    and `words` [n], the place of each label in the header's `words`, or -1.

    Raises:
        UsageError: a file that is no plain tar or is damaged, or no image in any.
    """
    index = indexed("shards 2", paths, lambda: _made(paths))
    if not len(index.arrays["members"]):
        raise UsageError(f"--data_path: {paths[0]} and the other shards hold no image")
    return index


def _made(paths: Sequence[str]) -> Made:
    made_of = [(real, stamp(real)) for real in map(os.path.realpath, paths)]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        of_shards = list(threads.map(lambda path: list(_images(path)), paths))
    rows = [(number, *row) for number, found in enumerate(of_shards) for row in found]
    words = sorted({word for *_, word, _, _ in rows if word is not None})
    place = {word: number for number, word in enumerate(words)} | {None: -1}
    are_files = all(is_file for *_, word, _, is_file in rows if word is not None)
    numbered = are_files and all(word.isdecimal() for word in words)
    pairs = {(word, name) for *_, word, name, _ in rows if word is not None and name is not None}
    header = {"words": words, "numbered": numbered, "names": one_to_one(pairs) if numbered else {}}
    arrays = {
        "members": np.array([os.fsencode(name) for _, name, *_ in rows], dtype=bytes),
        "shards": np.array([number for number, *_ in rows], dtype=np.int32),
        "places": np.array([place for _, _, place, *_ in rows], dtype=np.int64).reshape(-1, 2),
        "words": np.array([place[word] for *_, word, _, _ in rows], dtype=np.int32),
    }
    return header, arrays, made_of


def _images(path: str) -> Iterator[tuple[str, tuple[int, int], str | None, str | None, bool]]:
    """A shard's images: name, (offset, size), label, class's name, whether a file has the label."""
    for key, sample in samples(path).items():
        folder, stem = os.path.split(key)
        synset = SYNSET.match(stem)
        of_name = os.path.basename(folder) or (synset[1] if synset else None)
        plain = [name for name in sample.images if os.path.splitext(name)[0] == key]
        if len(plain) > 1:
            raise UsageError(
                f"--data_path: {path} has more than one image under a key ({plain[0]}, {plain[1]}):"
                " WebDataset's layout has one, and others as KEY.seg.png"
            )
        # Without a plain one they are files with dots in their names, which nobody meant as keys.
        for name in plain or sample.images:
            has_file = sample.word is not None
            word = sample.word if has_file else of_name
            yield name, sample.images[name], word, sample.name or of_name, has_file


def samples(path: str) -> dict[str, Sample]:
    """What a shard's members are, by their keys, in order."""
    found: dict[str, Sample] = {}
    for name, member, tar in _members(path):
        folder, base = os.path.split(name)
        sample = found.setdefault(os.path.join(folder, base.split(".")[0]), Sample())
        suffix = base.partition(".")[2].lower()
        if base.lower().endswith(IMAGE_SUFFIXES):
            sample.images[name] = member.offset_data, member.size
        elif suffix in ("cls", "json", "class", "label") and member.size <= LARGEST:
            _take_label(sample, suffix, tar.extractfile(member).read(), f"{path}/{name}")
    return found


def _take_label(sample: Sample, suffix: str, data: bytes, name: str) -> None:
    text = data.decode(errors="replace").strip()
    if suffix != "json":
        sample.word = text or sample.word
        return
    try:
        about = json.loads(text)
    except ValueError:
        raise UsageError(f"--data_path: {name} is no JSON: make the shard anew") from None
    if not isinstance(about, dict):
        return
    words, names = (
        [about[key] for key in keys if isinstance(about.get(key), str | int)]
        for keys in (LABEL_KEYS, NAME_KEYS)
    )
    sample.name = str(names[0]) if names else sample.name
    if sample.word is None and (words or names):
        sample.word = str((words or names)[0])


def _members(path: str) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
    """The regular files of a tar, by plain names; those that systems leave behind are passed over.

    Raises:
        UsageError: no plain tar, or one that is damaged or cut short.
    """
    whole, passed_over = "unpack compressed ones, or fetch it again", 0
    try:
        size = os.path.getsize(path)
        known: dict[str, tuple[int, int]] = {}  # offset and size, for hard links
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # a million of them
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("it is cut short")
                name = os.path.normpath(member.name)
                is_junk = any(p.startswith(".") or p.lower() in JUNK_FOLDERS
                              for p in name.split(os.sep))  # fmt: skip
                if member.islnk() and (target := os.path.normpath(member.linkname)) in known:
                    member.type = tarfile.REGTYPE  # the file itself, under another name
                    member.offset_data, member.size = known[target]
                is_file = member.isreg() and not member.issparse()
                passed_over += not (is_file or member.isdir() or is_junk)
                if is_file:
                    known[name] = member.offset_data, member.size
                if is_file and not is_junk:
                    yield name, member, tar
            tar.fileobj.seek(tar.offset)  # what is no header is taken for the end
            if any(tar.fileobj.read(BLOCK)):
                raise tarfile.ReadError(f"byte {tar.offset} begins no member")
        if passed_over:
            log.warning("%s: %d links or sparse files are passed over", path, passed_over)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(f"--data_path: {path} is no whole plain tar ({error}): {whole}") from None
