"""Lists of image files: what is found, what is passed over, and what cannot be read."""

import os
import shutil

import pytest

from util.data import file_index
from util.data.file_index import find_images
from util.errors import UsageError


@pytest.fixture
def tree(tmp_path):
    """a/0.png a/1.png b/c/2.png"""
    for name in ("a/0.png", "a/1.png", "b/c/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_find_images_sorts_and_passes_over_what_is_hidden_or_no_image(tmp_path):
    for name in ("b/2.JPEG", "b/10.jpeg", "a/deep/er/x.Png", "c.webp", "ü ä.tif", "notes.txt",
                 ".hidden.png", ".cache/y.png", "d/z.npy"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    images = find_images(str(tmp_path))
    assert images == ["a/deep/er/x.Png", "b/10.jpeg", "b/2.JPEG", "c.webp", "d/z.npy", "ü ä.tif"]
    assert find_images(f"{tmp_path}/") == images


def test_more_folders_than_threads(tmp_path):
    names = [f"{i // 30}/{i}/{i}.png" for i in range(90)]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert find_images(str(tmp_path)) == sorted(names)


def test_an_empty_folder_has_no_images(tmp_path):
    assert find_images(str(tmp_path)) == []


def test_links_are_followed_where_they_lead_somewhere(tree, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "disk"
    without = find_images(str(tree))
    (tree / "b/link").symlink_to(elsewhere)
    assert find_images(str(tree)) == without
    elsewhere.mkdir()
    (elsewhere / "5.png").touch()
    assert find_images(str(tree)) == sorted([*without, "b/link/5.png"])
    shutil.rmtree(elsewhere)
    assert find_images(str(tree)) == without


def test_a_link_to_a_folder_in_which_it_lies_is_passed_over(tree):
    once = find_images(str(tree))
    (tree / "loop").symlink_to(tree)
    assert find_images(str(tree)) == once


def test_a_folder_that_cannot_be_read_is_named(tree, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(file_index.os, "scandir", refuse)
    with pytest.raises(UsageError, match=f"{tree}.*Permission denied"):
        find_images(str(tree))


def test_a_folder_that_vanishes_meanwhile_is_named(tree, monkeypatch):
    scandir = os.scandir

    def vanish(folder):
        if folder == str(tree / "b/c"):
            shutil.rmtree(folder)
        return scandir(folder)

    monkeypatch.setattr(file_index.os, "scandir", vanish)
    with pytest.raises(UsageError, match=r"b/c cannot be read \(No such file"):
        find_images(str(tree))
