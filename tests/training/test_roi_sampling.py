"""The samples of anchors and RoIs follow from the image's position in the step."""

import pytest
import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from util.cluster import distributed
from util.training.roi_sampling import PositionalSampler


@pytest.fixture
def as_rank(monkeypatch):
    def pretend(rank: int, world: int) -> None:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: world)

    return pretend


def sampled(images: list[torch.Tensor], first: int = 0, step: int = 0, stage: int = 0):
    sampler = PositionalSampler(BalancedPositiveNegativeSampler(16, 0.25), stage)
    sampler.counters, sampler.first = (3, step), first
    positive, negative = sampler(images)
    return [torch.stack(pair) for pair in zip(positive, negative, strict=True)]


def test_any_number_of_ranks_and_micro_batches_draws_the_same(as_rank):
    images = [
        torch.randint(-1, 3, (60,), generator=torch.Generator().manual_seed(i)) for i in range(8)
    ]
    torch.manual_seed(1)
    whole = sampled(images)
    torch.manual_seed(2)  # nothing follows from the global generator
    assert all(map(torch.equal, whole, sampled(images[:3]) + sampled(images[3:], first=3)))
    for rank in range(2):
        as_rank(rank, 2)
        assert all(map(torch.equal, whole[rank::2], sampled(images[rank::2])))


def test_what_is_drawn_is_balanced_and_new_in_each_step_and_stage():
    (image,) = [torch.tensor([1] * 30 + [0] * 60 + [-1] * 10)]
    draws = [sampled([image], step=step, stage=stage)[0] for step in (0, 1) for stage in (0, 1)]
    for positive, negative in draws:
        assert positive.sum() == 4 and negative.sum() == 12
        assert not positive[30:].any() and not negative[:30].any() and not negative[90:].any()
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 4
