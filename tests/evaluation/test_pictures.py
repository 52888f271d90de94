"""The sheet of reconstructions."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from util.data.images import to_tensor
from util.evaluation.charts import shortened
from util.evaluation.pictures import (
    BACKGROUND,
    HEADER,
    MARGIN,
    MASKED,
    captioned_sheet,
    heat_map,
    picture_sheet,
    principal_colours,
    reconstruction_sheet,
    to_image,
)


def test_cells_lie_in_a_row_and_keep_their_pixels():
    originals = torch.rand(2, 3, 8, 12)
    predicted, is_masked = torch.rand(2, 4, 3, 8, 12), torch.rand(2, 4, 8, 12) < 0.7
    sheet = np.asarray(reconstruction_sheet(originals, is_masked, predicted, "caption"))
    colour = torch.tensor(MASKED).view(3, 1, 1)
    view = torch.where(is_masked[1, 0], colour, originals[1])
    cell_h, cell_w = 8 * 14, 12 * 14  # the smallest whole factor that makes 112 pixels of 8
    assert sheet.shape[1] == 9 * (cell_w + MARGIN) + MARGIN
    assert tuple(sheet[-1, 0]) == BACKGROUND
    top = sheet.shape[0] - MARGIN - cell_h
    for column, cell in ((0, originals[1]), (1, view), (2, predicted[1, 0])):
        left = MARGIN + column * (cell_w + MARGIN)
        pixels = sheet[top + 7 : top + cell_h : 14, left + 7 : left + cell_w : 14]
        assert np.abs(pixels / 255 - cell.permute(1, 2, 0).numpy()).max() < 0.003


def test_any_number_of_channels_becomes_rgb():
    for chans in (1, 2, 3, 5):
        image = to_image(torch.rand(chans, 4, 6) * 3 - 1)
        assert image.mode == "RGB" and image.size == (6, 4)
    x = torch.rand(3, 4, 6)
    torch.testing.assert_close(to_tensor(to_image(x)) / 255, x, atol=0.003, rtol=0)


def test_the_caption_fits_above_few_columns():
    pictures = torch.zeros(1, 1, 1, 8, 8)
    caption = "masked patches shown with true patch statistics, visible ones as they are " * 2
    args = (pictures[0], torch.zeros(1, 1, 8, 8, dtype=torch.bool), pictures)
    sheet = reconstruction_sheet(*args, caption)
    wider = reconstruction_sheet(*args, caption + "…")
    ink = np.asarray(sheet.convert("L"))[:18] < 128
    assert not ink[:, -MARGIN:].any() and ink[:, -4 * MARGIN : -MARGIN].any()
    assert wider.width > sheet.width > reconstruction_sheet(*args, "").width


def test_components_tell_groups_apart_whatever_the_features_scale_and_width():
    torch.manual_seed(0)
    for width in (2, 3, 16):
        groups = torch.randint(0, 2, (3, 4, 5))
        features = torch.randn(2, width)[groups] * 1000 + torch.randn(3, 4, 5, width)
        colours = principal_colours(features)
        assert colours.shape == (3, 3, 4, 5) and colours.min() >= 0 and colours.max() <= 1
        red = colours[:, 0]
        assert abs(red[groups == 0].mean() - red[groups == 1].mean()) > 0.8
        torch.testing.assert_close(principal_colours(features * 3), colours, atol=1e-4, rtol=0)


def test_heat_maps_are_brighter_where_values_are_larger():
    values = torch.arange(6.0).view(2, 3)
    pixels = np.asarray(heat_map(values, (6, 4)).convert("L"), float)
    cells = pixels.reshape(2, 2, 3, 2)
    assert (cells == cells[:, :1, :, :1]).all()
    assert (np.diff(cells[:, 0, :, 0].ravel()) > 0).all()
    heat_map(torch.zeros(2, 2), (4, 4))  # all alike


def test_large_pictures_fit_and_names_do_not_run_into_each_other():
    columns = {"a long name of a column": [Image.new("RGB", (1024, 512))] * 2,
               "b": [Image.new("RGB", (8, 4))] * 2}  # fmt: skip
    sheet = picture_sheet(columns, max_cell=100)
    font = ImageFont.load_default(size=12)
    width = int(font.getlength("a long name of a column"))
    assert width < sheet.width < 400 and 2 * 50 < sheet.height < 200


@pytest.mark.parametrize("sides", [(8, 8), (3, 90), (160, 160), (700, 1024), (1, 1)])
def test_pictures_of_any_size_fill_their_cell_whole(sides):
    """Small ones keep their pixels as squares; the colour of a large one is its own."""
    rng = np.random.default_rng(0)
    width, height = sides
    pixels = rng.integers(0, 200, (height, width, 3), dtype=np.uint8)
    if max(sides) > 160:
        pixels[:] = (200, 30, 60)
    sheet = captioned_sheet("title", [[(Image.fromarray(pixels), ["a", "b"])]])
    found = np.asarray(sheet)
    factor = 160 // max(sides) if max(sides) <= 160 else 160 / max(sides)
    wide, high = round(width * factor), round(height * factor)
    left = 2 * MARGIN + (160 - wide) // 2
    top = HEADER + MARGIN + (160 - high) // 2
    shown = found[top : top + high, left : left + wide]
    if factor >= 1:
        middle = slice(factor // 2, None, factor)
        assert (shown[middle, middle] == pixels).all()
    else:
        assert (shown == (200, 30, 60)).all() and max(wide, high) == 160
    assert (found[:, :3] == 255).all()


def test_captions_are_cut_in_their_middle_and_stay_in_their_column():
    pictures = [Image.new("RGB", (8, 8))] * 2
    name = "n01440764/" + "a very long name of an image " * 4 + "end.JPEG"
    sheet = np.asarray(captioned_sheet("t", [[(p, ["0.9", name]) for p in pictures]]))
    below = sheet[HEADER + MARGIN + 160 + 2 :]
    between = below[:, 2 * MARGIN + 160 + 2 : 2 * MARGIN + 160 + 2 * MARGIN - 2]
    assert (between == 255).all() and (below < 100).any()
    font = ImageFont.load_default(size=12)
    short = shortened(name, 160, font)
    assert short.startswith("n0144") and short.endswith("end.JPEG") and "..." in short
    assert font.getlength(short) <= 160 and shortened("abc", 160, font) == "abc"
