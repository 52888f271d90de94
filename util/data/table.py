"""Images that a CSV or TSV lists, a path and a label a line."""

import csv
import os
from collections.abc import Sequence

import numpy as np

from util.data.image_sets import FileImages, Images
from util.data.kept_index import Made, indexed, stamp
from util.data.label_numbers import Labels, check_labelled, classes_of, targets_of
from util.data.split_files import needed_files, split_files
from util.errors import UsageError, first_line

SUFFIXES = (".csv", ".tsv")
PATH_HEADS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image",
              "image_path", "image_name", "image_file")  # fmt: skip
LABEL_HEADS = ("label", "class", "target", "category", "class_name", "label_name", "labels")
LOOKED_FOR = 64  # files, of which each has to be there


def load_table(split: str, data_path: str, in_chans: int, download: bool) -> Images:
    """--dataset csv, as `util.data.datasets` has its sources."""
    paths, labels = _read(needed_files(data_path, split, SUFFIXES, deep=False))
    known = labels
    if split == "val" and (train := split_files(data_path, "train", SUFFIXES, deep=False)):
        _, known = _read(train)
    if labels.numbered != known.numbered:  # one split has a class that is no number
        labels, known = (Labels(one.words, one.places, False, {}) for one in (labels, known))
    classes = classes_of(known, data_path)
    targets = targets_of(labels, classes, data_path)
    images = FileImages("", paths, targets, classes, in_chans)
    _check_there(images, data_path)
    check_labelled(targets, images.name, split, data_path)
    return images


def _read(tables: Sequence[str]) -> tuple[np.ndarray, Labels]:
    # A link to a list elsewhere is another list: its paths are seen from the link's folder.
    kind = "\0".join(["csv 2", *map(os.path.abspath, tables)])
    index = indexed(kind, tables, lambda: _made(tables))
    header, arrays = index.header, index.arrays
    labels = Labels(header["words"], arrays["words"], header["numbered"], {})
    return arrays["paths"], labels


def _made(tables: Sequence[str]) -> Made:
    made_of, rows = [], []
    for table in tables:
        made_of.append((os.path.realpath(table), stamp(table)))
        rows += _rows(table)
    words = sorted({word for _, word in rows if word})
    place = {word: number for number, word in enumerate(words)} | {"": -1}
    arrays = {
        "paths": np.array([os.fsencode(path) for path, _ in rows], dtype=bytes),
        "words": np.array([place[word] for _, word in rows], dtype=np.int32),
    }
    header = {"words": words, "numbered": all(word.isdecimal() for word in words)}
    return header, arrays, made_of


def _rows(table: str) -> list[tuple[str, str]]:
    """A table's paths, as seen from its folder, and labels, empty where there is none.

    Its first line may name the columns; else they are path and label.
    """
    folder = os.path.dirname(os.path.abspath(table))
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            start = file.readline()
            file.seek(0)
            tab = table.lower().endswith(".tsv") or ("\t" in start and "," not in start)
            semicolon = ";" in start and "," not in start
            mark = "\t" if tab else ";" if semicolon else ","
            read = csv.reader(file, delimiter=mark, strict=True)
            rows = [[cell.strip() for cell in row] for row in read]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--data_path {table} cannot be read ({first_line(error)})") from None
    rows = [row for row in rows if any(row)]
    path_column, label_column = 0, 1
    heads = [cell.lower() for cell in rows[0]] if rows else []
    if named := [heads.index(head) for head in PATH_HEADS if head in heads]:
        path_column, rows = named[0], rows[1:]
        labelled = [heads.index(head) for head in LABEL_HEADS if head in heads]
        others = [number for number in range(len(heads)) if number != path_column]
        label_column = next(iter(labelled or others), len(heads))
    if not rows:
        raise UsageError(f"--data_path {table} is empty: it takes path,label a line")
    found = []
    for row in rows:
        if len(row) <= path_column or not row[path_column]:
            raise UsageError(f"--data_path {table} has a line without a path: {row}")
        label = row[label_column] if label_column < len(row) else ""
        found.append((os.path.join(folder, row[path_column]), label))
    return found


def _check_there(images: FileImages, data_path: str) -> None:
    """Look for a part of the files; who looked for a million would wait."""
    ids = np.unique(np.linspace(0, len(images) - 1, LOOKED_FOR).astype(int))
    absent = [name for name in map(images.name, ids.tolist()) if not os.path.isfile(name)]
    if absent:
        raise UsageError(
            f"--data_path {data_path}: {len(absent)} of {len(ids)} listed files that were looked "
            f"for are not there ({absent[0]}): paths are seen from the list's folder, and a first "
            "line of other words than path,label is no heading"
        )
