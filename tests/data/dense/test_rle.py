"""Run lengths and polygons: both give back the very mask, here and in COCO's own library."""

import numpy as np
import pytest
from scipy import ndimage

from util.data.dense import rle

EVERY_NEIGHBOUR = np.ones((3, 3), dtype=bool)


def masks(count=300):
    """Random masks of all densities, empty and full ones and single rows among them."""
    rng = np.random.default_rng(0)
    for i in range(count):
        shape = rng.integers(1, 14, 2)
        yield rng.random(shape) < (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)[i % 7]


def test_run_lengths_give_back_the_mask():
    for mask in masks():
        encoded = rle.encode_rle(mask)
        assert encoded["size"] == list(mask.shape) and sum(encoded["counts"]) == mask.size
        assert sum(encoded["counts"][1::2]) == mask.sum()
        assert np.array_equal(rle.decode_rle(encoded), mask)
        compressed = rle.compress_counts(encoded["counts"])
        assert rle.decompress_counts(compressed) == encoded["counts"]
        for text in (compressed, compressed.encode()):
            assert np.array_equal(rle.decode_rle({**encoded, "counts": text}), mask)


def test_run_lengths_go_down_the_columns_and_begin_with_the_zeros():
    mask = np.array([[True, False], [True, True], [False, True]])
    assert rle.encode_rle(mask) == {"size": [3, 2], "counts": [0, 2, 2, 2]}


@pytest.mark.parametrize("counts", [[3, 2], [3, 4], [5, -1, 2], []])
def test_run_lengths_that_do_not_fit(counts):
    with pytest.raises(ValueError, match="mask of 2 x 3"):
        rle.decode_rle({"size": [2, 3], "counts": counts})


def test_outlines_are_one_a_part_and_give_back_the_mask_with_its_holes_filled():
    for mask in masks():
        polygons, num_holes = rle.trace(mask)
        assert len(polygons) == ndimage.label(mask)[1]
        outside = ~np.pad(mask, 1)
        assert num_holes == ndimage.label(outside, EVERY_NEIGHBOUR)[1] - 1
        filled = ndimage.binary_fill_holes(mask, EVERY_NEIGHBOUR)
        assert np.array_equal(rle.fill_polygons(polygons, *mask.shape), filled)


def test_outlines_have_corners_only():
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:4, 2:6] = True
    assert rle.trace(mask) == ([[6, 1, 6, 4, 2, 4, 2, 1]], 0)


def test_segmentations_are_the_mask():
    for mask in masks():
        for is_crowd in (False, True) if mask.any() else ():
            found = rle.segmentation(mask, is_crowd)
            is_rle = isinstance(found["segmentation"], dict)
            assert is_rle == (is_crowd or rle.trace(mask)[1] > 0)
            assert np.array_equal(rle.to_mask(found["segmentation"], *mask.shape), mask)
            x, y, width, height = found["bbox"]
            assert mask[y : y + height, x : x + width].sum() == found["area"] == mask.sum()
            assert mask[y].any() and mask[y + height - 1].any()
            assert mask[:, x].any() and mask[:, x + width - 1].any()


def test_polygons_of_any_slant_fill_by_pixel_centres():
    triangle = [0.2, 0.1, 9.7, 3.3, 2.1, 8.9]
    (x0, y0), (x1, y1), (x2, y2) = np.reshape(triangle, (3, 2))
    y, x = np.mgrid[:10, :12] + 0.5
    sides = [
        (xb - xa) * (y - ya) - (yb - ya) * (x - xa)
        for xa, ya, xb, yb in ((x0, y0, x1, y1), (x1, y1, x2, y2), (x2, y2, x0, y0))
    ]
    assert np.array_equal(rle.fill_polygons([triangle], 10, 12), np.min(sides, axis=0) > 0)
    # Parts outside of the picture are cut off, and two polygons are a union.
    outside = [-5, -5, 3, -5, 3, 20, -5, 20]
    filled = rle.fill_polygons([outside, [2, 0, 4, 0, 4, 1, 2, 1]], 6, 7)
    assert filled[:, :3].all() and filled[0, 3] and filled.sum() == 19


def test_pycocotools_reads_the_same():
    coco = pytest.importorskip("pycocotools.mask")
    for mask in masks():
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle.compress_counts(rle.encode_rle(mask)["counts"]) == theirs["counts"].decode()
        if mask.any():
            found = rle.segmentation(mask)["segmentation"]
            objects = coco.frPyObjects(found, *mask.shape)
            merged = coco.merge(objects) if isinstance(found, list) else objects
            assert np.array_equal(coco.decode(merged), mask)
