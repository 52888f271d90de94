"""Erasing, mixup and cutmix: timm's draws, by position in the global micro-batch."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import nn

from util.cluster import distributed
from util.data.batch_augmentation import BatchAugmentation, PositionalMixup, positions
from util.randomness import STREAM_ERASE, derive_seed, seed_libraries

MIXING = dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=5)
VARIANTS = [
    {}, {"prob": 0.5}, {"cutmix_alpha": 0.0}, {"mixup_alpha": 0.0}, {"switch_prob": 0.9},
    {"cutmix_minmax": (0.2, 0.8)}, {"mixup_alpha": 0.0, "cutmix_minmax": (0.3, 0.6)},
]  # fmt: skip


@pytest.fixture
def as_rank(monkeypatch):
    def set_rank(rank, world):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: world)

    return set_rank


def batch(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(size)
    return torch.rand(size, 2, 12, 10, generator=draw), torch.arange(size) % 5


def folded(rows: torch.Tensor) -> torch.Tensor:
    """Rows k and k + B/2, which we pair, at places i and B - 1 - i, which timm pairs."""
    half = len(rows) // 2
    return torch.cat([rows[:half], rows[half:].flip(0)])


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_batch_is_mixed_as_timm_mixes_it(changes):
    """The same images and targets, where the partners stand where timm looks for them."""
    options = MIXING | changes
    for step in range(30):
        imgs, targets = batch()
        ours, our_targets = PositionalMixup(**options)(imgs.clone(), targets, (3, step))
        np.random.seed(derive_seed(3, step, 0) & 0xFFFFFFFF)
        theirs, their_targets = Mixup(**options)(folded(imgs), folded(targets))
        torch.testing.assert_close(folded(ours), theirs)
        torch.testing.assert_close(folded(our_targets), their_targets)


@pytest.mark.parametrize("mode", ["pair", "elem"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_each_image_or_pair_is_mixed_by_a_draw_of_its_own(mode, changes):
    """An image's share and box are those of a batch of its own; a pair has the same."""
    imgs, targets = batch()
    mixup = PositionalMixup(**MIXING | changes, mode=mode)
    mixed, soft = mixup(imgs.clone(), targets, (1, 2))
    whole = PositionalMixup(**MIXING | changes)
    for place in range(8):
        unit = place % 4 if mode == "pair" else place
        whole._units = lambda size, micro, unit=unit: [unit] * size
        expected, expected_soft = whole(imgs.clone(), targets, (1, 2))
        torch.testing.assert_close(mixed[place], expected[place])
        torch.testing.assert_close(soft[place], expected_soft[place])


def shares_of_a_step(as_rank, world: int, num_micro: int, size: int = 1024) -> torch.Tensor:
    """The share of each image of a global batch, by micro-batch and position, [size]."""
    mix = PositionalMixup(mixup_alpha=0.8, cutmix_alpha=0.0, label_smoothing=0.0, num_classes=2)
    own_size, found = size // num_micro // world, []
    targets = (torch.arange(own_size) >= own_size // 2).long()  # partners differ
    for micro in range(num_micro):
        shares = torch.empty(own_size * world)
        for rank in range(world):
            as_rank(rank, world)
            _, soft = mix(torch.zeros(own_size, 1, 2, 2), targets, (4, 9), micro)
            shares[rank::world] = soft[range(own_size), targets]
        found.append(shares)
    return torch.cat(found)


@pytest.mark.parametrize(("world", "num_micro"), [(1, 1), (8, 1), (4, 4), (2, 64), (1, 128)])
def test_each_32_images_of_the_global_batch_have_a_share_of_their_own(as_rank, world, num_micro):
    """MAE fine-tunes 32 images on each of 32 GPUs, each with its own draw [He et al., 2022]."""
    shares = shares_of_a_step(as_rank, world, num_micro)
    values, counts = shares.unique(return_counts=True)
    assert len(values) == 32 and counts.tolist() == [32] * 32
    in_pairs = shares.view(num_micro, 2, -1)  # partners have the same
    assert torch.equal(in_pairs[:, 0], in_pairs[:, 1])


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_shares_are_distributed_as_timms(changes):
    """The largest difference between the distributions of 2000 shares each."""
    ours, theirs = (kind(**MIXING | changes, mode="elem") for kind in (PositionalMixup, Mixup))
    targets = torch.zeros(4000, dtype=torch.long)
    targets[2000:] = 1  # partners differ, with ours; with timm's, too
    np.random.seed(0)
    shares = [
        mix(torch.zeros(4000, 1, 12, 10), targets)[1][:2000, 0].numpy() for mix in (ours, theirs)
    ]
    assert ks_2samp(*shares).statistic < 0.06  # two samples of timm's differ by 0.03 on average


@pytest.mark.parametrize("mode", ["pixel", "const", "rand"])
@pytest.mark.parametrize("count", [1, 3])
def test_an_image_is_erased_as_timm_erases_it(mode, count):
    erase = RandomErasing(0.5, mode=mode, max_count=count, device="cpu")
    augment = BatchAugmentation(nn.Identity(), erase, None, seed=5)
    imgs, targets = batch(40)
    erased, same = augment(imgs.clone(), targets, 7, 1)
    assert same is targets
    for position, image in enumerate(imgs):
        expected = image.clone()
        seed_libraries(5, STREAM_ERASE, 7, 1, position)
        RandomErasing(0.5, mode=mode, max_count=count, device="cpu")(expected)
        torch.testing.assert_close(erased[position], expected)
    share = sum(not torch.equal(a, b) for a, b in zip(erased, imgs, strict=True)) / 40
    assert 0.2 < share < 0.8
    assert not torch.equal(augment(imgs.clone(), targets, 8, 1)[0], erased)  # another step
    assert not torch.equal(augment(imgs.clone(), targets, 7, 0)[0], erased)  # or micro-batch


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("changes", VARIANTS[:1] + VARIANTS[5:6], ids=str)
@pytest.mark.parametrize("remode", ["pixel", "rand"])
def test_the_number_of_processes_changes_nothing(as_rank, mode, changes, remode):
    def augmented(rank: int, world: int, step: int) -> list[torch.Tensor]:
        as_rank(rank, world)
        erase = RandomErasing(0.6, mode=remode, max_count=2)
        mix = PositionalMixup(**MIXING | changes, mode=mode)
        own = list(positions(96 // world))
        imgs, targets = batch(96)
        return BatchAugmentation(nn.Identity(), erase, mix, 1)(imgs[own], targets[own], step, 0)

    for step in range(6):
        expected = augmented(0, 1, step)
        for world in (2, 3, 4, 6, 12):
            for rank in range(world):
                own = slice(rank, None, world)
                for rows, all_rows in zip(augmented(rank, world, step), expected, strict=True):
                    torch.testing.assert_close(rows, all_rows[own], rtol=0, atol=0)
