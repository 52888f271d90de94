"""Image data sets in Hugging Face's files: Parquet, as the Hub has it, and `save_to_disk`'s Arrow.

An index knows where each image's bytes lie, so that they are read as a map: the order, a resume
inside an epoch and the number of processes are as with files. Of an Arrow file those are the bytes
themselves; of a Parquet file the page, about 1 MiB, in which they are packed with a few others.
pyarrow is needed, `datasets` is not.
"""

import functools
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from util.data.hugging_face_files import (
    ARROW,
    NO_BYTES,
    PARQUET,
    arrow_places,
    column_values,
    parquet_places,
    pyarrow,
    schema_of,
)
from util.data.hugging_face_schema import Columns, choose_columns, class_names
from util.data.image_sets import Images
from util.data.images import NamedBytes, decode_image
from util.data.kept_index import Index, Made, indexed, stamp
from util.data.label_numbers import check_labelled, classes_of, labels_in, targets_of
from util.data.packed_files import PackedFiles
from util.data.parquet_pages import DICTIONARY, values
from util.data.split_files import needed_files, split_files
from util.errors import UsageError

SUFFIXES = (PARQUET, ARROW)
KEPT_PAGES = 4  # unpacked, by a process: an evaluation reads images in order
PAGE = ("file", "offset", "stored", "unpacked", "rows", "encoding", "levels", "most", "dictionary",
        "codec")  # fmt: skip
NUM_THREADS = 8
STATE = "state.json"  # of `save_to_disk`: which files are the data set's


class HuggingFaceImages(Images):
    """Images in Parquet and Arrow files. Args: index: of `_index`. paths: what it is of."""

    def __init__(
        self, paths: Sequence[str], index: Index, targets: np.ndarray, classes: list[str],
        in_chans: int,
    ):  # fmt: skip
        self.packed, self.in_chans = PackedFiles(paths, index), in_chans
        self.targets, self.classes = targets, classes
        arrays, self.codecs = index.arrays, index.header["codecs"]
        self.names, self.places, self.pages = (arrays[n] for n in ("names", "places", "pages"))

    def read(self, index: int) -> torch.Tensor:
        """Raises: OSError, ValueError: as `read_image`, or a file that has changed."""
        data = NamedBytes(self.content(index), self.name(index))
        return decode_image(data, self.name(index), self.in_chans, self.value_range)

    def content(self, index: int) -> bytes:
        """The bytes of an image's file."""
        file, offset, size, page = self.places[index].tolist()
        if page >= 0:
            found = _unpacked(self, page)[offset]
        else:
            is_there = offset != NO_BYTES
            found = self.packed.part(file, offset, size, self.name(index)) if is_there else None
        if found is None and len(self.files(index)) > 1:  # its file lies beside the table
            with open(self.files(index)[1], "rb") as image:
                return image.read()
        if found is None:
            raise ValueError(f"{self.name(index)}: its row has no bytes of an image")
        return found

    def name(self, index: int) -> str:
        path = self.packed.paths[int(self.places[index, 0])]
        return os.path.join(path, os.fsdecode(self.names[index]))

    def relative_name(self, index: int) -> str:
        return os.path.relpath(self.name(index), self.packed.root)

    def files(self, index: int) -> tuple[str, ...]:
        """The table, and the file that its row names, whose bytes the row may lack."""
        table, name = self.packed.paths[int(self.places[index, 0])], os.fsdecode(self.names[index])
        if os.sep not in name:  # as it is written where the bytes are in the row
            return (table,)
        return table, os.path.join(os.path.dirname(table), name)


@functools.lru_cache(KEPT_PAGES)
def _unpacked(images: HuggingFaceImages, number: int) -> list[bytes | None]:
    """The values of a page."""
    page = dict(zip(PAGE, images.pages[number].tolist(), strict=True))
    path = images.packed.paths[page["file"]]
    data = images.packed.part(page["file"], page["offset"], page["stored"], path)
    codec, levels = images.codecs[page["codec"]], max(page["levels"], 0)
    if codec:
        data = data[:levels] + pyarrow().decompress(
            data[levels:], page["unpacked"] - levels, codec, asbytes=True
        )
    by = page["dictionary"]
    dictionary = _unpacked(images, by) if by >= 0 else None
    return values(data, page["rows"], page["encoding"], page["levels"], page["most"], dictionary)


def load_hugging_face(
    split: str, data_path: str, in_chans: int, download: bool, columns: Columns = Columns()
) -> Images:
    """--dataset hugging_face, as `util.data.datasets` has its sources.

    Args:
        columns: that --image_column and --label_column name.
    """
    paths = _of_the_set(needed_files(data_path, split, SUFFIXES))
    index = _index(paths, columns, split, data_path)
    labels = known = labels_in(index)
    if split == "val" and (train := split_files(data_path, "train", SUFFIXES, deep=True)):
        known = labels_in(_index(_of_the_set(train), columns, split, data_path))
    if (labels.numbered, labels.names) != (known.numbered, known.names):
        raise UsageError(
            f"--data_path {data_path}: the classes of one split have other names or numbers than "
            "the other's: both need the same"
        )
    classes = classes_of(known, data_path)
    targets = targets_of(labels, classes, data_path)
    images = HuggingFaceImages(paths, index, targets, classes, in_chans)
    check_labelled(targets, images.name, split, data_path)
    return images


def _of_the_set(paths: Sequence[str]) -> list[str]:
    """Those that are a set's own: what `map` keeps beside them is no part of it.

    Raises:
        UsageError: a set whose order stands in a file of its own, as older versions saved it.
    """
    found = []
    for folder in dict.fromkeys(map(os.path.dirname, paths)):
        here = [path for path in paths if os.path.dirname(path) == folder]
        state, names = os.path.join(folder, STATE), None
        if os.path.isfile(state):
            try:
                with open(state, encoding="utf-8") as file:
                    about = json.load(file)
                names = {one["filename"] for one in about["_data_files"]}
            except (OSError, ValueError, KeyError, TypeError):
                raise UsageError(f"--data_path: {state} is damaged: save the set anew") from None
            if about.get("_indices_data_files") or about.get("_indices_files"):
                raise UsageError(
                    f"--data_path: {state} has the set's order in files of its own: call "
                    "flatten_indices() and save the set anew"
                )
        found += [p for p in here if names is None or os.path.basename(p) in names]
    return found


# -------------------------------------------------------------------------------------- the index


def _index(paths: Sequence[str], given: Columns, split: str, where: str) -> Index:
    """The index of some files.

    Arrays: `names` [n], `places` [n, 4] (file; of Arrow offset, size and -1, of Parquet the place
    in a page, 0 and the page), `pages` [P, 10] (as PAGE says), and `words` [n], the place of each
    label in the header's `words`, or -1.

    Raises:
        UsageError: damaged files, columns that are not certain, or no image in any.
    """
    schema = schema_of(paths[0])
    columns = choose_columns(schema, given, split, where)
    known = next((c.names for c in schema if c.name == columns.label), ())
    kind = "\0".join(["hugging face 2", columns.image, columns.label])
    index = indexed(kind, paths, lambda: _made(paths, columns, class_names(known)))
    if not len(index.arrays["names"]):
        raise UsageError(f"--data_path {where}: {paths[0]} and the other files hold no image")
    return index


def _made(paths: Sequence[str], columns: Columns, known: Sequence[str]) -> Made:
    """Args: known: the names of the classes whose numbers the labels are; empty: they are none."""
    made_of = [(real, stamp(real)) for real in map(os.path.realpath, paths)]
    _check_alike(paths, columns)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        rows = list(threads.map(lambda p: column_values(p, columns.image, columns.label), paths))
        placed = list(threads.map(lambda p: _placed(p, columns.image), paths))
    codecs = sorted({codec for *_, of_file in placed for codec in of_file})
    places, pages, before = [np.zeros((0, 4), np.int64)], [np.zeros((0, 10), np.int64)], 0
    for number, (of_rows, of_pages, of_codecs) in enumerate(placed):
        of_rows[:, 0] = of_pages[:, 0] = number
        of_rows[of_rows[:, 3] >= 0, 3] += before
        of_pages[of_pages[:, 8] >= 0, 8] += before
        of_pages[:, 9] = [codecs.index(codec) for codec in of_codecs]
        before += len(of_pages)
        places.append(of_rows)
        pages.append(of_pages)
    labels = [label for of_file, _ in rows for label in of_file]
    header, words = _words(labels, known)
    names = [name for _, of_file in rows for name in _own_names(of_file)]
    arrays = {
        "names": np.array([os.fsencode(name) for name in names], dtype=bytes),
        "places": np.concatenate(places), "pages": np.concatenate(pages), "words": words,
    }  # fmt: skip
    return header | {"codecs": codecs}, arrays, made_of


def _check_alike(paths: Sequence[str], columns: Columns) -> None:
    """Raise UsageError where a file has other columns than the first: its numbers of classes mean
    others, say."""
    first = None
    for path in paths:
        own = {column.name: column for column in schema_of(path)}
        found = [own.get(name) for name in (columns.image, columns.label) if name]
        first = first or found
        if found != first:
            raise UsageError(
                f"--data_path: {path} has its images or classes in other columns, types or numbers "
                f"than {paths[0]}: save them alike, or name one of them"
            )


def _own_names(names: Sequence[str | None]) -> list[str]:
    """The names of a file's rows: the row's number where there is none, and before one that another
    row has, too. A path of a file beside the table is that file's, whoever names it."""
    count = Counter(names)
    return [
        (name if count[name] == 1 or os.sep in name else f"{row:07d}-{name}")
        if name
        else f"{row:07d}"
        for row, name in enumerate(names)
    ]


def _placed(path: str, image: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The places and pages of a file's rows, as the index has them, and the pages' codecs."""
    if path.lower().endswith(ARROW):
        offsets, sizes = arrow_places(path, image)
        places = np.full((len(offsets), 4), -1, dtype=np.int64)
        places[:, 1], places[:, 2] = offsets, sizes
        return places, np.zeros((0, 10), np.int64), []
    rows, pages, codecs = [np.zeros((0, 4), np.int64)], [], []
    for number, (page, most, codec, dictionary) in enumerate(parquet_places(path, image)):
        codecs.append(codec)
        pages.append((0, page.offset, page.stored, page.unpacked, page.rows, page.encoding,
                      page.levels, most, dictionary, 0))  # fmt: skip
        if page.kind != DICTIONARY:
            of_page = np.zeros((page.rows, 4), np.int64)
            of_page[:, 1], of_page[:, 3] = np.arange(page.rows), number
            rows.append(of_page)
    return np.concatenate(rows), np.array(pages, np.int64).reshape(-1, 10), codecs


def _words(labels: Sequence, known: Sequence[str]) -> tuple[dict, np.ndarray]:
    """The labels as `Labels` has them: what the header says, and their places."""
    if known:
        numbers = [-1 if label is None else int(label) for label in labels]
        if max(numbers, default=-1) >= len(known):
            raise UsageError(
                f"--data_path: there is the label {max(numbers)}, and names of {len(known)} classes"
            )
        words = [str(number) for number in range(len(known))]
        header = {"words": words, "numbered": True, "names": dict(zip(words, known, strict=True))}
        return header, np.maximum(np.array(numbers, dtype=np.int32), -1)
    texts = [None if label in (None, "") else str(label) for label in labels]
    are_numbers = all(isinstance(label, int) for label in labels if label is not None)
    if are_numbers:  # a negative one says that there is none
        texts = [None if text is None or int(text) < 0 else text for text in texts]
    words = sorted({text for text in texts if text is not None})
    place = {word: number for number, word in enumerate(words)} | {None: -1}
    header = {"words": words, "numbered": are_numbers, "names": {}}
    return header, np.array([place[text] for text in texts], dtype=np.int32)
