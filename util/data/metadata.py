"""An image file without what stands beside its pixels: EXIF, XMP, colour profiles, comments.

Pillow refuses a picture for a tag that it cannot parse, though the pixels are whole. Then they are
read from a copy without such tags; the orientation is looked up here, and only that.
"""

import struct
import zlib
from typing import NamedTuple

ORIENTATION = 0x0112
UPRIGHT = 1
SHORT, LONG = 3, 4  # types of a tag's value
PNG_START, EXIF_START = b"\x89PNG\r\n\x1a\n", b"Exif\0\0"
# What the pixels are made of: chunks of a PNG, tags of a TIFF.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
TIFF_TAGS = {
    254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323,
    324, 325, 332, 338, 339, 347, *range(512, 522), 529, 530, 532,
}  # fmt: skip
VP8X_FLAGS = 0x20 | 0x08 | 0x04  # of a WebP's header: colour profile, EXIF, XMP


class Bare(NamedTuple):
    """A file's bytes without metadata, and the EXIF orientation (1 to 8) that they named."""

    data: bytes
    orientation: int


def without_metadata(data: bytes) -> Bare | None:
    """The file without its metadata; None where its format is another than JPEG, PNG, WebP or
    TIFF, or its parts cannot be told from each other."""
    for start, strip in (
        (b"\xff\xd8\xff", _strip_jpeg), (PNG_START, _strip_png), (b"RIFF", _strip_webp),
        (b"II*\0", _strip_tiff), (b"MM\0*", _strip_tiff),
    ):  # fmt: skip
        if data.startswith(start):
            try:
                return strip(data)
            except (struct.error, IndexError):
                return None
    return None


def exif_orientation(block: bytes) -> int:
    """The orientation, 1 to 8, in an EXIF block: that of its first list of tags, else 1."""
    block = block.removeprefix(EXIF_START)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        for place in _entries(block, order, start):
            tag, kind, count = struct.unpack_from(order + "HHI", block, place)
            if tag == ORIENTATION and kind in (SHORT, LONG) and count == 1:
                form = "H" if kind == SHORT else "I"
                (found,) = struct.unpack_from(order + form, block, place + 8)
                return found if 1 <= found <= 8 else UPRIGHT
    except struct.error:  # cut short
        pass
    return UPRIGHT


def _entries(block: bytes, order: str, start: int) -> range:
    """Where the entries of a list of tags begin."""
    (count,) = struct.unpack_from(order + "H", block, start)
    return range(start + 2, start + 2 + 12 * count, 12)


def _strip_jpeg(data: bytes) -> Bare:
    """Without APP1 to APP13, APP15 and comments: APP0 is JFIF's, APP14 tells Adobe's colours."""
    kept, place, orientation = [data[:2]], 2, UPRIGHT
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xDA:  # the pixels
            break
        if marker == 0xFF:  # a filling byte
            place += 1
            continue
        end = place + 2 + struct.unpack_from(">H", data, place + 2)[0]
        part = data[place:end]
        if marker == 0xE1 and part[4:].startswith(EXIF_START):
            orientation = exif_orientation(part[4:])
        if not (0xE1 <= marker <= 0xED or marker in (0xEF, 0xFE)):
            kept.append(part)
        place = end
    return Bare(b"".join([*kept, data[place:]]), orientation)


def _strip_png(data: bytes) -> Bare:
    kept, place, orientation = [PNG_START], len(PNG_START), UPRIGHT
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind in PNG_CHUNKS:
            kept.append(data[place : place + 12 + length])
        elif kind == b"eXIf":
            orientation = exif_orientation(data[place + 8 : place + 8 + length])
        place += 12 + length
    return Bare(b"".join(kept), orientation)


def _strip_webp(data: bytes) -> Bare:
    kept, place, orientation = [], 12, UPRIGHT
    while place < len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        end = place + 8 + length + length % 2
        part = data[place:end]
        if kind == b"EXIF":
            orientation = exif_orientation(part[8 : 8 + length])
        elif kind == b"VP8X":
            kept.append(part[:8] + bytes([part[8] & ~VP8X_FLAGS]) + part[9:])
        elif kind not in (b"ICCP", b"XMP "):
            kept.append(part)
        place = end
    body = b"WEBP" + b"".join(kept)
    return Bare(b"RIFF" + struct.pack("<I", len(body)) + body, orientation)


def _strip_tiff(data: bytes) -> Bare:
    """The first page, with the tags that its pixels need."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    entries = [data[place : place + 12] for place in _entries(data, order, start)]
    kept = [e for e in entries if struct.unpack(order + "H", e[:2])[0] in TIFF_TAGS]
    tags = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)  # no further page
    bare = data[:start] + tags + data[start + len(tags) :]
    return Bare(bare, exif_orientation(data))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG's chunk with its length and sum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content)
    )  # fmt: skip
