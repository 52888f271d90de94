import torch

from engine_segmentation import pixel_accuracy
from util.data.dense.ade20k import NOTHING


def test_pixels_are_right_where_the_largest_logit_is_their_labels():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, 9, generator=draw)
    maps = torch.randint(5, (2, 7, 9), generator=draw)
    maps[torch.rand(maps.shape, generator=draw) < 0.3] = NOTHING
    is_labelled = maps != NOTHING
    expected = 100 * (logits.argmax(1) == maps)[is_labelled].double().mean()
    torch.testing.assert_close(pixel_accuracy(logits, maps).double(), expected, rtol=1e-6, atol=0)
    assert pixel_accuracy(logits, torch.full_like(maps, NOTHING)) == 0
