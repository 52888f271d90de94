"""Whole images by windows, scales and mirrored views."""

import pytest
import torch
import torch.nn.functional as F

from util.evaluation.dense import windows


def pooled(imgs):
    """A segmenter of stride 2 without memory of its place: what it says depends on pixels alone."""
    return F.avg_pool2d(torch.stack([imgs.sum(1), 1 - imgs.sum(1), imgs[:, 0]], 1), 2)


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (512, 512, 341, [0]), (100, 512, 341, [0]), (683, 512, 341, [0, 171]),
        (853, 512, 341, [0, 341]), (854, 512, 341, [0, 341, 342]), (10, 4, 4, [0, 4, 6]),
    ],
)  # fmt: skip
def test_windows_begin_as_published(length, window, stride, expected):
    assert windows.starts(length, window, stride) == expected


def test_every_pixel_is_in_a_window():
    for length in range(1, 40):
        for window, stride in ((8, 5), (8, 8), (7, 3)):
            starts = windows.starts(length, window, stride)
            seen = {i for start in starts for i in range(start, start + window)}
            assert seen >= set(range(length)) and len(set(starts)) == len(starts)


@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_one_window_is_the_whole_image(size):
    imgs = torch.rand(2, 3, *size, dtype=torch.float64)
    one = windows.by_windows(pooled, imgs, size, (5, 5))
    torch.testing.assert_close(one, windows.whole(pooled, imgs, 8), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(11, 16), (7, 30), (40, 33)])
def test_windows_average_what_covers_a_pixel(size):
    """Against a loop over pixels; images smaller than a window are filled up with the mean."""
    window, stride = (8, 12), (5, 8)
    imgs = torch.rand(1, 3, *size, dtype=torch.float64)
    found = windows.by_windows(pooled, imgs, window, stride)
    assert found.shape == (1, 3, *size)
    height, width = max(size[0], 8), max(size[1], 12)
    filled = torch.zeros(1, 3, height, width, dtype=torch.float64)
    filled[..., : size[0], : size[1]] = imgs
    for y, x in ((0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, size[1] // 3)):
        values = [
            windows.enlarged(pooled(filled[..., t : t + 8, s : s + 12]), window)[0, :, y - t, x - s]
            for t in windows.starts(height, 8, 5)
            for s in windows.starts(width, 12, 8)
            if t <= y < t + 8 and s <= x < s + 12
        ]
        torch.testing.assert_close(found[0, :, y, x], torch.stack(values).mean(0))


def test_a_mirrored_view_of_what_knows_no_side_changes_nothing():
    imgs = torch.rand(1, 3, 32, 48)
    options = (lambda x: windows.whole(pooled, x, 2), imgs, lambda x: x, 32)
    plain = windows.predict(*options, scales=(1.0, 1.0))
    assert torch.equal(plain, windows.predict(*options, scales=(1.0,), flip=True))
    assert plain.shape == (1, 32, 48)


def test_views_are_decided_by_their_mean_probability():
    """Two views that disagree: logits would take class 1, probabilities take class 0."""
    logits = iter([torch.tensor([4.0, 0.0, -9.0]), torch.tensor([0.0, 5.0, 4.9])])

    def segment(imgs):
        return next(logits)[None, :, None, None].expand(1, 3, *imgs.shape[-2:])

    imgs = torch.rand(1, 3, 8, 8)
    found = windows.predict(segment, imgs, lambda x: x, 8, scales=(1.0, 2.0))
    assert (found == 0).all()


def test_the_largest_is_that_of_all_classes_at_once():
    values = torch.randn(2, 37, 5, 6)
    expected = windows.enlarged(values, (13, 11)).argmax(1)
    assert torch.equal(windows.largest(values, (13, 11), at_once=8), expected)
