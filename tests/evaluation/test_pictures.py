"""The sheet of reconstructions."""

import numpy as np
import torch

from util.data.images import to_tensor
from util.evaluation.pictures import BACKGROUND, MARGIN, MASKED, reconstruction_sheet, to_image


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
