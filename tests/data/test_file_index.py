"""Lists of image files: what is found, what is passed over, and what cannot be read."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from util.data import file_index
from util.data.file_index import find_images, folders_with_images, list_folder
from util.data.images import read_image
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


# ------------------------------------------------------------------------- junk, and what is said


def touch(root, *names, data=b""):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


JUNK = ("__MACOSX", "@eaDir", ".ipynb_checkpoints", ".git", "lost+found", "$RECYCLE.BIN",
        "System Volume Information", "Thumbs", "#recycle", ".Trashes")  # fmt: skip


@pytest.mark.parametrize("junk", JUNK)
def test_junk_is_passed_over_at_any_depth(tree, junk):
    before = find_images(str(tree))
    touch(tree, f"{junk}/1.png", f"{junk}/deep/2.png", f"a/{junk}/3.png", f"b/c/{junk}/4.jpg/5.jpg")
    listing = list_folder(str(tree))
    assert listing.images == before and listing.junk == {junk: 3}
    assert folders_with_images(str(tree)) == ["a", "b"] and listing.folders == ["a", "b"]


def test_a_folder_that_is_named_like_an_image_is_one(tree):
    """Frames of a clip, tiles of a slide."""
    before = find_images(str(tree))
    touch(tree, "a/clip.gif/0.png", "slide.tif/1.png")
    assert find_images(str(tree)) == sorted([*before, "a/clip.gif/0.png", "slide.tif/1.png"])
    (tree / "empty.png").mkdir()
    assert folders_with_images(str(tree)) == ["a", "b", "slide.tif"]


def test_folders_without_an_image_are_no_classes(tree):
    touch(tree, "docs/x.txt", "d/e/f/y.csv", "g/h/i.png", "j/.hidden.png")
    (tree / "empty").mkdir()
    assert folders_with_images(str(tree)) == ["a", "b", "g"]
    assert list_folder(str(tree)).empty() == ["d", "docs", "empty", "j"]


def test_one_line_says_what_is_passed_over(tree, caplog):
    caplog.set_level("INFO")
    assert len(find_images(str(tree))) == 3 and not caplog.messages
    touch(tree, "@eaDir/1.png", "a/@eaDir/2.png", "__MACOSX/3.png", "a/x.txt", "b/c/y.TXT",
          "a/z.heic", "README", "a/.DS_Store", "drafts/p.psd")  # fmt: skip
    assert len(find_images(str(tree))) == 3
    start = (
        f"{tree}: 3 images; passed over: 3 junk folders (2 @eaDir, 1 __MACOSX), 1 folder without "
        "an image (drafts), 6 files (2 .txt, 1 "
    )
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(start)
    find_images(str(tree), is_told=False)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".JPEG", ".Jfif", ".jif", ".mpo"])
def test_a_jpeg_by_any_suffix(tmp_path, suffix):
    image = Image.fromarray(np.full((4, 6, 3), 90, np.uint8))
    image.save(tmp_path / f"a{suffix}", format="JPEG")
    assert find_images(str(tmp_path)) == [f"a{suffix}"]
    assert read_image(str(tmp_path / f"a{suffix}")).shape == (3, 4, 6)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "npy"])
def test_an_image_without_a_suffix_is_told_by_its_first_bytes(tmp_path, kind):
    pixels = np.full((4, 6, 3), 90, np.uint8)
    with open(tmp_path / "0a1b2c", "wb") as file:
        if kind == "npy":
            np.save(file, pixels)
        else:
            Image.fromarray(pixels).save(file, format=kind)
    touch(tmp_path, "Makefile", "LICENSE", data=b"some text")
    touch(tmp_path, "nothing", "n01440764/Makefile")
    assert find_images(str(tmp_path)) == ["0a1b2c"]
    assert folders_with_images(str(tmp_path)) == []
    assert (read_image(str(tmp_path / "0a1b2c")).int() - 90).abs().max() <= 1
