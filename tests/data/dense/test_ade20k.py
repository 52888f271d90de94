"""Label maps of every kind, their palettes, and what is wrong with a folder."""

import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from util.data.dense.ade20k import NOTHING, Labels, load_mapped_images, read_labels
from util.data.transformed import TransformedPairs
from util.errors import UsageError

CLASSES = ["wall", "sky", "blue door"]
PALETTE = "120 0 0 wall\n0 120 0 sky\n0 130 0 sky\n0 0 255 blue door\n0 0 0 -\n"


@pytest.fixture
def folder(tmp_path):
    """Two pairs of 4 x 6 pixels a split, one in a sub-folder; maps of all classes and nothing."""
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (tmp_path / "palette.txt").write_text(PALETTE)
    for split in ("training", "validation"):
        for name in ("a", "deep/b"):
            image = tmp_path / "images" / split / f"{name}.jpg"
            labels = tmp_path / "annotations" / split / f"{name}.png"
            for path in (image, labels):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 4), "red").save(image)
            Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) % 4).save(labels)
    return tmp_path


def load(folder, split="training", classes="", first_class=1, palette=""):
    labels = read_labels(str(folder), classes, first_class, palette)
    return load_mapped_images(str(folder), split, labels, 3)


def refused(folder, *words, **options):
    with pytest.raises(UsageError) as caught:
        images = load(folder, **options)
        for i in range(len(images)):
            images.read(i)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_images_and_maps_are_paired_by_their_names(folder):
    images = load(folder)
    assert len(images) == 2 and images.classes == CLASSES
    assert [name.rsplit("training/", 1)[1] for name in map(images.name, range(2))] == [
        "a.jpg",
        "deep/b.jpg",
    ]
    image, labels = images.read(1)
    assert image.shape == (3, 4, 6) and labels.dtype == torch.int16
    expected = torch.arange(24).view(4, 6) % 4 - 1
    assert torch.equal(labels.long(), torch.where(expected < 0, NOTHING, expected))


def test_all_forms_of_numbers_are_read_alike(tmp_path):
    labels = Labels(CLASSES)
    values = np.array([[0, 1, 2], [3, 255, 1]], dtype=np.uint8)
    expected = torch.tensor([[-1, 0, 1], [2, -1, 0]], dtype=torch.int16)
    palette_image = Image.fromarray(values).convert("P")
    palette_image.putpalette([7] * 768)
    palette_image.putdata(values.flatten().tolist())
    palette_image.save(tmp_path / "palette.png")
    Image.fromarray(values).save(tmp_path / "grey.png")
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.png")
    np.save(tmp_path / "array.npy", values.astype(np.int64))
    for name in ("palette.png", "grey.png", "deep.png", "array.npy"):
        assert torch.equal(labels.read(str(tmp_path / name)), expected), name


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_maps_whose_numbers_a_reader_may_stretch_are_refused(tmp_path, bits):
    """Pillow reads a 4-bit 7 as 119; as a palette image it is 7."""
    values = Image.fromarray(np.arange(4, dtype=np.uint8)[None])
    values.save(tmp_path / "grey.png")
    packed = bytearray((tmp_path / "grey.png").read_bytes())
    packed[24] = bits  # the header's bit depth; its checksum and its one row follow
    packed[29:33] = zlib.crc32(packed[12:29]).to_bytes(4, "big")
    row = bytes([0, 0b00011011] if bits == 2 else [0, 0x01, 0x23])
    data = zlib.compress(row)
    chunk = len(data).to_bytes(4, "big") + b"IDAT" + data
    chunk += zlib.crc32(b"IDAT" + data).to_bytes(4, "big")
    end = b"\0\0\0\0IEND" + zlib.crc32(b"IEND").to_bytes(4, "big")
    (tmp_path / "grey.png").write_bytes(bytes(packed[:33]) + chunk + end)
    with pytest.raises(UsageError, match=f"grey.png is a grey label map of {bits} bits"):
        Labels(CLASSES, 0).read(str(tmp_path / "grey.png"))
    palette = values.convert("P")
    palette.putpalette(list(range(12)))
    palette.putdata([0, 1, 2, 1])
    palette.save(tmp_path / "palette.png", bits=bits)
    assert Labels(CLASSES, 0).read(str(tmp_path / "palette.png")).tolist() == [[0, 1, 2, 1]]


def test_maps_may_begin_at_0_and_have_more_classes_than_a_byte(tmp_path):
    values = np.array([[0, 254, 255], [256, 299, 1]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "map.png")
    many = Labels([str(i) for i in range(300)], first_class=0)
    assert torch.equal(many.read(str(tmp_path / "map.png")).long(), torch.tensor(values).long())
    Image.fromarray(np.array([[0, 2, 255]], dtype=np.uint8)).save(tmp_path / "few.png")
    few = Labels(CLASSES, first_class=0)
    assert few.read(str(tmp_path / "few.png")).tolist() == [[0, 2, NOTHING]]


def test_colours_are_read_by_the_palette(folder):
    labels = read_labels(str(folder), "", 1, str(folder / "palette.txt"))
    pixels = np.array(
        [[[120, 0, 0], [0, 120, 0], [0, 130, 0]], [[0, 0, 255], [0, 0, 0], [120, 0, 0]]], np.uint8
    )
    path = str(folder / "colours.png")
    Image.fromarray(pixels).save(path)
    assert labels.read(path).tolist() == [[0, 1, 1], [2, NOTHING, 0]]
    pixels[1, 2] = (1, 2, 3)
    Image.fromarray(pixels).save(path)
    with pytest.raises(UsageError, match=r"colours.png has the colour 1 2 3 at row 1, column 2"):
        labels.read(path)


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("first_class", [0, 1])
def test_what_is_written_is_read_again(folder, palette, first_class):
    labels = read_labels(
        str(folder), "", first_class, str(folder / "palette.txt") if palette else ""
    )
    classes = torch.tensor([[0, 1, 2], [NOTHING, 2, 0]], dtype=torch.int16)
    labels.write(str(folder / "out.png"), classes)
    assert torch.equal(labels.read(str(folder / "out.png")), classes)
    colours = labels.colours()
    assert len(np.unique(colours, axis=0)) == len(CLASSES) + 1 and not colours[NOTHING].any()


def test_ade20ks_own_table_names_the_classes(folder):
    (folder / "classes.txt").unlink()
    refused(folder, "classes.txt", "--classes")
    rows = [f"{i}\t0.1\t1\t1\t{name}" for i, name in enumerate(["wall", "door, gate", "sky"], 1)]
    (folder / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    assert load(folder).classes == ["wall", "door, gate", "sky"]


def test_an_image_without_a_map_and_the_reverse(folder):
    lone = folder / "images" / "training" / "deep" / "c.jpg"
    Image.new("RGB", (6, 4)).save(lone)
    refused(folder, "1 of 3", "no label map", "c.jpg")
    lone.unlink()
    (folder / "images" / "training" / "a.jpg").unlink()
    refused(folder, "1 of 2", "no image", "a.png")


def test_an_empty_split_and_missing_folders(folder, tmp_path):
    refused(tmp_path / "nowhere", "classes.txt")
    for path in (folder / "images" / "validation").rglob("*.jpg"):
        path.unlink()
    refused(folder, "validation", "no image", split="validation")
    (folder / "annotations" / "training").rename(folder / "labels")
    refused(folder, "annotations/training", "images/ and annotations/")


def test_two_files_of_one_name(folder):
    Image.new("RGB", (6, 4)).save(folder / "images" / "training" / "a.png")
    refused(folder, "two files", "images/training")


def test_values_outside_the_classes_say_where(folder):
    path = folder / "annotations" / "training" / "deep" / "b.png"
    values = np.ones((4, 6), dtype=np.uint8)
    values[2, 5] = 4
    Image.fromarray(values).save(path)
    refused(folder, "deep/b.png", "value 4", "row 2, column 5", "1 to 3", "--first_class")
    values[2, 5] = 1
    Image.fromarray(values * 0).save(path)
    assert (load(folder).read(1)[1] == NOTHING).all()
    Image.fromarray(np.dstack([values] * 3)).save(path)
    refused(folder, "deep/b.png", "in colours", "--palette")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("b.jpg", {}), ("b.png", {"format": "JPEG"}), ("b.webp", {"quality": 90}),
        ("b.tif", {"compression": "jpeg"}), ("b.png", {"format": "JPEG2000"}),
    ],
    ids=lambda value: str(value),
)  # fmt: skip
@pytest.mark.parametrize("palette", ["", "palette.txt"])
def test_maps_in_lossy_files_are_refused(folder, name, options, palette):
    labels = read_labels(str(folder), "", 1, palette and str(folder / palette))
    mode = "RGB" if palette or name.endswith("webp") else "L"
    Image.new(mode, (6, 4), 0).save(folder / name, **options)
    with pytest.raises(UsageError, match=rf"{name} is a label map as .*changes values.* PNG"):
        labels.read(str(folder / name))


def test_a_lossless_webp_keeps_its_colours(folder):
    labels = read_labels(str(folder), "", 1, str(folder / "palette.txt"))
    Image.new("RGB", (6, 4), (0, 130, 0)).save(folder / "b.webp", lossless=True)
    assert (labels.read(str(folder / "b.webp")) == 1).all()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_files_may_begin_with_a_byte_order_mark(folder, mark):
    for name in ("classes.txt", "palette.txt"):
        path = folder / name
        path.write_bytes(mark + path.read_bytes().replace(b"\n", b"\r\n"))
    labels = read_labels(str(folder), "", 1, str(folder / "palette.txt"))
    assert labels.classes == CLASSES and labels.palette[0] == ((120, 0, 0), 0)


def test_a_map_of_another_size_is_counted_and_replaced_but_for_the_first(folder):
    Image.new("L", (6, 5)).save(folder / "annotations" / "training" / "deep" / "b.png")
    images = load(folder)
    data = TransformedPairs(images, lambda *pair: pair, seed=0)
    image, labels, bad = data[0, 1]
    assert bad == 1 and torch.equal(image, images.read(0)[0]) and labels.shape == (4, 6)
    assert "deep/b.png has 5 x 6 pixels, its image" in data.problem(1)
    Image.new("L", (6, 5)).save(folder / "annotations" / "training" / "a.png")
    refused(folder, "a.png has 5 x 6 pixels", "4 x 6")


def test_one_bad_pair_is_no_reason_to_refuse_a_folder_wherever_it_is(folder):
    (folder / "images" / "training" / "a.jpg").write_bytes(b"no image")
    assert len(load(folder)) == 2
    Image.new("L", (6, 4), 9).save(folder / "annotations" / "training" / "deep" / "b.png")
    refused(folder, "b.png has the value 9")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wall\nwall\n", ("a class a line", "each once")),
        ("", ("a class a line",)),
        ("wall\n\nsky\n", ("none empty",)),
    ],
)
def test_class_files_that_cannot_be_meant(folder, text, words):
    (folder / "other.txt").write_text(text)
    refused(folder, "other.txt", *words, classes=str(folder / "other.txt"))
    refused(folder, "absent.txt", "cannot be read", classes=str(folder / "absent.txt"))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("1 2 wall\n", "'1 2 wall'"), ("1 2 3 tree\n", "'1 2 3 tree'"),
        ("1 2 300 wall\n", "'1 2 300 wall'"), ("1 2 3\n", "'1 2 3'"),
        (PALETTE + "0 0 0 wall\n", "'0 0 0 wall'"), ("1 2 3 wall\n0 0 0 -\n", "no colour for sky"),
    ],
)  # fmt: skip
def test_palettes_that_cannot_be_meant(folder, text, word):
    (folder / "other.txt").write_text(text)
    refused(folder, "other.txt", word, palette=str(folder / "other.txt"))
