# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""Philox4x32-10, the counter-based random numbers behind the masks, in Triton and in PyTorch.

    philox_block(seed, index, low, high, STREAM)   inside kernels
    philox_word(seed, index, sample, stream)       the reference, on any device

Both give the first 32-bit word of counter (index, sample low, sample high, stream) under the 64-bit
seed as key, the generator of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

import torch
from torch import Tensor

from mim3d.kernels.backend import jit, tl

LOW_WORD = 0xFFFFFFFF


@jit
def philox_block(seed, index, low, high, STREAM: tl.constexpr):
    """First Philox4x32-10 word (uint32) of counters (index, low, high, STREAM)."""
    zero = index * 0
    words = tl.philox(seed, index, low + zero, high + zero, zero + STREAM)
    return words[0]  # pyright: ignore[reportIndexIssue]


def philox_word(seed: int, index: Tensor, sample: Tensor, stream: int) -> Tensor:
    """First 32-bit word of Philox4x32-10 as int64, broadcasting index against sample."""
    c0, sample = torch.broadcast_tensors(index, sample)
    c1, c2 = sample & LOW_WORD, (sample >> 32) & LOW_WORD
    c3 = torch.full_like(c0, stream)
    k0, k1 = seed & LOW_WORD, seed >> 32
    for _ in range(10):
        # The int64 products wrap, but their 64 bits are the unsigned ones.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((b >> 32) & LOW_WORD) ^ c1 ^ k0, b & LOW_WORD
        c2, c3 = ((a >> 32) & LOW_WORD) ^ c3 ^ k1, a & LOW_WORD
        k0, k1 = (k0 + 0x9E3779B9) & LOW_WORD, (k1 + 0xBB67AE85) & LOW_WORD
    return c0
