"""Image files of every kind read as a person sees them."""

import numpy as np
import pytest
import torch
from PIL import Image

from util.data import images
from util.data.images import jpeg_decoder, read_image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 4), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 4), dtype=np.uint8)


def on_white(values, alpha):
    share = alpha.astype(float)[..., None] / 255
    return values.astype(float) * share + 255 * (1 - share)


def read(path, in_chans=3):
    pixels = read_image(str(path), in_chans)
    assert pixels.shape[0] == in_chans and pixels.dtype == torch.uint8
    return pixels.permute(1, 2, 0).numpy().astype(float).squeeze(2 if in_chans == 1 else ())


def test_colour_and_grey(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    assert np.array_equal(read(tmp_path / "colour.png"), COLOUR)
    assert np.array_equal(read(tmp_path / "grey.png"), np.repeat(GREY[..., None], 3, 2))
    assert np.array_equal(read(tmp_path / "grey.png", 1), GREY)
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read(tmp_path / "colour.png", 1) - luma).max() <= 1


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.dstack([COLOUR, ALPHA])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([GREY, ALPHA]), "LA").save(tmp_path / "la.png")
    expected = on_white(COLOUR, ALPHA)
    assert np.abs(read(tmp_path / "rgba.png") - expected).max() <= 1
    grey = on_white(GREY[..., None], ALPHA)
    assert np.abs(read(tmp_path / "la.png") - grey).max() <= 1
    assert np.abs(read(tmp_path / "la.png", 1) - grey[..., 0]).max() <= 1
    assert np.array_equal(read(tmp_path / "rgba.png", 4), rgba)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_palette_with_a_transparent_colour(tmp_path, suffix):
    image = Image.fromarray((GREY % 3).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50, 90, 90, 90])
    image.save(tmp_path / f"p.{suffix}", transparency=1)
    expected = np.array([[10, 20, 30], [255, 255, 255], [90, 90, 90]])[GREY % 3]
    assert np.array_equal(read(tmp_path / f"p.{suffix}"), expected)


def test_a_transparent_colour_without_palette(tmp_path):
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "t.png", transparency=(4, 5, 6))
    assert read(tmp_path / "t.png").tolist() == [[[1, 2, 3], [255, 255, 255]]]


def test_black_and_white(tmp_path):
    Image.fromarray(GREY > 128).save(tmp_path / "bw.png")
    assert np.array_equal(read(tmp_path / "bw.png", 1), 255 * (GREY > 128))


def test_lab_becomes_grey_by_way_of_colours(tmp_path):
    Image.new("LAB", (2, 2), (200, 128, 128)).save(tmp_path / "lab.tif")
    colour, grey = (read(tmp_path / "lab.tif", channels) for channels in (3, 1))
    assert abs(int(colour.min()) - int(grey.max())) <= 1 and grey.max() > 150


def test_cmyk_jpeg(tmp_path):
    ink = np.zeros((16, 16, 4), dtype=np.uint8)
    ink[..., 0], ink[..., 3] = 200, 50
    Image.fromarray(ink, "CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    seen = read(tmp_path / "cmyk.jpg")
    expected = np.array([255 - 200, 255, 255]) * (255 - 50) / 255
    assert np.abs(seen - expected).max() < 12
    assert read(tmp_path / "cmyk.jpg", 1).shape == (16, 16)


ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a[:, ::-1], -1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "turned.png", exif=exif)
    expected = ORIENTATIONS[orientation](COLOUR)
    assert np.array_equal(read(tmp_path / "turned.png"), expected)
    big = np.kron(COLOUR, np.ones((16, 16, 1), dtype=np.uint8))
    Image.fromarray(big).save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    difference = read(tmp_path / "turned.jpg") - ORIENTATIONS[orientation](big)
    assert np.abs(difference).mean() < 8


@pytest.mark.skipif(jpeg_decoder() is None, reason="torchcodec is not installed")
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("pixels", [COLOUR, GREY], ids=["colour", "grey"])
def test_torchcodec_gives_pils_pixels(tmp_path, monkeypatch, pixels, options):
    big = np.kron(pixels, np.ones((37, 21, 1)[: pixels.ndim], dtype=np.uint8))
    Image.fromarray(big).save(tmp_path / "x.jpg", quality=90, **options)
    decoded = [read(tmp_path / "x.jpg", in_chans) for in_chans in (1, 3)]
    monkeypatch.setattr(images, "jpeg_decoder", lambda: None)
    for pixels, in_chans in zip(decoded, (1, 3), strict=True):
        assert np.array_equal(pixels, read(tmp_path / "x.jpg", in_chans))


@pytest.mark.skipif(jpeg_decoder() is None, reason="torchcodec is not installed")
def test_a_damaged_jpeg_is_for_both_decoders_the_same(tmp_path, monkeypatch):
    """A cut one above all, whose rest torchcodec would show as grey."""
    path = tmp_path / "damaged.jpg"
    Image.fromarray(np.kron(COLOUR, np.ones((32, 32, 1), np.uint8))).save(path, quality=90)
    whole = path.read_bytes()
    outcomes, rng = {"read": 0, "refused": 0}, np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(whole)
        if rng.random() < 0.5:
            data[rng.integers(len(data))] = rng.integers(256)
        else:
            del data[rng.integers(len(data)) :]
        path.write_bytes(data)
        pixels = [_pixels_or_none(path)]
        with monkeypatch.context() as patch:
            patch.setattr(images, "jpeg_decoder", lambda: None)
            pixels.append(_pixels_or_none(path))
        assert (pixels[0] is None) == (pixels[1] is None)
        assert pixels[0] is None or np.array_equal(*pixels)
        outcomes["refused" if pixels[0] is None else "read"] += 1
    assert min(outcomes.values()) > 10


def _pixels_or_none(path):
    try:
        return read(path)
    except (OSError, ValueError, SyntaxError):
        return None


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_the_first_of_several_frames(tmp_path, kind, in_chans):
    frames = [Image.fromarray(np.full((24, 16, 3), level, np.uint8)) for level in (40, 90, 200)]
    options = {} if kind in ("TIFF", "MPO") else {"duration": 100}
    frames[0].save(tmp_path / "a", format=kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / "a") as image:
        assert getattr(image, "n_frames", 1) == 3
    colours = read(tmp_path / "a", in_chans).reshape(24, 16, in_chans)[..., :3]
    assert np.abs(colours - 40).max() <= 2


def test_the_first_page_of_a_deep_tiff(tmp_path):
    pages = [Image.fromarray(np.full((4, 6), level, np.uint16)) for level in (500, 60000)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert read_image(str(tmp_path / "a.tif"), 1).unique().item() == pytest.approx(500 / 65535)


def test_a_misnamed_file(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "x.jpg", format="PNG")
    assert np.array_equal(read(tmp_path / "x.jpg"), COLOUR)


def test_unreadable_files_are_io_or_value_errors(tmp_path):
    Image.fromarray(np.kron(COLOUR, np.ones((32, 32, 1), np.uint8))).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    np.save(tmp_path / "whole.npy", COLOUR)
    array = (tmp_path / "whole.npy").read_bytes()
    cases = {
        "truncated.jpg": whole[: len(whole) // 2], "text.jpg": b"<html>not found</html>",
        "empty.png": b"", "empty.npy": b"", "short.npy": array[:100],
        "header.npy": array.replace(b"}", b" "), "pickle.npy": b"\x80\x04N.",
    }  # fmt: skip
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises((OSError, ValueError)):
            read_image(str(tmp_path / name))


def test_arrays_of_any_number_of_channels(tmp_path):
    cube = RNG.integers(0, 256, (6, 4, 5), dtype=np.uint8)
    np.save(tmp_path / "five.NPY", cube)
    (tmp_path / "five.NPY.npy").rename(tmp_path / "five.NPY")
    image = read_image(str(tmp_path / "five.NPY"), 5)
    assert image.dtype == torch.uint8 and image.shape == (5, 6, 4)
    assert np.array_equal(image.numpy(), cube.transpose(2, 0, 1))
    with pytest.raises(ValueError, match="3\\]"):
        read_image(str(tmp_path / "five.NPY"), 3)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((2, 3), 65535, np.uint16), 1.0),
        (np.full((2, 3), 65535, ">u2"), 1.0),
        (np.full((2, 3, 1), 0.25, np.float64), 0.25),
        (np.full((2, 3), 0.5, np.float16), 0.5),
    ],
)
def test_array_types(tmp_path, array, expected):
    np.save(tmp_path / "a.npy", array)
    image = read_image(str(tmp_path / "a.npy"), 1)
    assert image.dtype == torch.float32 and image.shape == (1, 2, 3)
    assert (image == expected).all()


def test_arrays_that_are_refused(tmp_path):
    np.save(tmp_path / "nan.npy", np.full((2, 2), np.nan))
    np.save(tmp_path / "line.npy", np.zeros(4))
    np.save(tmp_path / "object.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    np.save(tmp_path / "empty.npy", np.zeros((0, 0, 1), np.uint8))
    np.save(tmp_path / "complex.npy", np.zeros((2, 2), complex))
    np.save(tmp_path / "fields.npy", np.zeros((2, 2), [("r", np.uint8), ("g", np.uint8)]))
    for name in ("nan", "line", "object", "empty", "complex", "fields"):
        with pytest.raises(ValueError):
            read_image(str(tmp_path / f"{name}.npy"), 1)


def test_pictures_of_five_channels_do_not_exist(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="npy"):
        read_image(str(tmp_path / "x.png"), 5)
