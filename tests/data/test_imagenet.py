"""ImageNet's classes, those of its other test sets, and ReaL's labels."""

import dataclasses
import os
from importlib import resources

import pytest
from PIL import Image

from util.data import imagenet
from util.data.datasets import FileImages
from util.data.imagenet import TEST_SETS, load_published, read_real_labels, synsets
from util.errors import UsageError

CLASSES = list(synsets())


@pytest.mark.parametrize(("name", "size"), [("ImageNet", 1000), ("ImageNet-A", 200),
                                            ("ImageNet-R", 200), ("ImageNet-V2", 1000),
                                            ("ImageNet-Sketch", 1000)])  # fmt: skip
def test_lists_have_the_published_size_and_are_sorted(name, size):
    names = synsets(TEST_SETS[name].synsets)
    assert len(names) == size and list(names) == sorted(set(names))
    assert set(names) <= set(CLASSES)


@pytest.mark.parametrize("letter", ["a", "r"])
def test_the_two_hundred_are_timms_indices_of_the_thousand(letter):
    file = resources.files("timm.data").joinpath("_info", f"imagenet_{letter}_indices.txt")
    indices = [int(line) for line in file.read_text().split()]
    names = synsets(TEST_SETS[f"ImageNet-{letter.upper()}"].synsets)
    assert [CLASSES[index] for index in indices] == list(names)


def test_landmarks_of_the_authors_own_lists():
    """The first and last classes in their eval.py, and how many both sets share."""
    first_and_last = {"ImageNet-A": (6, 988), "ImageNet-R": (1, 988)}
    for name, (first, last) in first_and_last.items():
        names = synsets(TEST_SETS[name].synsets)
        assert CLASSES.index(names[0]) == first and CLASSES.index(names[-1]) == last
    both = [set(synsets(TEST_SETS[name].synsets)) for name in first_and_last]
    assert len(both[0] & both[1]) == 86


# ------------------------------------------------------------------------------------ the folders


@pytest.fixture
def folder(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / "set" / name / "x.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(path)
        return str(tmp_path / "set")

    return make


@pytest.fixture
def small(monkeypatch):
    """ImageNet-A as if three images of three classes were all that is published."""
    names = synsets(TEST_SETS["ImageNet-A"].synsets)[:3]
    monkeypatch.setattr(imagenet, "synsets", lambda name="": names if "_a_" in name else synsets())
    return dataclasses.replace(TEST_SETS["ImageNet-A"], num_images=3), names


def test_a_whole_set_is_numbered_as_the_logits_are(folder, small):
    published, names = small
    root = folder(*names)
    images = load_published(root, published, CLASSES, 3)
    assert [CLASSES[target] for target in images.targets] == sorted(names)
    backwards = CLASSES[::-1]  # logits in another order
    images = load_published(root, published, backwards, 3)
    assert [backwards[target] for target in images.targets] == sorted(names)


def test_v2s_folders_are_numbers_not_words(folder):
    root = folder("0", "10", "2", "999")
    images = load_published(root, TEST_SETS["ImageNet-V2"], CLASSES, 3, partial=True)
    assert sorted(images.targets.tolist()) == [0, 2, 10, 999]
    with pytest.raises(UsageError, match=r"n01440764.*called 0 to 999"):
        load_published(folder("n01440764"), TEST_SETS["ImageNet-V2"], CLASSES, 3)


def test_what_is_no_such_set(folder, small, tmp_path):
    published, names = small
    with pytest.raises(UsageError, match=r"--imagenet_a .*nowhere is not a folder"):
        load_published(str(tmp_path / "nowhere"), published, CLASSES, 3)
    root = folder(*names[:2])
    with pytest.raises(UsageError, match=rf"1 of the set's 3 classes \({names[2]}\).*--partial"):
        load_published(root, published, CLASSES, 3)
    assert len(load_published(root, published, CLASSES, 3, partial=True)) == 2
    root = folder(names[2])
    Image.new("RGB", (4, 4)).save(os.path.join(root, names[2], "y.png"))
    with pytest.raises(UsageError, match="4 images, and 3 are published"):
        load_published(root, published, CLASSES, 3)
    other = next(name for name in CLASSES if name not in names)
    with pytest.raises(UsageError, match=rf"1 class folders.*{other}"):
        load_published(folder(other), published, CLASSES, 3)


def test_other_classifiers_are_refused(folder, small):
    published, names = small
    with pytest.raises(UsageError, match="10 logits"):
        load_published(folder(*names), published, list("0123456789"), 3)
    with pytest.raises(UsageError, match=r"synsets \(cat\)"):
        load_published(folder(*names), published, ["cat", *CLASSES[1:]], 3)


def test_class_lists(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("b\na\n")
    assert imagenet.read_class_list(str(path)) == ["b", "a"]
    path.write_bytes(b"\xef\xbb\xbfb\r\na\r\n")  # a byte-order mark, and Windows' line ends
    assert imagenet.read_class_list(str(path)) == ["b", "a"]
    path.write_text(" red fox\n\nred panda \n")
    assert imagenet.read_class_list(str(path)) == ["red fox", "red panda"]
    for text, said in (("a\nb\na\n", "names a twice"), ("", "is empty")):
        path.write_text(text)
        with pytest.raises(UsageError, match=f"--class_list .*{said}"):
            imagenet.read_class_list(str(path))
    with pytest.raises(UsageError, match="cannot be read"):
        imagenet.read_class_list(str(tmp_path / "absent"))


def test_real_labels_follow_the_images_numbers(tmp_path):
    names = [f"c/ILSVRC2012_val_0000000{n}.JPEG" for n in (3, 1, 2)]
    images = FileImages("", names, [0, 0, 0], ["c"], 3)
    path = tmp_path / "real.json"
    path.write_text("[[5], [], [1, 2]]")
    assert read_real_labels(str(path), images) == [{1, 2}, {5}, frozenset()]
    jpeg2000 = [name.replace("JPEG", "jp2") for name in names]  # a 2 that is no image's number
    images = FileImages("", jpeg2000, [0, 0, 0], ["c"], 3)
    assert read_real_labels(str(path), images) == [{1, 2}, {5}, frozenset()]
    path.write_text("[[5]]")
    with pytest.raises(UsageError, match=r"has 1 images, and .*is none of them"):
        read_real_labels(str(path), images)
    path.write_text("{")
    with pytest.raises(UsageError, match="no list of lists"):
        read_real_labels(str(path), images)


def test_real_labels_that_timm_carries():
    names = [f"c/ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2, 50000)]
    found = read_real_labels("timm", FileImages("", names, [0, 0, 0], ["c"], 3))
    assert found[:2] == [frozenset(), {970, 795}] and len(found) == 3
    backwards = read_real_labels("timm", FileImages("", names, [0, 0, 0], ["c"], 3), CLASSES[::-1])
    assert backwards[1] == {29, 204}
