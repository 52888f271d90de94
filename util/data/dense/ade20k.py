"""Images with a label map each, in ADE20K's layout; own data lies in the same one.

    ROOT/images/SPLIT/NAME.jpg          any format of `util.data.images`, any folders below SPLIT
    ROOT/annotations/SPLIT/NAME.png     its label map, as large as the image (no JPEG)
    ROOT/classes.txt                    a class a line; ADE20K itself has objectInfo150.txt
SPLIT is training or validation. A map holds numbers (grey or palette images of 8 or 16 bits, .npy),
of which the first class has `first_class`: 1 in ADE20K, whose 0 is nothing. Where a palette file
is given, maps are colours. 255, if it is no class, is nothing, too.

Or pairs lie in tar shards (`pair_shards`), with classes.txt beside them.
"""

import io
import os
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from util.cluster import agreement
from util.data.datasets import Images
from util.data.deep_pixels import packing
from util.data.dense.pair_shards import ShardPairs, are_sharded
from util.data.image_folders import image_tree
from util.data.images import NamedBytes, decode_image, open_picture
from util.data.same_data import check_same
from util.data.shards import SHARD
from util.data.split_files import named_files
from util.errors import UsageError, first_line

NOTHING = -1  # what is not labelled, and counts nowhere
UNLABELLED = 255  # in a file; also what many tools write there
CLASS_LISTS = ("classes.txt", "objectInfo150.txt", "classes_and_ground.txt")
FIRST = 10  # pairs of which one must be whole
LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")
Colour = tuple[int, int, int]


class Labels:
    """The classes, and how a label map's file tells them.

    Args:
        first_class: the value of the first class in a map.
        palette: (colour, class or NOTHING); None: maps hold numbers.
    """

    def __init__(
        self, classes: Sequence[str], first_class: int = 1,
        palette: Sequence[tuple[Colour, int]] | None = None,
    ):  # fmt: skip
        self.classes, self.first_class = list(classes), first_class
        self.palette = None if palette is None else [(tuple(c), int(i)) for c, i in palette]
        if self.palette is not None:
            codes = np.array([_code(np.array(colour)) for colour, _ in self.palette])
            order = np.argsort(codes)
            self.codes, self.of_codes = codes[order], np.array([i for _, i in self.palette])[order]

    def read(self, path: str, content: bytes | None = None) -> Tensor:
        """A label map: int16 [H, W], classes from 0 on and NOTHING.

        Args:
            content: the file's bytes, where it is none of the disk.

        Raises:
            UsageError: a value or colour that is no class (the line says where), or a file whose
                values are not what was drawn.
            OSError, ValueError: the file cannot be read.
        """
        values = self.read_values(path, content)
        classes, is_wrong = self.find(values, self.has_colours(path))
        if is_wrong.any():
            row, column = np.argwhere(is_wrong)[0]
            value = self.shown(values[row, column], self.has_colours(path))
            raise UsageError(
                f"{path} has the {value} at row {row}, column {column}"
                + self._advice(self.has_colours(path))
            )
        return torch.from_numpy(classes.astype(np.int16))

    def has_colours(self, path: str) -> bool:
        """Whether a map's values are colours, by their codes; arrays always hold numbers."""
        return self.palette is not None and not path.lower().endswith(".npy")

    def read_values(self, path: str, content: bytes | None = None) -> np.ndarray:
        """A map's numbers, or its colours' codes, as they stand in the file: [H, W].

        Raises: as `read` does.
        """
        content = _content(path) if content is None else content
        if path.lower().endswith(".npy"):
            values = np.load(io.BytesIO(content), allow_pickle=False)
        else:
            with open_picture(content, path) as image:
                _refuse_lossy(image, path, content)
                if self.palette is not None:
                    return _code(np.asarray(image.convert("RGB")))
                if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
                    raise UsageError(
                        f"{path} is a label map in colours ({image.mode}): name their classes in a "
                        "--palette file, or write maps of numbers"
                    )
                _refuse_stretched(image, path, content)
                values = np.asarray(image)
        if values.ndim != 2 or values.dtype.kind not in "bui":
            raise ValueError(f"{path}: an array of {values.shape} {values.dtype}, no label map")
        return values

    def find(self, values: np.ndarray, are_colours: bool) -> tuple[np.ndarray, np.ndarray]:
        """The classes, and NOTHING, of a file's numbers or codes; and where one is neither."""
        if are_colours:
            places = np.searchsorted(self.codes, values).clip(max=len(self.codes) - 1)
            return self.of_codes[places], self.codes[places] != values
        classes, num = values.astype(np.int64) - self.first_class, len(self.classes)
        is_nothing = (classes == -1) | ((values == UNLABELLED) & (classes >= num))
        is_wrong = ~is_nothing & ((classes < 0) | (classes >= num))
        return np.where(is_nothing, NOTHING, classes), is_wrong

    def shown(self, value: int, is_colour: bool) -> str:
        """`value 3`, or `colour 255 0 0`."""
        if is_colour:
            return f"colour {value >> 16} {value >> 8 & 255} {value & 255}"
        return f"value {value}"

    def _advice(self, are_colours: bool) -> str:
        if are_colours:
            return ", which is not in --palette: add it there, with the class - if it is nothing"
        num, first = len(self.classes), self.first_class
        return (
            f": the {num} classes are {first} to {first + num - 1}; correct the map, or check "
            "--classes and --first_class"
        )

    def write(self, path: str, classes: Tensor) -> None:
        """Write a map [H, W] of classes as `read` reads it, NOTHING too."""
        classes = classes.cpu().numpy()
        if self.palette is not None:
            Image.fromarray(self.colours()[classes]).save(path)
            return
        nothing = 0 if self.first_class else UNLABELLED
        values = np.where(classes == NOTHING, nothing, classes + self.first_class)
        dtype = np.uint8 if len(self.classes) + self.first_class <= 256 else np.uint16
        Image.fromarray(values.astype(dtype)).save(path)

    def colours(self) -> np.ndarray:
        """A colour for each class, uint8 [K + 1, 3], and last, so that −1 finds it, of nothing."""
        found = np.zeros((len(self.classes) + 1, 3), dtype=np.uint8)
        if self.palette is not None:
            for colour, number in reversed(self.palette):  # the first of a class's colours
                found[number] = colour
            return found
        # Hues by the golden ratio are far from each other, however many there are.
        for i in range(len(self.classes)):
            hue = int(255 * (i * 0.618034 % 1))
            value = (255, 190)[i // 8 % 2]
            hsv = Image.new("HSV", (1, 1), (hue, 200, value))
            found[i] = hsv.convert("RGB").getpixel((0, 0))
        return found


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _refuse_lossy(image: Image.Image, path: str, content: bytes) -> None:
    """Raises UsageError for a file that keeps about the pixels that were drawn, and not those."""
    is_lossy = image.format in LOSSY or image.info.get("compression") == "jpeg"  # in a TIFF
    if image.format == "WEBP":
        is_lossy = b"VP8L" not in content[:4096]  # the chunk of a lossless one
    if is_lossy:
        raise UsageError(
            f"{path} is a label map as {image.format}, which changes values where classes meet: "
            "write maps as PNG or .npy, from what they were made of"
        )


def _refuse_stretched(image: Image.Image, path: str, content: bytes) -> None:
    """Raises UsageError for greys of 2 or 4 bits, which Pillow stretches to 255, as shades are."""
    if image.mode != "L":
        return
    try:
        how = packing(Image.open(io.BytesIO(content)))  # which a loaded image does not tell
    except Exception:  # `open_picture` left its damaged metadata out
        return
    if how in ("L;2", "L;4"):
        raise UsageError(
            f"{path} is a grey label map of {how[-1]} bits, whose numbers most programs read as "
            "shades: write it with 8 bits, or with a palette"
        )


def _code(colours: np.ndarray) -> np.ndarray:
    """Colours [..., 3] as numbers [...]."""
    return colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


# ------------------------------------------------------------------------------ classes, palette


def read_labels(data_path: str, classes: str, first_class: int, palette: str) -> Labels:
    """The classes of a folder's label maps, by its own files or by those that are named.

    Raises:
        UsageError: a file that is missing or cannot be understood.
    """
    roots = [data_path]
    if SHARD in data_path and not os.path.isdir(data_path):
        shards = named_files(data_path, (SHARD,), deep=True)
        roots = [*dict.fromkeys(os.path.dirname(path) for path in shards)]
    own = [os.path.join(root, name) for root in roots for name in CLASS_LISTS[:2]]
    path = classes or next((path for path in own if os.path.isfile(path)), "")
    if not path:
        raise UsageError(
            f"--data_path {roots[0] or '.'} has no classes.txt: write one, a class a line, or name "
            "it with --classes"
        )
    lines = _lines(path, "--classes")
    if os.path.basename(path) == "objectInfo150.txt":  # a table under a head: Idx … Name
        lines = [line.split("\t")[-1].strip() for line in lines[1:]]
    if len(set(lines)) < len(lines) or not lines or "" in lines:
        raise UsageError(f"--classes {path} must hold a class a line, each once, and none empty")
    return Labels(lines, first_class, _read_palette(palette, lines) if palette else None)


def _read_palette(path: str, classes: list[str]) -> list[tuple[Colour, int]]:
    """Lines `R G B CLASS`; the class - is nothing."""
    numbers = {name: i for i, name in enumerate(classes)} | {"-": NOTHING}
    found: dict[Colour, int] = {}
    for line in _lines(path, "--palette"):
        *words, name = [*line.split(None, 3), ""][:4]
        colour = tuple(int(word) for word in words if word.isdecimal() and int(word) < 256)
        if len(colour) != 3 or name not in numbers or colour in found:
            raise UsageError(
                f"--palette {path}: {line!r} is not R G B CLASS with a colour of its own, and one "
                "of the classes or - for nothing"
            )
        found[colour] = numbers[name]
    absent = [name for name, number in numbers.items() if number not in [*found.values(), NOTHING]]
    if absent:
        raise UsageError(f"--palette {path} has no colour for {absent[0]}: add its line")
    return list(found.items())


def _lines(path: str, flag: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file.read().rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{flag} {path} cannot be read ({error})") from None


# ----------------------------------------------------------------------------------------- images


class FolderPairs:
    """Pairs of an image and its label map below a folder, by number.

    paths, map_paths: sorted, below `folder` and `map_folder`.
    """

    def __init__(self, root: str, split: str):
        self.folder = os.path.join(root, "images", split)
        self.map_folder = os.path.join(root, "annotations", split)
        self.paths, self.map_paths = _paired(self.folder, self.map_folder)

    def name(self, index: int) -> str:
        return os.path.join(self.folder, self.paths[index])

    def map_name(self, index: int) -> str:
        return os.path.join(self.map_folder, self.map_paths[index])

    def content(self, index: int) -> bytes:
        return _content(self.name(index))

    def map_content(self, index: int) -> bytes:
        return _content(self.map_name(index))

    def map_stamp(self, index: int) -> list[int]:
        """What changes where the map does: its size, and a time in nanoseconds."""
        status = os.stat(self.map_name(index))
        return [status.st_size, status.st_mtime_ns]

    def files(self, index: int) -> tuple[str, ...]:
        return self.name(index), self.map_name(index)


class MappedImages(Images):
    """Images with their label maps; `read(i)` gives [C, H, W] and int16 [H, W]."""

    def __init__(self, pairs: FolderPairs | ShardPairs, split: str, labels: Labels, in_chans: int):
        self.pairs = pairs
        self.labels, self.classes, self.in_chans = labels, labels.classes, in_chans
        if (split, len(pairs.paths), len(self.classes)) == ("validation", 2000, 150):
            self.published = "ADE20K's validation set"
        # In place of labels, for the ranks to compare.
        self.targets = np.array([zlib.crc32(os.fsencode(path)) for path in pairs.paths])

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        name, path = self.name(index), self.pairs.map_name(index)
        data = NamedBytes(self.pairs.content(index), name)
        image = decode_image(data, name, self.in_chans, self.value_range)
        labels = self.labels.read(path, self.pairs.map_content(index))
        if image.shape[1:] != labels.shape:
            raise ValueError(f"{path} has {_size(labels)} pixels, its image {name} {_size(image)}")
        return image, labels

    def name(self, index: int) -> str:
        return self.pairs.name(index)

    def files(self, index: int) -> tuple[str, ...]:
        return self.pairs.files(index)


def _size(image: Tensor) -> str:
    return "{} x {}".format(*image.shape[-2:])


def _paired(folder: str, map_folder: str) -> tuple[list[str], list[str]]:
    """Paths of images and of their maps, which have the same names but for the suffix."""
    found = []
    for path in (folder, map_folder):
        if not os.path.isdir(path):
            raise UsageError(
                f"--data_path: there is no folder {path}; images/ and annotations/ need training/ "
                "and validation/ each"
            )
        names = image_tree(path).names()
        found.append({os.path.splitext(name)[0]: name for name in names})
        if len(found[-1]) < len(names):
            raise UsageError(f"--data_path: {path} has two files of a name but for the suffix")
    images, maps = found
    if not images:
        raise UsageError(f"--data_path: {folder} holds no image: name a folder with images")
    for here, there, what, place in (
        (images, maps, "no label map", map_folder),
        (maps, images, "no image", folder),
    ):
        alone = sorted(here.keys() - there.keys())
        if alone:
            raise UsageError(
                f"--data_path: {len(alone)} of {len(here)} files have {what} in {place}, the first "
                f"is {here[alone[0]]}: add what is missing, or take them out"
            )
    stems = sorted(images)
    return [images[stem] for stem in stems], [maps[stem] for stem in stems]


def load_mapped_images(
    data_path: str, split: str, labels: Labels, in_chans: int,
    value_range: Sequence[float] | None = None,
) -> MappedImages:  # fmt: skip
    """A split of the data, of which a pair has been read.

    Raises:
        UsageError: data that is missing, empty or of no use; on all ranks, where one of them lacks
            it or has other images than the others.
    """

    def load() -> MappedImages:
        kind = ShardPairs if are_sharded(data_path) else FolderPairs
        images, problem = MappedImages(kind(data_path, split), split, labels, in_chans), ""
        images.value_range = value_range
        for index in range(min(len(images), FIRST)):
            try:
                images.read(index)
            except UsageError as error:
                raise UsageError(f"--data_path: {error}") from None
            except Exception as error:  # a damaged file, or data of another kind
                problem = problem or first_line(error)
            else:
                return images
        raise UsageError(f"--data_path: {problem}")

    images = agreement.main_first(load)
    check_same(images.targets, images.classes, f"{split} images")
    return images
