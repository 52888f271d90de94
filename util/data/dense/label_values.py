"""What values label maps have, looked at before training: a wrong --first_class, empty classes.

Reading every map takes a minute for ADE20K. So what each one has is kept in a file of the user's
cache folder, by the map's name, size and time: only what is new or changed is read again.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from util.cluster import agreement
from util.data.dense.ade20k import NOTHING, UNLABELLED, Labels, MappedImages
from util.errors import UsageError
from util.progress import ProgressLine

log = logging.getLogger(__name__)

NUM_THREADS = 8
SHOWN = 5  # classes that a line names

Entry = list  # [bytes, time of the last change in ns, values]


def tell(images: MappedImages, split: str) -> None:
    """Log which classes no map of a split has, and which values all of them have. For all ranks.

    Raises:
        UsageError: on all ranks: a value that is no class, or no labelled pixel at all.
    """
    agreement.main_does(lambda: _tell(images, split))


def _tell(images: MappedImages, split: str) -> None:
    labels, num = images.labels, 0
    count: Counter[tuple[int, bool]] = Counter()  # of maps, by value and whether it is a colour
    for index, values in _values_of_each(images, split):
        path = images.pairs.map_name(index)
        if values is None:
            continue  # unreadable: who needs it will say so
        are_colours = labels.has_colours(path)
        if labels.find(np.array(values, dtype=np.int64), are_colours)[1].any():
            labels.read(path, images.pairs.map_content(index))  # which says what and where
        num += 1
        count.update((value, are_colours) for value in values)
    classes_of = {key: _class_of(labels, *key) for key in count}
    found = set(classes_of.values()) - {NOTHING}
    shown = {key: _shown(labels, *key) for key in count}
    if not found and num:
        listed = ", ".join(shown[key] for key in sorted(count)[:SHOWN])
        raise UsageError(
            f"--data_path: no pixel of the {num} {split} maps is of a class (they hold {listed}): "
            "check --first_class, --classes and the maps"
        )
    absent = [number for number in range(len(labels.classes)) if number not in found]
    if absent:
        nothing = {value for (value, _), number in classes_of.items() if number == NOTHING}
        level = logging.WARNING if split == "training" else logging.INFO
        log.log(level, "%s", _absent_line(labels, absent, split, nothing))
    everywhere = [shown[key] for key in sorted(count) if count[key] == num]
    if everywhere and num > 1:
        log.info("in each of the %d %s maps: %s", num, split, ", ".join(everywhere[:SHOWN]))


def _class_of(labels: Labels, value: int, is_colour: bool) -> int:
    return int(labels.find(np.array([value], dtype=np.int64), is_colour)[0][0])


def _shown(labels: Labels, value: int, is_colour: bool) -> str:
    number = _class_of(labels, value, is_colour)
    name = "nothing" if number == NOTHING else labels.classes[number]
    return f"{labels.shown(value, is_colour)} ({name})"


def _absent_line(labels: Labels, absent: Sequence[int], split: str, nothing: set[int]) -> str:
    names = [
        labels.classes[number] if labels.palette is not None
        else f"value {number + labels.first_class} ({labels.classes[number]})"
        for number in absent
    ]  # fmt: skip
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    line = (
        f"{', '.join(names[:SHOWN])}{more} {'is' if len(names) == 1 else 'are'} in no {split} map"
    )
    if labels.palette is not None:
        return line
    # Maps that count from the other number: their first value is nothing, or of no pixel.
    if labels.first_class == 1 and absent[-1] == len(labels.classes) - 1 and nothing:
        return f"{line}; is --first_class 0?"
    if labels.first_class == 0 and absent[0] == 0:
        return f"{line}; is --first_class 1?"
    if nothing == {UNLABELLED}:
        return f"{line}, and 255 is nothing: if it is a class, name the colours, by --palette"
    return line


# ------------------------------------------------------------------------------------------ reading


def _values_of_each(images: MappedImages, split: str) -> Iterator[tuple[int, list[int] | None]]:
    """Each map's number and values; None where it cannot be read. Fills the cache."""
    labels, pairs = images.labels, images.pairs
    paths, cache_path = pairs.map_paths, _cache_path(pairs.map_folder, split, labels)
    known, fresh = _read_cache(cache_path), {}

    def look(index: int) -> Entry | None:
        try:
            stamp, path = pairs.map_stamp(index), paths[index]
            if path in known and known[path][:2] == stamp:
                return known[path]
            content = pairs.map_content(index)
            return [*stamp, _distinct(labels.read_values(pairs.map_name(index), content))]
        except UsageError:
            raise
        except Exception:  # whatever a decoder makes of a damaged file
            return None

    line = ProgressLine(f"looking at the {split} maps", len(paths))
    threads = ThreadPoolExecutor(NUM_THREADS)
    try:
        for index, entry in enumerate(threads.map(look, range(len(paths)))):
            if entry is not None:
                fresh[paths[index]] = entry
            line.update(index + 1)
            yield index, entry and entry[2]
    finally:  # a wrong value ends it at once
        threads.shutdown(cancel_futures=True)
        line.close()
    if fresh != known:
        _write_cache(cache_path, fresh)


def _distinct(values: np.ndarray) -> list[int]:
    if values.dtype == np.uint8:
        return np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()
    return np.unique(values).astype(np.int64).tolist()


def _cache_path(folder: str, split: str, labels: Labels) -> str:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    kind = "numbers" if labels.palette is None else "colours"
    where = f"{kind} {split} {os.path.realpath(folder)}"
    name = hashlib.sha256(os.fsencode(where)).hexdigest()[:24]
    return os.path.join(root, "mi-mae", f"label_values-{name}.json")


def _read_cache(path: str) -> dict[str, Entry]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    entries = found.values() if isinstance(found, dict) else [None]
    is_whole = all(isinstance(entry, list) and len(entry) == 3 for entry in entries)
    return found if is_whole else {}


def _write_cache(path: str, entries: dict[str, Entry]) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(entries, file)
        os.replace(temporary, path)
    except OSError as error:  # only time is lost
        log.debug("%s cannot be written (%s)", path, error)
