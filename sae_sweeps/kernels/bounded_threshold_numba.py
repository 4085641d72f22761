"""Features above a threshold on a CPU, exactly, by a product in bfloat16 and its bound (`kernels/bounded.py`).

A feature whose pre-activation is at most its threshold even with the bound added is inactive. All others are computed
in float32, as an active feature's value is needed anyway, and compared again.
"""

# mypy: ignore-errors
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.kernels import memory
from sae_sweeps.kernels.bounded import Rounded
from sae_sweeps.kernels.bounded_numba import dots, listed, product, rounded, uppers
from sae_sweeps.kernels.threads import array, compiled, over_rows

TOKENS = 256
"""Tokens of one product: its result is read while it is in the cache, and each shows whether the way still pays."""
SAMPLE = 16
"""Tokens whose features are counted first: early in a run, when half of all are active, nothing else is computed."""
MOST = 1 / 20
"""Share of pre-activations that may have to be computed in float32; more cost as much as the whole product."""


def active(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: float | Tensor, block: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """`sparse_reference.above` of z = addmm(b_enc, centred, W_enc) and the threshold; None where that is more work.

    block: as `bounded_numba.dots` has it; the values are then those of the product to the last bit.
    """
    n_tokens, d_sae = len(centred), len(b_enc)
    sample = torch.addmm(b_enc, centred[:: -(-n_tokens // SAMPLE)], W_enc)
    if (sample > threshold).count_nonzero() > MOST * sample.numel():
        return None
    x, W = rounded(centred), rounded(W_enc.T, "W_enc'")
    least = array(torch.as_tensor(threshold, dtype=torch.float32).expand(d_sae))
    count, place = np.empty(n_tokens, np.int64), memory.kept("place", (n_tokens, d_sae), torch.int32).numpy()
    for first in range(0, n_tokens, TOKENS):
        part = slice(first, min(first + TOKENS, n_tokens))
        rows = Rounded(x.rows[part], x.norm[part], x.rest[part], x.whole[part])
        over_rows(_undecided, len(rows.rows), *product(rows, W, b_enc), least, count[part], place[part])
        if count[part].sum() > MOST * len(rows.rows) * d_sae:
            return None
    start, feature = listed(place, count, np.ones(n_tokens, np.bool_))
    values = dots(start, feature, W_enc, centred, block, array(b_enc))
    kept = values > least[feature]
    start = np.concatenate([[0], kept.cumsum()])[start]
    return torch.from_numpy(start), torch.from_numpy(feature[kept].astype(np.int64)), torch.from_numpy(values[kept])


@compiled()
def _undecided(z, bias, norm, rest, alpha, beta, least, count, place, start, stop):
    """The features of each token that may exceed the threshold, where z is not finite too: how many, and which."""
    up = np.empty(z.shape[1], np.float32)
    for b in range(start, stop):
        uppers(z[b], bias, norm, rest, alpha[b], beta[b], up)
        row, found = place[b], 0
        for i in range(len(up)):  # without branches, which the processor would predict wrongly
            row[found] = i
            found += not up[i] <= least[i]
        count[b] = found
