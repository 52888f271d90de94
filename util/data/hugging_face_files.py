"""Parquet and Arrow files by pyarrow: their columns, labels, and where their images' bytes lie."""

import json
from types import ModuleType
from typing import NamedTuple

import numpy as np

from util.data.hugging_face_schema import BINARY, CLASS, IMAGE, INTEGER, OTHER, TEXT, Column
from util.data.parquet_pages import BY_DICTIONARY, DICTIONARY, PLAIN, Page, pages
from util.errors import UsageError, first_line

PARQUET, ARROW = ".parquet", ".arrow"
FILE_FORMAT = b"ARROW1"  # how an Arrow file begins that is no stream
CODECS = {"UNCOMPRESSED": "", "LZ4": "lz4_raw"}  # Parquet's name -> pyarrow's, where not its own
NO_BYTES = -1  # in place of an offset, of a row without an image
BYTES = "bytes"  # the field of an image's struct


def pyarrow() -> ModuleType:
    """Raises UsageError where it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise UsageError("--dataset hugging_face needs pyarrow: pip install pyarrow") from None
    return pyarrow


class Unpacking(NamedTuple):
    """How the values of a page are unpacked.

    most: the column's largest definition level. codec: of its compression; empty: none.
    dictionary: the place of its dictionary among the file's pages; -1: none.
    """

    page: Page
    most: int
    codec: str
    dictionary: int


def schema_of(path: str) -> list[Column]:
    """The columns of a file.

    Raises:
        UsageError: a damaged file.
    """
    with Reading(path):
        if path.lower().endswith(PARQUET):
            from pyarrow import parquet

            schema = parquet.read_schema(path)
        else:
            schema = _arrow_table(path)[0].schema
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        features = {}
    return [_column(field, features.get(field.name)) for field in schema]


def _column(field, feature: object) -> Column:
    known = feature if isinstance(feature, dict) else {}
    kind, names = _kind(field.type), known.get("names") or ()
    if known.get("_type") == "ClassLabel" and kind == INTEGER:
        return Column(field.name, CLASS, tuple(names))
    if known.get("_type", "Image") != "Image" and kind in (IMAGE, BINARY):  # sounds have bytes, too
        return Column(field.name, BINARY if known["_type"] == "Value" else OTHER)
    return Column(field.name, kind)


def _kind(kind) -> str:
    types = pyarrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        fields = {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)}
        has_bytes = BYTES in fields and _kind(fields[BYTES]) == BINARY
        return IMAGE if has_bytes else OTHER
    if types.is_binary(kind) or types.is_large_binary(kind):
        return BINARY
    if types.is_string(kind) or types.is_large_string(kind):
        return TEXT
    return INTEGER if types.is_integer(kind) else OTHER


class Reading:
    """Turns what pyarrow makes of a damaged file into one line that names it."""

    def __init__(self, path: str):
        self.path = path

    def __enter__(self) -> None:
        pyarrow()

    def __exit__(self, kind, error, traceback) -> None:
        damage = (OSError, ValueError, KeyError, pyarrow().ArrowException)
        if isinstance(error, damage) and not isinstance(error, UsageError):
            what = "Parquet" if self.path.lower().endswith(PARQUET) else "Arrow"
            raise UsageError(
                f"--data_path: {self.path} is no whole {what} file of images "
                f"({first_line(error)}): fetch it again"
            ) from None


def column_values(path: str, image: str, label: str) -> tuple[list, list[str | None]]:
    """Each row's label (None: there is none) and the file that its image was, if that is known."""
    with Reading(path):
        if path.lower().endswith(PARQUET):
            from pyarrow import parquet

            file = parquet.ParquetFile(path)
            paths = {file.schema.column(n).path for n in range(len(file.schema.names))}
            wanted = ([label] if label else []) + [n for n in [f"{image}.path"] if n in paths]
            table, count = file.read(columns=wanted), file.metadata.num_rows
        else:
            table, _ = _arrow_table(path)
            count = table.num_rows
        labels = table.column(label).to_pylist() if label else [None] * count
        names: list[str | None] = [None] * count
        if image in table.column_names:
            kind = table.column(image).type
            if pyarrow().types.is_struct(kind) and kind.get_field_index("path") >= 0:
                chunks = table.column(image).chunks
                names = [name for one in chunks for name in one.field("path").to_pylist()]
    return labels, names


# ------------------------------------------------------------------------------------------ Arrow


def _arrow_table(path: str):
    """A table whose bytes are the mapped file's, and the address at which that begins."""
    ipc = pyarrow().ipc
    with pyarrow().memory_map(path) as mapped:
        whole = mapped.read_buffer()
    start = whole.slice(0, len(FILE_FORMAT)).to_pybytes()
    if start == FILE_FORMAT:
        return ipc.open_file(whole).read_all(), whole
    if not whole.size or whole.slice(whole.size - 4).to_pybytes() != bytes(4):
        raise ValueError("it is cut short")
    return ipc.open_stream(whole).read_all(), whole


def arrow_places(path: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the images of a file lie: offsets [n], NO_BYTES where there is none, and sizes [n].

    Raises:
        UsageError: a damaged file, or one that is compressed.
    """
    offsets, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    with Reading(path):
        table, whole = _arrow_table(path)
        for chunk in table.column(column).chunks:
            is_struct = pyarrow().types.is_struct(chunk.type)
            found = chunk.field(BYTES) if is_struct else chunk
            starts, ends = _bounds(found)
            absent = np.array(found.is_null()) | np.array(chunk.is_null())
            data = found.buffers()[2]
            place = data.address - whole.address if data is not None and data.size else 0
            if not 0 <= place <= whole.size:
                raise UsageError(
                    f"--data_path: {path} is a compressed Arrow file: write it anew without, or as "
                    "Parquet"
                )
            offsets.append(np.where(absent, NO_BYTES, starts + place))
            sizes.append(ends - starts)
    return np.concatenate(offsets), np.concatenate(sizes)


def _bounds(found) -> tuple[np.ndarray, np.ndarray]:
    """Where the values of a binary array begin and end in its data."""
    is_large = pyarrow().types.is_large_binary(found.type)
    dtype = np.int64 if is_large else np.int32
    count = len(found)
    if not count:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    bounds = np.frombuffer(found.buffers()[1], dtype, count + 1, found.offset * dtype().itemsize)
    return bounds[:-1].astype(np.int64), bounds[1:].astype(np.int64)


# ---------------------------------------------------------------------------------------- Parquet


def parquet_places(path: str, column: str) -> list[Unpacking]:
    """The pages of a file's images.

    Raises:
        UsageError: a damaged file, or one that stores them in a rare way.
    """
    with Reading(path):
        from pyarrow import parquet

        meta = parquet.read_metadata(path)
        leaves = {meta.schema.column(n).path: n for n in range(meta.num_columns)}
        number = leaves[column if column in leaves else f"{column}.{BYTES}"]
        most = meta.schema.column(number).max_definition_level
        found: list[Unpacking] = []
        with open(path, "rb") as file:
            for group in range(meta.num_row_groups):
                found += _pages(file, meta.row_group(group).column(number), most, len(found))
    strange = sorted({one.page.encoding for one in found} - {PLAIN, *BY_DICTIONARY})
    if strange:
        raise UsageError(
            f"--data_path: {path} stores its images in Parquet's encoding {strange[0]}, not "
            "plainly: write it anew with pyarrow or datasets"
        )
    return found


def _pages(file, chunk, most: int, before: int) -> list[Unpacking]:
    """The pages of a column chunk. Args: before: how many the file has before it."""
    places = (chunk.dictionary_page_offset, chunk.data_page_offset)
    start = min(place for place in places if place)
    codec = CODECS.get(chunk.compression, chunk.compression.lower())
    found, dictionary = [], -1
    for number, page in enumerate(pages(file, start, chunk.num_values), before):
        is_dictionary = page.kind == DICTIONARY
        by_it = dictionary if page.encoding in BY_DICTIONARY and not is_dictionary else -1
        dictionary = number if is_dictionary else dictionary
        levels = 0 if is_dictionary else most
        found.append(Unpacking(page, levels, codec if page.is_packed else "", by_it))
    return found
