"""No tag beside the pixels throws a picture away: the orientation counts, if it can be read."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from util.data.dense.ade20k import Labels
from util.data.images import read_image
from util.data.metadata import EXIF_START, PNG_START, exif_orientation, png_chunk, without_metadata

RNG = np.random.default_rng(0)
BYTE, ASCII, SHORT, LONG, RATIONAL = 1, 2, 3, 4, 5
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
TURNED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: np.rot90(a, 2), 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a[:, ::-1], -1), 8: lambda a: np.rot90(a, 1),
}  # fmt: skip
HEAD = b"II*\0" + struct.pack("<I", 8)


def block(entries, rest=b""):
    """An EXIF block: (tag, type, count, 4 bytes or a number) each."""
    packed = b"".join(
        struct.pack("<HHI", tag, kind, count)
        + (value if isinstance(value, bytes) else struct.pack("<I", value)).ljust(4, b"\0")[:4]
        for tag, kind, count, value in entries
    )
    return HEAD + struct.pack("<H", len(entries)) + packed + bytes(4) + rest


ORDINARY = block(
    [(0x010F, ASCII, 6, 100), (0x0112, SHORT, 1, 6), (0x011A, RATIONAL, 1, 108),
     (0x011B, RATIONAL, 1, 116), (0x0128, SHORT, 1, 2), (0x0213, SHORT, 1, 1),
     (0x8769, LONG, 1, 124)],
    b"Maker\0\0\0" + struct.pack("<IIII", 72, 1, 72, 1)
    + struct.pack("<HHHII", 1, 0x829A, RATIONAL, 1, 144) + bytes(6) + struct.pack("<II", 1, 60),
)  # fmt: skip
# Tags of other types, counts and places than they should have.
ODD = {
    "XResolution as text": [(0x0112, SHORT, 1, 6), (0x011A, ASCII, 4, b"abc\0")],
    "YCbCrPositioning as text": [(0x0112, SHORT, 1, 6), (0x0213, ASCII, 4, b"abc\0")],
    "Make as a number": [(0x010F, SHORT, 1, 7), (0x0112, SHORT, 1, 6)],
    "Make of no known type": [(0x010F, 77, 1, 7), (0x0112, SHORT, 1, 6)],
    "a rational beyond the end": [(0x0112, SHORT, 1, 6), (0x011A, RATIONAL, 1, 90000)],
    "an endless text": [(0x010E, ASCII, 0xFFFFFFF0, 8), (0x0112, SHORT, 1, 6)],
    "sub-tags nowhere": [(0x0112, SHORT, 1, 6), (0x8769, LONG, 1, 0xFFFFFFF0)],
    "sub-tags as text": [(0x0112, SHORT, 1, 6), (0x8769, ASCII, 4, b"abc\0")],
    "GPS in itself": [(0x0112, SHORT, 1, 6), (0x8825, LONG, 1, 8)],
    "nothing else": [(0x0112, SHORT, 1, 6)],
}


def picture(width=24, height=16):
    """Smooth, no two of whose eight turns are alike: JPEG and WebP keep it to a few levels."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([rows * 14, columns * 9, np.full_like(rows, 90)]).astype(np.uint8)


PIXELS = picture()


def with_exif(kind, exif):
    """A file's bytes with an EXIF block that Pillow has not looked at."""
    buffer = io.BytesIO()
    options = {"PNG": {}, "JPEG": dict(quality=98, subsampling=0), "WEBP": dict(lossless=True)}
    Image.fromarray(PIXELS).save(buffer, kind, **options[kind])
    data = buffer.getvalue()
    if kind == "JPEG":
        part = EXIF_START + exif
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part + data[2:]
    if kind == "PNG":
        return data[:33] + png_chunk(b"eXIf", exif) + data[33:]
    height, width = PIXELS.shape[:2]
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    extended = b"VP8X" + struct.pack("<I", 10) + bytes([0x08, 0, 0, 0]) + size
    tail = b"EXIF" + struct.pack("<I", len(exif)) + exif + bytes(len(exif) % 2)
    body = b"WEBP" + extended + data[12:] + tail
    return b"RIFF" + struct.pack("<I", len(body)) + body


def orientation_of(path):
    """Which of its eight turns the file is shown in; None: none of them."""
    found = read_image(str(path)).permute(1, 2, 0).numpy().astype(int)
    for number, turn in TURNED.items():
        expected = turn(PIXELS).astype(int)
        if found.shape == expected.shape and np.abs(found - expected).mean() < 4:
            return number
    return None


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("odd", ODD)
def test_the_orientation_beside_an_odd_tag(tmp_path, kind, odd):
    path = tmp_path / f"a.{FORMATS[kind]}"
    path.write_bytes(with_exif(kind, block(ODD[odd])))
    assert orientation_of(path) == 6


@pytest.mark.parametrize("kind", FORMATS)
def test_every_orientation(tmp_path, kind):
    path = tmp_path / f"a.{FORMATS[kind]}"
    for number in range(1, 9):
        path.write_bytes(with_exif(kind, block([(0x0112, SHORT, 1, number)])))
        assert orientation_of(path) == number
        # As text that Pillow cannot use.
        junk = block([(0x0112, SHORT, 1, number), (0x011A, ASCII, 4, b"abc\0")])
        assert exif_orientation(junk) == number


@pytest.mark.parametrize("kind", FORMATS)
def test_blocks_without_an_orientation_leave_a_picture_as_it_is(tmp_path, kind):
    path = tmp_path / f"a.{FORMATS[kind]}"
    cases = [b"", b"junk", RNG.bytes(300), b"II*\0", HEAD + b"\xff\xff", b"MM" + RNG.bytes(40),
             block([(0x0112, SHORT, 1, 9)]), block([(0x0112, SHORT, 1, 0)]),
             block([(0x0112, ASCII, 2, b"6\0")]), block([(0x0112, SHORT, 2, 6)]),
             block([(0x0112, RATIONAL, 1, 6)])]  # fmt: skip
    for exif in cases:
        path.write_bytes(with_exif(kind, exif))
        assert orientation_of(path) in (1, *([6] if exif[10:12] == b"\x12\1" else [])), exif[:30]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_no_mutated_block_throws_a_picture_away(tmp_path, kind):
    """400 blocks with 1 to 12 other bytes each; untouched, an orientation is followed."""
    path, own = tmp_path / f"a.{FORMATS[kind]}", range(10, 34)  # up to the orientation's entry
    turned = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        exif = bytearray(ORDINARY)
        places = rng.integers(0, len(exif), rng.integers(1, 13))
        if seed % 2:
            places = places[places >= own.stop]
        for place in places:
            exif[place] = rng.integers(256)
        path.write_bytes(with_exif(kind, bytes(exif)))
        found = orientation_of(path)
        assert found is not None, seed
        assert seed % 2 == 0 or found == 6, seed
        turned += found == 6
    assert 200 <= turned < 400


def tiff(more, orientation=6, pixels=PIXELS):
    """A TIFF with further tags; its EXIF is the list of tags that has its structure, too."""
    height, width = pixels.shape[:2]
    entries = [(256, SHORT, 1, width), (257, SHORT, 1, height), (258, SHORT, 3, 600),
               (259, SHORT, 1, 1), (262, SHORT, 1, 2), (273, LONG, 1, 700),
               (274, SHORT, 1, orientation), (277, SHORT, 1, 3), (278, SHORT, 1, height),
               (279, LONG, 1, pixels.size), *more]  # fmt: skip
    data = block(sorted(entries)).ljust(600, b"\0") + struct.pack("<HHH", 8, 8, 8)
    return data.ljust(700, b"\0") + pixels.tobytes()


TIFF_ODD = {
    "none": [],
    "XResolution as text": [(282, ASCII, 4, b"abc\0")],
    "YCbCrPositioning as text": [(531, ASCII, 4, b"abc\0")],
    "Make as a number": [(271, SHORT, 1, 3)],
    "sub-tags nowhere": [(0x8769, LONG, 1, 0xFFFFFFF0)],
    "sub-tags as text": [(0x8769, ASCII, 4, b"ab\0")],
    "an XMP of numbers": [(700, SHORT, 1, 9)],
    "a resolution's unit as text": [(296, ASCII, 3, b"ab\0")],
    "a profile nowhere": [(34675, 7, 900, 0xFFFF0000)],
}


@pytest.mark.parametrize("odd", TIFF_ODD)
def test_a_tiff_with_an_odd_tag(tmp_path, odd):
    for number in range(1, 9):
        (tmp_path / "a.tif").write_bytes(tiff(TIFF_ODD[odd], number))
        assert orientation_of(tmp_path / "a.tif") == number


@pytest.mark.filterwarnings("ignore")
def test_no_mutated_tag_of_a_tiff_throws_it_away(tmp_path):
    """But for those that its pixels need."""
    more = [(270, ASCII, 6, 560), (271, ASCII, 6, 568), (282, RATIONAL, 1, 576),
            (283, RATIONAL, 1, 584), (296, SHORT, 1, 2), (531, SHORT, 1, 1)]  # fmt: skip
    whole = tiff(more)
    names = [struct.unpack_from("<H", whole, 10 + 12 * i)[0] for i in range(16)]
    own = (270, 271, 282, 283, 296, 531)
    starts = [10 + 12 * i for i, tag in enumerate(names) if tag in own]
    places = [start + k for start in starts for k in range(2, 12)]
    for seed in range(400):
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        for place in rng.choice(places, rng.integers(1, 13)):
            data[place] = rng.integers(256)
        (tmp_path / "a.tif").write_bytes(data)
        assert orientation_of(tmp_path / "a.tif") == 6, seed


def test_other_junk_beside_the_pixels(tmp_path):
    """Colour profiles, texts and their sums."""
    data = with_exif("PNG", block([(0x0112, SHORT, 1, 6)]))
    broken = png_chunk(b"tEXt", b"Comment\0hello")
    broken = broken[:-1] + bytes([broken[-1] ^ 1])
    odd = {b"iCCP": b"x\0\0junk", b"zTXt": b"x\0\0junk", b"iTXt": b"x", b"pHYs": b"1", b"cHRM": b""}
    for junk in (broken, *(png_chunk(*chunk) for chunk in odd.items())):
        (tmp_path / "a.png").write_bytes(data[:33] + junk + data[33:])
        assert orientation_of(tmp_path / "a.png") == 6, junk[4:8]
    data = with_exif("JPEG", block([(0x0112, SHORT, 1, 6)]))
    for marker, content in ((0xE2, b"MPF\0junk"), (0xE2, b"ICC_PROFILE\0\1\1junk"),
                            (0xED, b"Photoshop 3.0\x008BIM"), (0xFE, b"\xff\xfe")):  # fmt: skip
        part = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
        (tmp_path / "a.jpg").write_bytes(data[:2] + part + data[2:])
        assert orientation_of(tmp_path / "a.jpg") == 6, content


def test_a_label_map_with_junk_beside_its_pixels(tmp_path):
    values = RNG.integers(0, 4, (6, 5), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for junk in (png_chunk(b"iTXt", b"x"), png_chunk(b"pHYs", b"1"), png_chunk(b"iCCP", b"x\0\0j")):
        (tmp_path / "a.png").write_bytes(data[:33] + junk + data[33:])
        found = Labels(["w", "x", "y"], 1).read(str(tmp_path / "a.png"))
        assert np.array_equal(found.numpy(), values.astype(int) - 1)
    for broken in (b"no image", data[:40] + data[60:]):
        (tmp_path / "a.png").write_bytes(broken)
        with pytest.raises((OSError, SyntaxError, ValueError)) as error:
            Labels(["w", "x", "y"], 1).read(str(tmp_path / "a.png"))
        assert broken[:2] != b"no" or "a.png" in str(error.value)


@pytest.mark.parametrize("kind", [*FORMATS, "TIFF"])
def test_pixels_stay_as_they_are_without_metadata(tmp_path, kind):
    exif = block([(0x0112, SHORT, 1, 6)])
    data = tiff([]) if kind == "TIFF" else with_exif(kind, exif)
    bare = without_metadata(data)
    assert bare.orientation == 6
    with Image.open(io.BytesIO(bare.data)) as image:
        assert dict(image.getexif()).get(0x0112, 1) == 1
        if kind != "JPEG":
            assert np.array_equal(np.asarray(image), PIXELS)


def test_damaged_pixels_stay_damaged(tmp_path):
    png = with_exif("PNG", ORDINARY)
    broken = bytearray(png)
    broken[-30] ^= 0xFF  # in the pixels
    header = png[:8] + png_chunk(b"IHDR", b"junk") + png[33:]
    jpeg = with_exif("JPEG", ORDINARY)
    for data in (bytes(broken), header, png[:-60], jpeg[: len(jpeg) // 2], jpeg[:30], png[:20],
                 b"RIFF", b"II*\0", b"MM\0*junk", b"\xff\xd8\xff", PNG_START + zlib.compress(b"x"),
                 tiff([])[:-200]):  # fmt: skip
        (tmp_path / "a").write_bytes(data)
        with pytest.raises((OSError, ValueError, SyntaxError)):
            read_image(str(tmp_path / "a"))
    assert without_metadata(b"GIF89a") is None
