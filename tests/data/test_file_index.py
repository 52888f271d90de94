"""Lists of image files: what is found, and that a kept list never hides a change."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from util.data import file_index
from util.data.file_index import find_images, index_path
from util.errors import UsageError


@pytest.fixture(autouse=True)
def keep_all_lists(tmp_path_factory, monkeypatch):
    """Keep short lists, too, in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(file_index, "MIN_IMAGES", 1)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """a/0.png a/1.png b/c/2.png, and a clock by which that was an hour ago."""
    for name in ("a/0.png", "a/1.png", "b/c/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    now = time.time_ns
    monkeypatch.setattr(file_index.time, "time_ns", lambda: now() + 3600 * 10**9)
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


def test_a_change_is_seen_where_the_modification_time_was_put_back(tree):
    """As rsync does."""
    find_images(str(tree))
    before = os.stat(tree / "a")
    (tree / "a/2.png").touch()
    os.utime(tree / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "a/2.png" in find_images(str(tree))


def test_a_folder_that_has_just_changed_is_not_kept(tree, monkeypatch):
    """Another change within the clock's tick would not show."""
    settled = os.stat(tree / "a").st_ctime_ns + 1
    while os.stat(tree / "b/c").st_ctime_ns <= settled:
        (tree / "b/c/3.png").touch()
        (tree / "b/c/3.png").unlink()
    monkeypatch.setattr(file_index.time, "time_ns", lambda: settled + file_index.SETTLED_NS)
    find_images(str(tree))
    assert {"a", "b/c"} & read_index(tree).keys() == {"a"}


def test_what_a_link_leads_to_may_come_and_go(tree, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "disk"
    (tree / "b/link").symlink_to(elsewhere)
    without = find_images(str(tree))
    assert "b" not in read_index(tree)
    elsewhere.mkdir()
    (elsewhere / "5.png").touch()
    assert find_images(str(tree)) == sorted([*without, "b/link/5.png"])
    shutil.rmtree(elsewhere)
    assert find_images(str(tree)) == without


def read_index(root):
    return json.loads(Path(index_path(str(root))).read_text())


def test_a_damaged_list_is_made_anew(tree):
    first = find_images(str(tree))
    path = Path(index_path(str(tree)))
    for text in ("", "{", "[]", '{"": 3}', '{"": [1, 2]}', '{"": [1, 2, null, []]}'):
        path.write_text(text)
        assert find_images(str(tree)) == first
        assert read_index(tree).keys() == {"", "a", "b", "b/c"}


def test_where_no_list_can_be_kept_the_images_are_found_all_the_same(tree, monkeypatch, tmp_path):
    (tmp_path / "file.txt").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file.txt"))
    assert len(find_images(str(tree))) == 3


def test_short_lists_are_not_kept(tree, monkeypatch):
    monkeypatch.setattr(file_index, "MIN_IMAGES", 4)
    find_images(str(tree))
    assert not os.path.exists(index_path(str(tree)))


def test_a_link_to_a_folder_in_which_it_lies_is_passed_over(tree):
    once = find_images(str(tree))
    (tree / "loop").symlink_to(tree)
    assert find_images(str(tree)) == once


def test_a_folder_that_cannot_be_read_is_named(tree, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(file_index, "_list", refuse)
    with pytest.raises(UsageError, match=f"{tree}.*Permission denied"):
        find_images(str(tree))
