"""Published lists: paths of any depth, their ends where one image has them, and nothing guessed."""

import os

import pytest

from util.data.datasets import FileImages, Subset
from util.data.image_list import listed_positions
from util.errors import UsageError

# Nested: a base name that is unique, two that are not, and one whose path is another's end.
PATHS = ["a/x.png", "a/deep/1.png", "b/a/x.png", "b/y.png", "c/deep/1.png", "c/z z.png"]


@pytest.fixture
def listed(tmp_path):
    """(lines, images?) -> their positions."""
    root = str(tmp_path / "data" / "train")
    images = FileImages(root, PATHS, [0, 0, 1, 1, 2, 2], ["a", "b", "c"], 3)

    def positions(*lines, of=images):
        (tmp_path / "list.txt").write_text("\n".join(lines))
        return listed_positions(of, str(tmp_path / "list.txt"), "--subset_file")

    positions.root, positions.images = root, images
    return positions


@pytest.mark.parametrize(
    ("line", "position"),
    [
        *((path, position) for position, path in enumerate(PATHS)),  # each relative path
        ("y.png", 3), ("z z.png", 5), ("b/a/x.png", 2), ("train/a/x.png", 0),
        ("train/b/a/x.png", 2), ("data/train/c/deep/1.png", 4), ("./a/deep/1.png", 1),
        ("a//x.png", 0), ("b\\a\\x.png", 2), (r".\b\y.png", 3),
    ],
)  # fmt: skip
def test_a_line_names_one_image(listed, line, position):
    assert listed(line) == [position]


def test_two_images_of_one_whole_path_are_ambiguous(listed):
    """As rows of a table may be."""
    images = FileImages(listed.root, ["a/x.png", "a/x.png"], [0, 0], ["a"], 3)
    with pytest.raises(UsageError, match=r"more than one image is called a/x\.png"):
        listed("a/x.png", of=images)


def test_absolute_paths_and_the_lists_order(listed):
    lines = [os.path.join(listed.root, PATHS[i]) for i in (4, 0, 2)]
    assert listed(*lines) == [4, 0, 2]
    part = Subset(listed.images, [5, 3, 0])
    assert listed("a/x.png", "z z.png", of=part) == [2, 0]


def test_an_image_that_is_named_twice_is_taken_once_and_told(listed, caplog):
    assert listed("b/y.png", "a/x.png", "y.png", "a/x.png") == [3, 0]
    assert "names 2 images twice" in caplog.text


@pytest.mark.parametrize("line", ["x.png", "deep/1.png", "1.png"])
def test_an_ambiguous_name_is_refused_with_those_that_it_may_mean(listed, line):
    with pytest.raises(UsageError, match=r"--subset_file .*more than one image is called") as error:
        listed("b/y.png", line)
    meant = [path for path in PATHS if path.endswith("/" + line)]
    assert ", ".join(meant) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line", ["q.png", "d/y.png", "val/b/y.png", "y", "a", "/else/b/y.png", "png"]
)
def test_what_is_not_there_is_not_guessed(listed, line):
    with pytest.raises(UsageError, match="1 of 2 images that the data set lacks"):
        listed("b/y.png", line)


def test_an_empty_or_absent_list(listed, tmp_path):
    with pytest.raises(UsageError, match="is empty"):
        listed("", " ")
    with pytest.raises(UsageError, match="cannot be read"):
        listed_positions(listed.images, str(tmp_path / "absent"), "--few_list")
