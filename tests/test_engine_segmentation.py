import pytest
import torch

from engine_segmentation import pixel_accuracy, pixel_hits
from util.data.dense.ade20k import NOTHING


def test_pixels_are_right_where_the_largest_logit_is_their_labels():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, 9, generator=draw)
    maps = torch.randint(5, (2, 7, 9), generator=draw)
    maps[torch.rand(maps.shape, generator=draw) < 0.3] = NOTHING
    is_labelled = maps != NOTHING
    expected = 100 * (logits.argmax(1) == maps)[is_labelled].double().mean()
    assert accuracy([(logits, maps)]) == pytest.approx(float(expected), rel=1e-6)
    assert accuracy([(logits, torch.full_like(maps, NOTHING))]) == 0
    assert pixel_accuracy({}) == {} == pixel_accuracy({"loss": 1.0, "acc": 50.0})
    maps[1, :, 2:] = NOTHING  # one image's share of labelled pixels is another's
    whole, parts = [(logits, maps)], zip(logits.split(1), maps.split(1), strict=True)
    assert accuracy(whole) == pytest.approx(accuracy(list(parts)), rel=1e-6)


def accuracy(batches) -> float:
    """Of the means over micro-batches or ranks, as a round has them."""
    hits, labelled = torch.tensor([pixel_hits(*batch) for batch in batches]).mean(0).tolist()
    return pixel_accuracy({"hits": hits, "labelled": labelled})["acc"]
