"""Randomness without state: every random number is a function of a seed and of counters.

So a run can stop at any step and go on exactly with nothing saved but (epoch, step), and one
process with 64 images sees the same batches and masks as two with 32.
"""

import random

import numpy as np
import torch

_MASK64 = (1 << 64) - 1

# One stream for each purpose, so that no two draws share a seed.
STREAM_ORDER, STREAM_SAMPLE, STREAM_MASKS, STREAM_STEP = 1, 2, 3, 4
STREAM_INIT, STREAM_SUBSET = 5, 6
STREAM_ERASE, STREAM_MIX, STREAM_DROP_PATH, STREAM_ROIS = 7, 8, 9, 10


def derive_seed(*counters: int) -> int:
    """A well-mixed 63-bit seed from integers (splitmix64 over them, in order)."""
    state = 0
    for counter in counters:
        state = (state ^ (counter & _MASK64)) + 0x9E3779B97F4A7C15 & _MASK64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK64
        state ^= state >> 31
    return state >> 1


def generator(*counters: int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed(*counters)`."""
    return torch.Generator().manual_seed(derive_seed(*counters))


def seed_libraries(*counters: int, device: torch.device | None = None) -> None:
    """Seed the global generators of torch's CPU (and `device`), numpy and Python."""
    seed = derive_seed(*counters)
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def epoch_order(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of the samples in an epoch, [num_samples]."""
    return torch.randperm(num_samples, generator=generator(seed, STREAM_ORDER, epoch))


def mask_noise(shape: tuple[int, ...], seed: int, step: int) -> torch.Tensor:
    """Uniform noise from which a step's masks follow, drawn for the whole global batch."""
    return torch.rand(shape, generator=generator(seed, STREAM_MASKS, step))


def to_device(drawn: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What was drawn on the CPU, copied without waiting for the GPU."""
    if device.type == "cuda":
        drawn = drawn.pin_memory()  # from pageable memory the copy would wait for the last step
    return drawn.to(device, non_blocking=True)
