"""Competing cosines over all pairs of features, in square tiles: no size depends on a value, so a GPU is never read.

Peak memory is a few tiles of [TILE, TILE] beside f and W; only the tiles on and above the diagonal are computed.
"""

import torch
from torch import Tensor

from sae_sweeps.kernels.competition import Competition, Found
from sae_sweeps.kernels.features import Features

TILE = 4096
EXACT = 2048
"""Whole numbers up to this one are exact in float16, and so is every partial sum of a count up to it."""


def by_tiles(W: Tensor, f: Features, n_tokens: int, competition: Competition) -> Found:
    """Value, number of competing pairs (int64 scalar) and gradient, as `coactivation.plain`, in the precision of W.

    Counts are exact. Cosines and gradient are matrix products in W's dtype: off by at most gamma_d sum |w_id w_jd|,
    with gamma of that dtype, or of TF32 (2^-11) where torch is set to use it.
    """
    active = f.dense() > 0
    n_active = active.sum(0).to(W.dtype)
    ones = active.half()
    value, pairs = W.new_zeros(()), torch.zeros((), dtype=torch.int64, device=W.device)
    grad = torch.zeros_like(W)
    tiles = [slice(start, start + TILE) for start in range(0, len(W), TILE)]
    for number, i in enumerate(tiles):
        for j in tiles[number:]:
            n_both = common_tokens(ones[:, i], ones[:, j]).to(W.dtype)
            c = competition.weigh(n_both, n_active[i, None], n_active[j], n_tokens).masked_fill_(n_both == 0, 0)
            c = c.triu_(1) if i == j else c
            cosine = W[i] @ W[j].T
            value += (c * cosine.abs()).sum()
            pairs += (c > 0).sum()
            s = c.mul_(cosine.sign_())
            grad[i].addmm_(s, W[j])
            grad[j].addmm_(s.T, W[i])
    return value, pairs, grad


def common_tokens(one: Tensor, other: Tensor) -> Tensor:
    """Tokens on which both features of each pair are active [n, m], exact; one [B, n], other [B, m], float16 of 0, 1.

    Float16 has the matrix units of a GPU; EXACT tokens at a time, added up in float32.
    """
    parts = [a.T @ b for a, b in zip(one.split(EXACT), other.split(EXACT), strict=True)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0, dtype=torch.float32)
