"""Lists of path,label: columns, separators, labels of both kinds, and what is refused."""

from argparse import Namespace

import pytest
from PIL import Image

from util.data import kept_index
from util.data.datasets import load_images
from util.errors import UsageError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """a/1.png b/2.png c/3.png, of those values."""
    monkeypatch.setattr(kept_index, "SETTLED", 0)
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (3, 2), (int(name[2]), 0, 0)).save(tmp_path / name)
    return tmp_path


def load(path, split="train"):
    options = dict(subset_file="", train_fraction=1.0, download=False, in_chans=3)
    options |= dict(mean=[0.5] * 3, std=[0.5] * 3)
    return load_images(Namespace(dataset="csv", data_path=str(path), **options), split)


def labelled(images) -> list[tuple[int, str]]:
    return [
        (int(images.read(i)[0, 0, 0]), images.classes[images.targets[i]])
        for i in range(len(images))
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.csv", "b/2.png,y\na/1.png,x\n"),
        ("train.csv", "\ufeffpath,label\r\nb/2.png,y\r\n\r\na/1.png,x\r\n"),
        ("train.csv", "split,Label,size,Image_Path\n1,y,9,b/2.png\n1,x,9,a/1.png\n"),
        ("train.csv", 'filename,note,class\n"b/2.png","a, b",y\n./a/1.png, ,x\n'),
        ("train.csv", "file_name,tag\nb/2.png,y\na/1.png,x"),
        ("train.csv", "path;label\nb/2.png;y\na/1.png;x\n"),
        ("train.tsv", "b/2.png\ty\na/1.png\tx\n"),
        ("x_train_1.TSV", "path\tlabel\n b/2.png \t y \na/1.png\tx\n"),
    ],
)
def test_columns_and_separators(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8", newline="")
    for path in (folder, folder / name):
        images = load(path)
        assert labelled(images) == [(2, "y"), (1, "x")] and images.classes == ["x", "y"]
        assert load(path, "pretrain").name(0).endswith("b/2.png")


@pytest.mark.parametrize(
    ("train", "val", "classes"),
    [
        ("10 9 0", "9 10 9", [str(n) for n in range(11)]),
        ("z y x", "x z x", ["x", "y", "z"]),
        ("10 b 9", "9 10 9", ["10", "9", "b"]),  # names, of which some are digits
    ],
)
def test_labels_are_names_or_numbers(folder, train, val, classes):
    for split, labels in (("train", train), ("val", val)):
        lines = zip(("a/1.png", "b/2.png", "c/3.png"), labels.split(), strict=True)
        (folder / f"{split}.csv").write_text("".join(f"{p},{label}\n" for p, label in lines))
    for split, labels in (("train", train), ("val", val)):
        images = load(folder, split)
        assert images.classes == classes
        assert [word for _, word in labelled(images)] == labels.split()
    both = f"{folder / 'train.csv'}::{folder / 'val.csv'}"
    assert labelled(load(both, "val")) == labelled(load(folder, "val"))


def test_the_list_is_read_once_and_anew_where_it_has_changed(folder, monkeypatch):
    (folder / "train.csv").write_text("a/1.png,x\n")
    assert labelled(load(folder)) == [(1, "x")]
    from util.data import table

    with monkeypatch.context() as patched:
        patched.setattr(table, "_rows", None)
        assert labelled(load(folder)) == [(1, "x")]
    (folder / "train.csv").write_text("b/2.png,y\na/1.png,x\n")
    assert labelled(load(folder)) == [(2, "y"), (1, "x")]


def test_a_link_to_a_list_sees_paths_from_where_it_lies(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists")
    (elsewhere / "list.csv").write_text("a/1.png,x\n")
    with pytest.raises(UsageError, match="not there"):
        load(elsewhere)
    (folder / "train.csv").symlink_to(elsewhere / "list.csv")
    assert labelled(load(folder)) == [(1, "x")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"), ("path,label\n", "is empty"),
        ("a/1.png,x\n,y\n", "a line without a path"),
        ('a/1.png,x\nb/2.png,"6 inch\nc/3.png,y\n', "cannot be read .*unexpected end"),
        ('a/1.png,"x\nb/2.png,6" y\n', "cannot be read .*expected after"),
        ("image file,kind\na/1.png,x\n", r"1 of 2 .*not there .*first line"),
        ("a/1.png,x\nb/2.png\n", r"1 of 2 images have no label .*b/2\.png"),
        ("a/1.png,1\nb/2.png,-1\nc/3.png,5000000\n", None), ("a/1.png,5000000\n", "label 5000000"),
    ],
)  # fmt: skip
def test_what_is_refused(folder, text, words):
    (folder / "train.csv").write_text(text)
    if words is None:
        assert load(folder).classes == ["-1", "1", "5000000"]
        return
    with pytest.raises(UsageError, match=words):
        load(folder)


def test_without_labels_one_can_pretrain(folder):
    (folder / "train.csv").write_text("a/1.png\nb/2.png\n")
    assert load(folder, "pretrain").targets.tolist() == [-1, -1]
