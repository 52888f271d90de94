"""Lists of image files: what is found, and that a kept list never hides a change."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from util import file_index
from util.file_index import find_images, index_path


@pytest.fixture(autouse=True)
def keep_all_lists(tmp_path_factory, monkeypatch):
    """Keep short lists, too, in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(file_index, "MIN_IMAGES", 1)


@pytest.fixture
def tree(tmp_path):
    """a/0.png a/1.png b/c/2.png, an hour old."""
    for name in ("a/0.png", "a/1.png", "b/c/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for folder in ("a", "b/c", "b", "."):
        os.utime(tmp_path / folder, ns=(0, time.time_ns() - 3600 * 10**9))
    return tmp_path


def test_find_images_sorts_and_passes_over_what_is_hidden_or_no_image(tmp_path):
    for name in ("b/2.JPEG", "b/10.jpeg", "a/deep/er/x.Png", "c.webp", "ü ä.tif", "notes.txt",
                 ".hidden.png", ".cache/y.png", "d/z.npy"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(str(tmp_path))
    assert found == ["a/deep/er/x.Png", "b/10.jpeg", "b/2.JPEG", "c.webp", "d/z.npy", "ü ä.tif"]


def test_the_second_time_nothing_is_listed(tree, monkeypatch):
    first = find_images(str(tree))
    assert first == ["a/0.png", "a/1.png", "b/c/2.png"]
    monkeypatch.setattr(file_index, "_list", lambda folder: pytest.fail(f"{folder} was listed"))
    assert find_images(str(tree)) == find_images(f"{tree}/") == first


@pytest.mark.parametrize("change", ["add", "remove", "rename", "add folder", "remove folder"])
def test_changes_are_seen(tree, change):
    find_images(str(tree))
    if change == "add":
        (tree / "b/c/3.png").touch()
    elif change == "remove":
        (tree / "a/0.png").unlink()
    elif change == "rename":
        (tree / "a/0.png").rename(tree / "a/9.png")
    elif change == "add folder":
        (tree / "b/d").mkdir()
        (tree / "b/d/4.png").touch()
    else:
        shutil.rmtree(tree / "b/c")
    expected = sorted(str(path.relative_to(tree)) for path in tree.rglob("*.png"))
    assert find_images(str(tree)) == expected
    assert find_images(str(tree)) == expected


def test_a_folder_that_has_just_changed_is_not_trusted(tree):
    """Another change within the clock's resolution would not show."""
    (tree / "a/2.png").touch()
    find_images(str(tree))
    kept = json.loads(Path(index_path(str(tree))).read_text())
    assert "a" not in kept and "b/c" in kept


def test_a_damaged_list_is_made_anew(tree):
    first = find_images(str(tree))
    path = Path(index_path(str(tree)))
    for text in ("", "{", "[]", '{"": 3}', '{"": [1, 2]}'):
        path.write_text(text)
        assert find_images(str(tree)) == first
        assert json.loads(path.read_text()).keys() == {"", "a", "b", "b/c"}


def test_where_no_list_can_be_kept_the_images_are_found_all_the_same(tree, monkeypatch, tmp_path):
    (tmp_path / "file.txt").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file.txt"))
    assert len(find_images(str(tree))) == 3


def test_short_lists_are_not_kept(tree, monkeypatch):
    monkeypatch.setattr(file_index, "MIN_IMAGES", 4)
    find_images(str(tree))
    assert not os.path.exists(index_path(str(tree)))
