"""Fused attention under autocast on a CPU: where few tokens attend, it is computed in fp32.

PyTorch's backward pass in bf16 takes 1.4 to 9 times as long there, casts included
(benchmarks/LOG.md): a step of a tiny model is 0.6 as long without it.
"""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import Library

FEW = 512  # tokens; bf16 is slower with 197 of them, and faster with 1024
FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # what autocast casts


@functools.cache
def use_fp32_attention() -> Library:
    """Let all CPU autocast of this process attend in fp32; it stays so as long as the result is
    kept, which this does."""
    library = Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older PyTorch tells that its own is replaced
        library.impl("scaled_dot_product_attention", _attention, "AutocastCPU")
    return library


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *words, **options
) -> Tensor:
    """PyTorch's, [..., tokens, width] in any dtype -> the same in autocast's."""
    half = torch.get_autocast_dtype("cpu")
    dtype = torch.float32 if key.shape[-2] < FEW else half
    given = [_cast(x, dtype) for x in (query, key, value, attn_mask)]
    with torch.autocast("cpu", enabled=False):
        return _cast(F.scaled_dot_product_attention(*given, *words, **options), half)


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return x.to(dtype) if x is not None and x.dtype in FLOATS else x
