"""Single values of Parquet columns, against what pyarrow reads of the whole."""

import os

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from util.data import parquet_pages
from util.data.hugging_face_files import parquet_places
from util.errors import UsageError


def rows(count: int, absent: bool) -> list:
    """Byte strings of all lengths, some of them equal, and some that are not there."""
    rng = np.random.default_rng(0)
    found = [rng.bytes(int(rng.integers(0, 300))) for _ in range(count)]
    found[5] = found[3]
    if absent:
        found[0] = found[7] = None
    return found


def read_pages(path: str, column: str) -> list:
    found, dictionary = [], None
    for page, most, codec, by in parquet_places(path, column):
        with open(path, "rb") as file:
            file.seek(page.offset)
            data = file.read(page.stored)
        levels = max(page.levels, 0)
        if codec:
            data = data[:levels] + pyarrow.decompress(
                data[levels:], page.unpacked - levels, codec, asbytes=True
            )
        known = dictionary if by >= 0 else None
        values = parquet_pages.values(data, page.rows, page.encoding, page.levels, most, known)
        if page.kind == parquet_pages.DICTIONARY:
            dictionary = values
        else:
            found += values
    return found


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip", "lz4", "brotli"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("options", [
    {"use_dictionary": False, "data_page_size": 2000}, {"use_dictionary": True},
    {"use_dictionary": True, "dictionary_pagesize_limit": 3000, "data_page_size": 1000},
    {"use_dictionary": False, "write_page_index": True, "row_group_size": 40},
])  # fmt: skip
@pytest.mark.parametrize("in_struct", [True, False])
@pytest.mark.parametrize("absent", [True, False])
def test_each_value_is_pyarrows(tmp_path, compression, version, options, in_struct, absent):
    path, values = str(tmp_path / "x.parquet"), rows(200, absent)
    column = [None if v is None else {"bytes": v, "path": "p"} for v in values]
    table = pyarrow.table({"before": [1] * 200, "image": column if in_struct else values})
    parquet.write_table(table, path, compression=compression, data_page_version=version, **options)
    assert read_pages(path, "image") == values


def test_columns_that_are_never_empty(tmp_path):
    path, values = str(tmp_path / "x.parquet"), rows(50, False)
    schema = pyarrow.schema([pyarrow.field("image", pyarrow.large_binary(), nullable=False)])
    parquet.write_table(pyarrow.table({"image": values}, schema), path)
    assert read_pages(path, "image") == values


def test_headers_longer_than_the_first_look(tmp_path, monkeypatch):
    """Statistics stand in them: the smallest and the largest value."""
    monkeypatch.setattr(parquet_pages, "FIRST_LOOK", 8)
    path, values = str(tmp_path / "x.parquet"), rows(50, False)
    parquet.write_table(pyarrow.table({"image": values}), path, use_dictionary=False)
    assert read_pages(path, "image") == values


def test_rare_encodings_are_refused(tmp_path):
    path = str(tmp_path / "x.parquet")
    parquet.write_table(
        pyarrow.table({"image": rows(50, False)}), path, use_dictionary=False,
        column_encoding="DELTA_LENGTH_BYTE_ARRAY",
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"x\.parquet stores its images in .*encoding 6,"):
        parquet_places(path, "image")


@pytest.mark.parametrize("length", [0, 3, 100, 5000, -1])
def test_a_damaged_file_is_named(tmp_path, length):
    path = str(tmp_path / "x.parquet")
    parquet.write_table(pyarrow.table({"image": rows(50, False)}), path)
    os.truncate(path, length if length >= 0 else os.path.getsize(path) - 1)
    with pytest.raises(UsageError, match=r"x\.parquet is no whole Parquet file .*fetch it again"):
        parquet_places(path, "image")
