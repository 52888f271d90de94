"""A picture of what a masked autoencoder does: originals, masked views, reconstructions."""

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN, HEADER, BACKGROUND, INK = 6, 20, (255, 255, 255), (20, 20, 20)
MASKED = 0.55  # the grey of a masked patch


def reconstruction_sheet(
    originals: Tensor, views: Tensor, reconstructions: Tensor, caption: str, min_cell: int = 112
) -> Image.Image:
    """One row an image: the original, then for each mask what it sees and what is predicted.

    Args:
        originals: [B, C, H, W] in 0..1. views, reconstructions: [B, N, C, H, W].
        caption: what the reconstructions show, written above them.
    """
    num_images, num_masks, _, height, width = views.shape
    scale = max(1, -(-min_cell // min(height, width)))
    cell_w, cell_h = width * scale, height * scale
    columns = 1 + 2 * num_masks
    sheet = Image.new(
        "RGB",
        (
            columns * (cell_w + MARGIN) + MARGIN,
            2 * HEADER + num_images * (cell_h + MARGIN) + MARGIN,
        ),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    draw.text((MARGIN, 4), caption, INK, font)
    for column in range(columns):
        mask = (column + 1) // 2
        label = "original" if column == 0 else f"mask {mask}" if column % 2 else f"predicted {mask}"
        draw.text((MARGIN + column * (cell_w + MARGIN), HEADER + 2), label, INK, font)
    for row in range(num_images):
        cells = [originals[row]]
        for mask in range(num_masks):
            cells += [views[row, mask], reconstructions[row, mask]]
        for column, cell in enumerate(cells):
            image = to_image(cell).resize((cell_w, cell_h), Image.NEAREST)
            left = MARGIN + column * (cell_w + MARGIN)
            sheet.paste(image, (left, 2 * HEADER + row * (cell_h + MARGIN)))
    return sheet


def to_image(x: Tensor) -> Image.Image:
    """[C, H, W] in 0..1 -> RGB; one channel is grey, of more than three the first three show."""
    x = x.detach().float().cpu().clamp(0, 1)
    x = x[:3] if x.shape[0] >= 3 else x[:1].expand(3, -1, -1)
    return Image.fromarray((x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def to_tensor(image: Image.Image) -> Tensor:
    """RGB -> [3, H, W] in 0..1."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1) / 255
