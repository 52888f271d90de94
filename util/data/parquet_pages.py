"""The values of a Parquet column at any place: pages, of which one is read at a time.

pyarrow reads a whole column chunk, a hundred images or all of a file. A page holds about 1 MiB, and
where it lies is known without reading it. The format: https://parquet.apache.org/docs/file-format.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

PLAIN, BY_DICTIONARY = 0, (2, 8)  # encodings of values
DATA, DICTIONARY, DATA_V2 = 0, 2, 3  # kinds of pages
FIRST_LOOK = 2**14  # bytes in which a header is looked for; statistics may make it longer
NO_LEVELS = -1  # of a page of the first version, whose levels are packed with its values

Fields = dict[int, object]  # of a Thrift structure, by their numbers


@dataclass(frozen=True)
class Page:
    """Where a page lies, and how its values are stored.

    offset, stored: bytes in the file. unpacked: their number without compression; equal where there
    is none. rows: its values. encoding: theirs. levels: the bytes before the values that a page of
    the second version does not compress.
    """

    kind: int
    offset: int
    stored: int
    unpacked: int
    rows: int
    encoding: int
    levels: int
    is_packed: bool


def pages(file: BinaryIO, offset: int, num_values: int) -> list[Page]:
    """The pages of a column chunk, its dictionary first. Args: offset: of the first one.

    Raises:
        ValueError: bytes that are no page.
    """
    found, rows = [], 0
    while rows < num_values:
        page = _page(file, offset)
        found.append(page)
        rows += page.rows if page.kind != DICTIONARY else 0
        offset = page.offset + page.stored
    return found


def _page(file: BinaryIO, offset: int) -> Page:
    length = FIRST_LOOK
    while True:
        file.seek(offset)
        data = file.read(length)
        try:
            fields, end = _structure(data, 0)
            break
        except IndexError:  # its header is longer
            if len(data) < length:
                raise ValueError(f"it ends inside a page's header, at byte {offset}") from None
            length *= 16
    kind, unpacked, stored = fields[1], fields[2], fields[3]
    about = {DATA: fields.get(5), DICTIONARY: fields.get(7), DATA_V2: fields.get(8)}.get(kind)
    if about is None or stored < 0 or unpacked < 0:
        raise ValueError(f"byte {offset} begins no page of values")
    is_v2 = kind == DATA_V2
    encoding = PLAIN if kind == DICTIONARY else about[4 if is_v2 else 2]
    return Page(
        kind, offset + end, stored, unpacked, rows=about[1], encoding=encoding,
        levels=about[5] + about[6] if is_v2 else NO_LEVELS,
        is_packed=about.get(7, True) if is_v2 else True,
    )  # fmt: skip


def values(
    data: bytes, rows: int, encoding: int, levels: int, most: int, dictionary: Sequence | None
) -> list[bytes | None]:
    """The byte strings of a page, None for those that are not there.

    Args:
        data: its bytes, unpacked. most: the column's largest definition level, which a value has
            that is there. dictionary: the values that numbers stand for.

    Raises:
        ValueError, IndexError, struct.error: damaged data.
    """
    is_there = [True] * rows
    start = max(levels, 0)
    if most:
        length = levels
        if levels == NO_LEVELS:  # their number of bytes stands before them
            length = struct.unpack_from("<I", data)[0]
            start = 4 + length
        first = start - length
        width = most.bit_length()
        is_there = [level == most for level in _numbers(data, first, width, rows)]
    count = sum(is_there)
    if encoding in BY_DICTIONARY:
        places = _numbers(data, start + 1, data[start], count) if count else []
        found = [dictionary[place] for place in places]
    else:
        found = plain(data, start, count)
    each = iter(found)
    return [next(each) if there else None for there in is_there]


def plain(data: bytes, start: int, count: int) -> list[bytes]:
    """Byte strings, each after its length."""
    found = []
    for _ in range(count):
        length = struct.unpack_from("<I", data, start)[0]
        found.append(data[start + 4 : start + 4 + length])
        start += 4 + length
    if start > len(data):
        raise ValueError("a page is cut short")
    return found


def _numbers(data: bytes, start: int, width: int, count: int) -> list[int]:
    """Numbers of `width` bits: runs of one, and groups of eight that are packed."""
    found: list[int] = []
    while len(found) < count:
        head, start = _varint(data, start)
        if head & 1:
            size = (head >> 1) * width
            bits = np.unpackbits(
                np.frombuffer(data, np.uint8, size, start), bitorder="little"
            ).reshape((head >> 1) * 8, width)
            found += (bits @ (1 << np.arange(width, dtype=np.int64))).tolist()
        else:
            size = -(-width // 8)
            found += [int.from_bytes(data[start : start + size], "little")] * (head >> 1)
        start += size
    return found[:count]


# --------------------------------------------------------------------- Thrift's compact protocol


def _structure(data: bytes, place: int) -> tuple[Fields, int]:
    """The fields of a structure, and where it ends; IndexError where `data` ends sooner."""
    fields: Fields = {}
    number = 0
    while (head := data[place]) != 0:
        place += 1
        if head >> 4:
            number += head >> 4
        else:
            number, place = _signed(data, place)
        fields[number], place = _field(data, place, head & 15)
    return fields, place + 1


def _field(data: bytes, place: int, kind: int) -> tuple[object, int]:
    if kind in (1, 2):
        return kind == 1, place
    if kind in (4, 5, 6):
        return _signed(data, place)
    if kind == 8:
        length, place = _varint(data, place)
        if place + length > len(data):
            raise IndexError("the text goes on")
        return data[place : place + length], place + length
    if kind == 12:
        return _structure(data, place)
    raise ValueError("bytes that are no page's header")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _signed(data: bytes, place: int) -> tuple[int, int]:
    value, place = _varint(data, place)
    return (value >> 1) ^ -(value & 1), place
