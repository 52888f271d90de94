"""Pictures of more than 8 bits keep all of them, on a scale that no pixel decides."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from util.data.images import is_off_scale, read_image, to_bytes
from util.data.metadata import PNG_START, png_chunk

RNG = np.random.default_rng(0)
LUMA = np.array([0.299, 0.587, 0.114])


def write_png(path, values, colour_type, clear=b"", depth=16):
    """A PNG written by the standard, values [H, W, C]; clear: its tRNS chunk."""
    height, width = values.shape[:2]
    rows = [b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in values]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *([(b"tRNS", clear)] if clear else [])]
    chunks += [(b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    path.write_bytes(PNG_START + b"".join(png_chunk(*chunk) for chunk in chunks))


def deep(*shape):
    return RNG.integers(0, 65536, shape).astype(np.uint16)


def read(path, in_chans, value_range=None):
    pixels = read_image(str(path), in_chans, value_range)
    assert pixels.dtype == torch.float32 and pixels.shape[0] == in_chans
    return pixels.permute(1, 2, 0).numpy()


def agree(found, expected):
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-6)


def test_16_bit_greys_keep_each_level(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for name in ("a.png", "a.tif", "a.npy"):
        if name.endswith("npy"):
            np.save(tmp_path / name, values)
        else:
            Image.fromarray(values).save(tmp_path / name)
        agree(read(tmp_path / name, 1)[..., 0], values / 65535)
        assert len(np.unique(read(tmp_path / name, 1))) == 65536
    agree(read(tmp_path / "a.png", 3), (values / 65535)[..., None])
    agree(read(tmp_path / "a.png", 4)[..., 3], 1)
    (tmp_path / "a.pgm").write_bytes(b"P5 256 256 65535\n" + values.astype(">u2").tobytes())
    agree(read(tmp_path / "a.pgm", 1)[..., 0], values / 65535)


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_byte_orders_of_a_tiff(tmp_path, byte_order):
    values = deep(5, 7)
    Image.fromarray(values.astype(byte_order)).save(tmp_path / "a.tif")
    agree(read(tmp_path / "a.tif", 1)[..., 0], values / 65535)


def test_16_bit_grey_with_a_transparent_value(tmp_path):
    values = deep(5, 7, 1)
    clear = int(values[2, 3, 0])
    write_png(tmp_path / "a.png", values, 0, struct.pack(">H", clear))
    seen = np.where(values == clear, 1, values / 65535)
    agree(read(tmp_path / "a.png", 1), seen)
    agree(read(tmp_path / "a.png", 3), seen)
    agree(read(tmp_path / "a.png", 4)[..., 3], (values != clear)[..., 0])


@pytest.mark.parametrize(("depth", "stretch"), [(1, 255), (2, 85), (4, 17), (8, 1)])
def test_transparent_greys_of_fewer_bits(tmp_path, depth, stretch):
    """Pillow stretches the pixels, and not the transparent one among them, of 2 and 4 bits."""
    levels = np.arange(2**depth, dtype=np.uint8)
    bits = np.unpackbits(levels[:, None], axis=1)[:, 8 - depth :].ravel()
    row = np.packbits(bits)
    header = struct.pack(">IIBBBBB", len(levels), 1, depth, 0, 0, 0, 0)
    clear = len(levels) - 2
    chunks = ((b"IHDR", header), (b"tRNS", struct.pack(">H", clear)),
              (b"IDAT", zlib.compress(b"\0" + row.tobytes())), (b"IEND", b""))  # fmt: skip
    (tmp_path / "a.png").write_bytes(PNG_START + b"".join(png_chunk(*c) for c in chunks))
    expected = np.where(levels == clear, 255, levels.astype(int) * stretch)
    assert read_image(str(tmp_path / "a.png"), 1)[0, 0].tolist() == expected.tolist()


@pytest.mark.parametrize("colour_type", [2, 4, 6], ids=["rgb", "grey and alpha", "rgba"])
@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_16_bit_colours_and_opacity(tmp_path, colour_type, in_chans):
    values = deep(9, 11, {2: 3, 4: 2, 6: 4}[colour_type])
    write_png(tmp_path / "a.png", values, colour_type)
    shares = values / 65535
    colours = shares if colour_type == 2 else shares[..., :-1]
    alpha = shares[..., -1:] if colour_type != 2 else np.ones((9, 11, 1))
    on_white = colours * alpha + 1 - alpha
    if in_chans == 4:
        agree(
            read(tmp_path / "a.png", 4),
            np.dstack([*([np.broadcast_to(colours, (9, 11, 3))]), alpha]),
        )
    elif in_chans == 3:
        agree(read(tmp_path / "a.png", 3), on_white)
    else:
        grey = on_white if on_white.shape[2] == 1 else (on_white @ LUMA)[..., None]
        agree(read(tmp_path / "a.png", 1), grey)


def test_a_transparent_colour_of_16_bits(tmp_path):
    values = deep(4, 4, 3)
    write_png(tmp_path / "a.png", values, 2, values[1, 2].astype(">u2").tobytes())
    found = read(tmp_path / "a.png", 3)
    assert (found[1, 2] == 1).all()
    expected = values / 65535
    expected[1, 2] = 1
    agree(found, expected)


@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate"])
def test_16_bit_colours_of_a_tiff(tmp_path, compression):
    values = deep(6, 4, 3)
    entries = [(256, 3, 4), (257, 3, 6), (258, 3, None), (259, 3, 1), (262, 3, 2), (273, 4, 200),
               (277, 3, 3), (278, 3, 6), (279, 4, values.nbytes)]  # fmt: skip
    pixels = values.astype("<u2").tobytes()
    if compression:
        pixels = zlib.compress(pixels)
        entries[3], entries[8] = (259, 3, 8), (279, 4, len(pixels))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, value in entries:
        count, value = (3, 180) if value is None else (1, value)
        head += struct.pack("<HHII", tag, kind, count, value)
    head = (head + bytes(4)).ljust(180, b"\0") + struct.pack("<HHH", 16, 16, 16)
    (tmp_path / "a.tif").write_bytes(head.ljust(200, b"\0") + pixels)
    agree(read(tmp_path / "a.tif", 3), values / 65535)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_one_plane_is_no_separate_one(tmp_path, dtype):
    values = deep(8, 6).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={284: 2}, compression="tiff_lzw")
    expected = values / 65535 if dtype == "uint16" else values
    agree(read(tmp_path / "a.tif", 1)[..., 0], expected)


def test_planes_of_16_bits_are_refused(tmp_path):
    """Pillow reads them as bytes."""
    values = deep(6, 4, 3)
    planes = np.moveaxis(values, 2, 0).astype("<u2").tobytes()
    entries = [(256, 3, 1, 4), (257, 3, 1, 6), (258, 3, 3, 180), (259, 3, 1, 1), (262, 3, 1, 2),
               (273, 4, 3, 200), (277, 3, 1, 3), (278, 3, 1, 6), (279, 4, 3, 220),
               (284, 3, 1, 2)]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    head += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    data = head.ljust(180, b"\0") + struct.pack("<HHH", 16, 16, 16)
    data = data.ljust(200, b"\0") + struct.pack("<3I", 240, 288, 336)
    data = data.ljust(220, b"\0") + struct.pack("<3I", 48, 48, 48)
    (tmp_path / "a.tif").write_bytes(data.ljust(240, b"\0") + planes)
    with pytest.raises(ValueError, match=r"a\.tif: more than 8 bits in separate planes"):
        read(tmp_path / "a.tif", 3)


@pytest.mark.parametrize("largest", [1000, 4095, 65535])
def test_a_pgm_has_its_own_white_and_its_own_numbers(tmp_path, largest):
    values = (deep(5, 7).astype(int) % (largest + 1)).astype(np.uint16)
    head = f"P5\n7 5\n{largest}\n".encode()
    (tmp_path / "a.pgm").write_bytes(head + values.astype(">u2").tobytes())
    agree(read(tmp_path / "a.pgm", 1)[..., 0], values / largest)
    agree(read(tmp_path / "a.pgm", 1, (0, 4095))[..., 0], values / 4095)


def test_16_bit_colours_of_a_tiff_in_strips(tmp_path):
    """One row after the other, which lie in another order in the file."""
    values = deep(6, 4, 3)
    rows = [row.astype("<u2").tobytes() for row in values]
    entries = [(256, 3, 1, 4), (257, 3, 1, 6), (258, 3, 3, 180), (259, 3, 1, 1), (262, 3, 1, 2),
               (273, 4, 6, 200), (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 6, 230)]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    head += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    order = [3, 0, 5, 1, 4, 2]
    offsets = [260 + 24 * order.index(row) for row in range(6)]
    data = head.ljust(180, b"\0") + struct.pack("<HHH", 16, 16, 16)
    data = data.ljust(200, b"\0") + struct.pack("<6I", *offsets)
    data = data.ljust(230, b"\0") + struct.pack("<6I", *[24] * 6)
    data = data.ljust(260, b"\0") + b"".join(rows[row] for row in order)
    (tmp_path / "a.tif").write_bytes(data)
    agree(read(tmp_path / "a.tif", 3), values / 65535)


def test_a_tiff_whose_zero_is_white(tmp_path):
    values = deep(5, 7)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    data = buffer.getvalue()
    entry = struct.pack("<HHI", 262, 3, 1)
    assert data.count(entry + b"\1\0") == 1
    (tmp_path / "a.tif").write_bytes(data.replace(entry + b"\1\0", entry + b"\0\0"))
    agree(read(tmp_path / "a.tif", 1)[..., 0], 1 - values / 65535)


# ------------------------------------------------------------------------------ floats, signed ones


@pytest.mark.parametrize("name", ["a.tif", "a.npy"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int16"])
def test_numbers_without_a_scale_stay_as_they_are(tmp_path, name, dtype):
    """Whatever the largest is: one hot pixel changes none but itself."""
    values = RNG.normal(0, 900, (6, 5)).astype(dtype)
    if dtype.startswith("float"):
        values = values / 900
    for hot in (0, 1, 300, 30000):
        values[0, 0] = hot
        if name.endswith("npy"):
            np.save(tmp_path / name, values)
        else:
            Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_array_equal(read(tmp_path / name, 1)[..., 0], values.astype(np.float32))


def test_a_value_range_is_the_same_for_all_files(tmp_path):
    values = np.linspace(-1000, 3000, 30).astype(np.float32).reshape(5, 6)
    np.save(tmp_path / "a.npy", values.astype(np.int16))
    Image.fromarray(values).save(tmp_path / "a.tif")
    agree(read(tmp_path / "a.tif", 1, (-1000, 3000))[..., 0], (values + 1000) / 4000)
    found = read(tmp_path / "a.npy", 1, (-1000, 3000))[..., 0]
    agree(found, (values.astype(np.int16) + 1000) / 4000)
    twelve = RNG.integers(0, 4096, (5, 6)).astype(np.uint16)
    Image.fromarray(twelve).save(tmp_path / "b.png")
    agree(read(tmp_path / "b.png", 1, (0, 4095))[..., 0], twelve / 4095)
    Image.fromarray(np.full((5, 6), 51, np.uint8)).save(tmp_path / "c.png")
    assert read_image(str(tmp_path / "c.png"), 1, (0, 4095)).unique().tolist() == [51]


@pytest.mark.parametrize("name", ["a.tif", "a.npy"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_makes_a_file_unreadable(tmp_path, name, value):
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = value
    if name.endswith("npy"):
        np.save(tmp_path / name, values)
    else:
        Image.fromarray(values).save(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: holds values that are not finite"):
        read_image(str(tmp_path / name), 1)


def test_a_float64_too_large_for_float32_is_not_finite(tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 2), 1e300))
    with pytest.raises(ValueError, match="not finite"):
        read_image(str(tmp_path / "a.npy"), 1)


def test_bytes_of_floats_and_what_is_of_another_scale():
    image = torch.rand(3, 20, 20)
    assert (to_bytes(image).float() / 255 - image).abs().max() <= 0.5 / 255 + 1e-6
    image[0, 0, 0] = 70.0  # one pixel decides nothing
    assert not is_off_scale(image) and to_bytes(image)[0, 0, 0] == 255
    with pytest.raises(ValueError, match="another scale"):
        to_bytes(image * 255)
    whole = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    assert to_bytes(whole) is whole
