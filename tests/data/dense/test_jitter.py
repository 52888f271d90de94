"""Large-scale jitter: image, boxes and masks move together, to the pixel."""

import numpy as np
import pytest
import torch

from util.data.dense.jitter import FitCanvas, LargeScaleJitter, View, collate, fitted
from util.data.dense.rle import compress_counts, encode_rle, segmentation
from util.randomness import seed_libraries


def shapes(height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """Masks of rectangles, of rings (with holes) and of scattered parts, some cut by the border."""
    rng, masks = np.random.default_rng(seed), []
    for kind in range(12):
        mask = np.zeros((height, width), dtype=bool)
        for _ in range(1 + kind % 3):
            top, left = rng.integers(0, height - 2), rng.integers(0, width - 2)
            bottom, right = top + rng.integers(2, height), left + rng.integers(2, width)
            mask[top:bottom, left:right] = True
            if kind % 2:
                mask[top + 2 : bottom - 2, left + 2 : right - 2] = False
        masks.append(mask)
    return masks


def in_every_form(mask: np.ndarray) -> list:
    """Polygons where they can tell it, RLE, compressed RLE."""
    rle = encode_rle(mask)
    return [
        segmentation(mask)["segmentation"],
        rle,
        rle | {"counts": compress_counts(rle["counts"])},
    ]


def looked_up(mask: np.ndarray, view: View) -> np.ndarray:
    """By its definition, pixel by pixel."""
    found = np.zeros(view.size, dtype=bool)
    for y in range(view.size[0]):
        for x in range(view.size[1]):
            column = view.size[1] - 1 - x if view.flipped else x
            old = (
                (y + view.top + 0.5) * view.original[0] / view.resized[0],
                (column + view.left + 0.5) * view.original[1] / view.resized[1],
            )
            found[y, x] = mask[int(old[0]), int(old[1])]
    return found


@pytest.mark.parametrize("draw", range(12))
def test_masks_are_looked_up_at_pixels_centres_in_every_form(draw):
    seed_libraries(draw)
    jitter = LargeScaleJitter((41, 53), (0.3, 2.0), flip=True)
    # Ratios that are no simple fractions: no centre falls on an edge.
    view = jitter.draw((23, 31))
    for mask in shapes(23, 31, draw):
        expected = looked_up(mask, view)
        for form in in_every_form(mask):
            assert np.array_equal(view.mask(form), expected)


def test_boxes_are_those_of_the_masks_and_what_is_gone_is_left_out():
    jitter = LargeScaleJitter((48, 40), (0.1, 2.0), flip=True)
    objects = [(i % 5 + 1, encode_rle(mask), i % 3 > 0) for i, mask in enumerate(shapes(37, 29))]
    sizes, kept = set(), set()
    for draw in range(30):
        seed_libraries(draw)
        image, target = jitter(torch.zeros(3, 37, 29, dtype=torch.uint8), (0, objects))
        height, width = image.shape[1:]
        assert height <= 48 and width <= 40 and (height == 48 or width <= 40)
        assert target["masks"].shape[1:] == (height, width)
        assert target["masks"].dtype == torch.uint8 and target["labels"].dtype == torch.int64
        assert target["has_mask"].shape == target["labels"].shape
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = mask.nonzero().unbind(1)
            ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(end) for end in ends]
        sizes.add((height, width))
        kept.add(len(target["labels"]))
    assert len(sizes) > 15 and len(kept) > 1


def test_the_image_moves_as_the_masks_do():
    """A picture of where each pixel is: what a jittered pixel shows is where its mask looked."""
    height, width = 60, 80
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns]).float()
    for draw in range(20):
        seed_libraries(draw)
        view = LargeScaleJitter((64, 64), (0.5, 2.0), flip=True).draw((height, width))
        seen = view.image(image)
        for channel, (old, new, start) in enumerate(
            zip(view.original, view.resized, (view.top, view.left), strict=True)
        ):
            place = torch.arange(view.size[channel]) + start
            expected = ((place + 0.5) * old / new - 0.5).clamp(0, old - 1)
            if channel == 1 and view.flipped:
                expected = expected.flip(0)
            along = seen[channel].mean(1 - channel)
            # Near the border, a filter as wide as the step sees one side more than the other.
            assert (along - expected).abs().max() < 0.5 * max(old / new, 1) ** 2
            inner = slice(4, -4)
            torch.testing.assert_close(along[inner], expected[inner], rtol=0, atol=0.1)


def test_boxes_are_to_the_corner_of_what_is_not_cut():
    """In fractions of pixels, as published: those of the polygon that moves with the image."""
    seen = cut = 0
    for draw in range(60):
        seed_libraries(draw)
        view = LargeScaleJitter((48, 40), (0.5, 2.0), flip=True).draw((37, 29))
        x, y = torch.rand(2).numpy() * (19, 27) + 5
        triangle = [x, y - 4.3, x + 4.7, y + 3.1, x - 3.9, y + 2.2]
        target = view.target([(1, [triangle], True)])
        if not len(target["boxes"]):
            continue
        points = np.reshape(triangle, (-1, 2)) * view.resized[::-1] / view.original[::-1]
        points -= (view.left, view.top)
        if view.flipped:
            points[:, 0] = view.size[1] - points[:, 0]
        exact = np.concatenate([points.min(0), points.max(0)])
        if (exact >= 0).all() and (exact <= view.size[::-1] * 2).all():
            seen += 1
            np.testing.assert_allclose(target["boxes"][0].numpy(), exact, atol=1e-4)
        else:
            cut += 1
            assert (target["boxes"] >= 0).all()
            assert (target["boxes"][0, 2:] <= torch.tensor(view.size[::-1])).all()
    assert seen > 20 and cut > 3


def test_the_ranges_are_used_evenly():
    jitter, flips, scales = LargeScaleJitter((100, 100), (0.1, 2.0), flip=True), 0, []
    for draw in range(400):
        seed_libraries(draw)
        view = jitter.draw((500, 250))
        flips += view.flipped
        scales.append(view.resized[0] / 100)
        assert abs(view.resized[0] / view.resized[1] - 2) < 0.25
        assert 0 <= view.top <= view.resized[0] - view.size[0]
    assert 160 < flips < 240
    assert 0.1 <= min(scales) < 0.15 and 1.95 < max(scales) <= 2 and 0.95 < np.mean(scales) < 1.15


def test_the_evaluations_view_fits_into_the_canvas():
    for size, expected in (((50, 100), (32, 64)), ((100, 50), (48, 24)), ((7, 5), (48, 34))):
        image, about = FitCanvas((48, 64))(torch.zeros(3, *size, dtype=torch.uint8), (3, []))
        assert image.shape[1:] == expected == fitted(size, (48, 64))
        assert about == (3, *size)


def test_batches_keep_their_images_sizes():
    items = [
        (torch.zeros(3, 4, 5), {"labels": torch.tensor([1])}, -1),
        (torch.zeros(3, 2, 2), {}, 7),
    ]
    images, targets, bad = collate(items)
    assert [tuple(image.shape) for image in images] == [(3, 4, 5), (3, 2, 2)]
    assert targets[0]["labels"].tolist() == [1] and bad.tolist() == [-1, 7]
