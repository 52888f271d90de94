"""A picture of what a masked autoencoder does: originals, masked views, reconstructions."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from util.evaluation.charts import shortened

MARGIN, HEADER, BACKGROUND, INK = 6, 20, (255, 255, 255), (20, 20, 20)
FRAME = (225, 225, 225)  # around a picture
MASKED = (0.36, 0.47, 0.66)  # a colour that no grey image has


def reconstruction_sheet(
    originals: Tensor, is_masked: Tensor, predicted: Tensor, caption: str, min_cell: int = 112
) -> Image.Image:
    """One row an image: the original, then for each mask what it sees and what is predicted.

    Args:
        originals: [B, C, H, W] in 0..1. predicted: [B, N, C, H, W] in 0..1.
        is_masked: [B, N, H, W], True where a mask hides a pixel.
        caption: what the predictions show, written above them.
    """
    num_images, num_masks, _, height, width = predicted.shape
    scale = max(1, -(-min_cell // min(height, width)))
    cell_w, cell_h = width * scale, height * scale
    columns = 1 + 2 * num_masks
    font = ImageFont.load_default(size=12)
    sheet_w = max(columns * (cell_w + MARGIN), int(font.getlength(caption)) + MARGIN) + MARGIN
    sheet_h = 2 * HEADER + num_images * (cell_h + MARGIN) + MARGIN
    sheet = Image.new("RGB", (sheet_w, sheet_h), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 4), caption, INK, font)
    for column in range(columns):
        mask = (column + 1) // 2
        label = "original" if column == 0 else f"mask {mask}" if column % 2 else f"predicted {mask}"
        draw.text((MARGIN + column * (cell_w + MARGIN), HEADER + 2), label, INK, font)
    for row in range(num_images):
        original = to_image(originals[row])
        cells = [original]
        for mask in range(num_masks):
            cells += [_hide(original, is_masked[row, mask]), to_image(predicted[row, mask])]
        for column, cell in enumerate(cells):
            image = cell.resize((cell_w, cell_h), Image.NEAREST)
            left = MARGIN + column * (cell_w + MARGIN)
            sheet.paste(image, (left, 2 * HEADER + row * (cell_h + MARGIN)))
    return sheet


def picture_sheet(columns: Mapping[str, Sequence[Image.Image]], min_cell: int = 160) -> Image.Image:
    """Named columns of pictures of one size, a row each; small ones are shown larger."""
    rows = len(next(iter(columns.values())))
    sides = next(iter(columns.values()))[0].size
    scale = max(1, -(-min_cell // min(sides)))
    cell_w, cell_h = (side * scale for side in sides)
    step, top = cell_w + MARGIN, HEADER + MARGIN
    size = (len(columns) * step + MARGIN, top + rows * (cell_h + MARGIN))
    sheet = Image.new("RGB", size, BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for column, (name, pictures) in enumerate(columns.items()):
        draw.text((MARGIN + column * step, MARGIN), name, INK, font)
        for row, picture in enumerate(pictures):
            place = (MARGIN + column * step, top + row * (cell_h + MARGIN))
            sheet.paste(picture.resize((cell_w, cell_h), Image.Resampling.NEAREST), place)
    return sheet


def captioned_sheet(
    title: str, rows: Sequence[Sequence[tuple[Image.Image, Sequence[str]]]], cell: int = 160
) -> Image.Image:
    """Rows of pictures of any sizes, each with lines of text below it.

    A small picture is shown larger by a whole factor, as it is, and a large one smaller.
    """
    font = ImageFont.load_default(size=12)
    lines = max(len(texts) for row in rows for _, texts in row)
    step_x, step_y = cell + 2 * MARGIN, cell + 15 * lines + 3 * MARGIN
    width = max(max(map(len, rows)) * step_x, int(font.getlength(title))) + 2 * MARGIN
    sheet = Image.new("RGB", (width, HEADER + MARGIN + len(rows) * step_y), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((2 * MARGIN, MARGIN), title, INK, font)
    for number, row in enumerate(rows):
        for column, (picture, texts) in enumerate(row):
            left, top = 2 * MARGIN + column * step_x, HEADER + MARGIN + number * step_y
            draw.rectangle((left - 1, top - 1, left + cell, top + cell), outline=FRAME)
            shown = _fitted(picture, cell)
            sheet.paste(shown, (left + (cell - shown.width) // 2, top + (cell - shown.height) // 2))
            for line, text in enumerate(texts):
                place = (left, top + cell + MARGIN // 2 + 15 * line)
                draw.text(place, shortened(text, cell, font), INK, font)
    return sheet


def _fitted(picture: Image.Image, cell: int) -> Image.Image:
    """A picture as large as a square holds it: pixels as squares where it is small."""
    longer = max(picture.size)
    factor = cell // longer if longer <= cell else cell / longer
    size = tuple(max(1, round(side * factor)) for side in picture.size)
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return picture.resize(size, how)


def _hide(image: Image.Image, is_masked: Tensor) -> Image.Image:
    """Paint over what a mask hides; is_masked [H, W]."""
    stencil = Image.fromarray(is_masked.cpu().numpy().astype("uint8") * 255)
    colour = tuple(round(255 * c) for c in MASKED)
    return Image.composite(Image.new("RGB", image.size, colour), image, stencil)


def to_image(x: Tensor) -> Image.Image:
    """[C, H, W] in 0..1 -> RGB; one channel is grey, of more than three the first three show."""
    x = x.detach().float().cpu().clamp(0, 1)
    x = x[:3] if x.shape[0] >= 3 else x[:1].expand(3, -1, -1)
    return Image.fromarray((x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
