"""Kept indexes: used while nothing changes, made anew when anything does, and never half."""

import logging
import os
import threading
import time

import numpy as np
import pytest

from util.data import image_folders, kept_index
from util.data.file_index import list_folder
from util.data.image_folders import image_tree
from util.data.kept_index import Index, indexed, stamp


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(kept_index, "SETTLED", 0)
    return folder / "mimae" / "index"


@pytest.fixture
def tree(tmp_path):
    """a/0.png a/1.png b/c/2.png, a file that is no image, a link that leads nowhere."""
    for name in ("a/0.png", "a/1.png", "b/c/2.png", "b/README"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "link.d").symlink_to(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    return tmp_path


@pytest.fixture
def listings(monkeypatch):
    """How often a folder was listed."""
    done = []
    monkeypatch.setattr(
        image_folders, "list_folder", lambda root: done.append(root) or list_folder(root)
    )
    return done


def test_the_second_start_lists_nothing_and_has_the_same(tree, listings, cache):
    first, second = image_tree(str(tree)), image_tree(f"{tree}/")
    assert len(listings) == 1 and len(list(cache.iterdir())) == 1
    for found in (first, second):
        assert found.names() == ["a/0.png", "a/1.png", "b/c/2.png"] == list_folder(tree).images
        assert found.folders == ["a", "b"] and found.tops.tolist() == [0, 0, 1]
        assert not found.paths.flags.writeable and not found.tops.flags.writeable  # mapped
        assert found.targets({"b": 7, "a": 3}).tolist() == [3, 3, 7]


def add(tree):
    (tree / "b/c/3.png").touch()


def remove(tree):
    (tree / "a/0.png").unlink()


def rename(tree):
    (tree / "a/0.png").rename(tree / "a/9.png")


def rename_a_folder(tree):
    (tree / "a").rename(tree / "z")


def add_and_set_the_time_back(tree):
    before = os.stat(tree / "a")
    (tree / "a/5.png").touch()
    os.utime(tree / "a", ns=(before.st_atime_ns, before.st_mtime_ns))


def fill_a_file_without_suffix(tree):
    (tree / "b/README").write_bytes(b"\x89PNG\r\n\x1a\n....")


def lead_the_link_somewhere(tree):
    folder = tree.parent / f"{tree.name}-elsewhere"
    folder.mkdir()
    (folder / "4.png").touch()


CHANGES = (add, remove, rename, rename_a_folder, add_and_set_the_time_back,
           fill_a_file_without_suffix, lead_the_link_somewhere)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_another_content_is_listed_anew(tree, listings, change):
    before = image_tree(str(tree)).names()
    change(tree)
    now = image_tree(str(tree))
    assert now.names() == list_folder(str(tree)).images != before
    assert len(listings) == 2
    assert image_tree(str(tree)).names() == now.names() and len(listings) == 2


def test_a_folder_that_has_just_changed_is_not_yet_kept(tree, listings, monkeypatch):
    """It could change again within a tick of the disk's clock, and have the same time."""
    monkeypatch.setattr(kept_index, "SETTLED", 10**10)
    for _ in range(2):
        image_tree(str(tree))
    assert len(listings) == 2
    monkeypatch.setattr(kept_index.time, "time_ns", lambda: int(time.time() * 1e9) + 10**11)
    for _ in range(2):
        image_tree(str(tree))
    assert len(listings) == 3


@pytest.mark.parametrize(
    ("times", "is_told"),
    [
        ([(5, 5), (6, 6)], True), ([(5, 5)], True), ([(5, 5), (5, 6)], True),
        ([(5, 5), (5, 5)], False),  # the time of the mount, or a constant
        ([(0, 0)], False), ([(0, 5), (6, 6)], False),  # of an object store
        (np.zeros((0, 2)), False),
    ],
)  # fmt: skip
def test_disks_whose_times_tell_nothing_have_no_index(times, is_told):
    assert kept_index._can_be_told(np.array(times)) is is_told


@pytest.mark.parametrize(
    ("kind", "has_times"),
    [
        ("ext4", True),
        ("nfs4", True),
        ("fuse.gcsfuse", False),
        ("fuse", False),
        ("fuse.sshfs", True),
    ],
)
def test_object_stores_have_no_index(tree, listings, monkeypatch, caplog, kind, has_times):
    caplog.set_level("INFO")
    monkeypatch.setattr(kept_index, "_file_system", lambda path: kind)
    for _ in range(2):
        image_tree(str(tree))
    assert len(listings) == 2 - has_times
    assert ("no index is kept" in caplog.text) is not has_times


def test_the_file_system_is_that_of_the_nearest_mount():
    assert kept_index._file_system("/proc/self") == "proc"


@pytest.mark.parametrize("damage", [b"", b"MI-MAE", "cut", "header", "arrays", "older"])
def test_a_damaged_index_is_made_anew(tree, listings, cache, damage):
    names = image_tree(str(tree)).names()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-64])
    elif damage in ("header", "arrays"):
        place = 40 if damage == "header" else whole.index(b"b/c/2.png")
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif damage == "older":
        path.write_bytes(whole.replace(b"index 1", b"index 0"))
    else:
        path.write_bytes(damage)
    assert image_tree(str(tree)).names() == names and len(listings) == 2
    assert image_tree(str(tree)).names() == names and len(listings) == 2


def test_who_has_mapped_an_older_index_goes_on_with_it(tree, cache):
    old = image_tree(str(tree))
    add(tree)
    assert len(image_tree(str(tree))) == 4
    assert old.names() == ["a/0.png", "a/1.png", "b/c/2.png"]


def test_indexes_that_nobody_uses_are_removed(tree, cache):
    image_tree(str(tree))
    (first,) = cache.iterdir()
    os.utime(first, (0, 0))
    add(tree)
    image_tree(str(tree))
    (second,) = cache.iterdir()
    assert second != first


def test_the_temporary_folder_stands_in(tree, listings, monkeypatch, tmp_path_factory, caplog):
    blocked = tmp_path_factory.mktemp("blocked") / "file"
    blocked.touch()
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(kept_index.tempfile, "gettempdir", lambda: str(temporary))
    for _ in range(2):
        assert len(image_tree(str(tree))) == 3
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(listings) == 1 and not warnings
    own = temporary / f"mimae-{os.getuid()}"
    assert os.stat(own).st_mode & 0o077 == 0
    own.chmod(0o777)  # anybody could put an index there
    assert len(kept_index.kept_in()) == 1
    assert len(image_tree(str(tree))) == 3 and len(listings) == 2
    assert "no index is kept" in caplog.text


def test_many_at_the_same_time(tree):
    found = []
    threads = [threading.Thread(target=lambda: found.append(image_tree(str(tree)).names()))
               for _ in range(8)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["a/0.png", "a/1.png", "b/c/2.png"]] * 8


def test_arrays_of_every_kind_come_back(tmp_path):
    arrays = {
        "bytes": np.array([b"a", b"longer"]), "none": np.array([], dtype=bytes),
        "numbers": np.arange(6).reshape(2, 3), "flags": np.array([True, False]),
        "halves": np.linspace(0, 1, 5, dtype=np.float16), "empty": np.zeros((0, 4), np.int32),
    }  # fmt: skip
    (tmp_path / "file").touch()
    header = {"big": 2**70, "name": "\udcff ü", "list": [1, None]}
    watched = [(str(tmp_path / "file"), stamp(str(tmp_path / "file")))]
    for _ in range(2):
        found = indexed("any", [str(tmp_path)], lambda: (header, arrays, watched))
        assert isinstance(found, Index) and found.header == header
        for name, array in arrays.items():
            assert np.array_equal(found.arrays[name], array)
            assert found.arrays[name].dtype == array.dtype
