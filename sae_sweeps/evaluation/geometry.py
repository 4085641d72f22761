"""Cosines between the decoder's rows, over all pairs in tiles, so that no [d_sae, d_sae] matrix is held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 1024
BINS = 50
BLOCK = 256
"""Features whose cosines with each other are all recorded, the same ones at every step."""
SAMPLED = 1024
"""Rows from which the histogram is made, where there are more."""


@torch.no_grad()
def decoder_geometry(W_dec: Tensor) -> dict[str, float]:
    """nearest_neighbour_cosine, nearest_neighbour_cosine_median: mean and median over features of the largest signed
    cosine with another row (rows that point opposite ways are not near); mean_abs_cosine: mean of |cosine| over all
    pairs. Rows of zeros are left out; nan for fewer than two rows. W_dec [d_sae, d_in]."""
    unit = _unit_rows(W_dec)
    nearest, total = [], 0.0
    for cosine in _tiles(unit):
        nearest.append(cosine.amax(1))
        total += float(cosine.abs().clamp(max=1).sum(dtype=torch.float64))
    n = len(unit)
    if n < 2:
        names = ("nearest_neighbour_cosine", "nearest_neighbour_cosine_median", "mean_abs_cosine")
        return dict.fromkeys(names, float("nan"))
    nearest_S = torch.cat(nearest).double()
    # the tiles hold -1 for a row with itself
    return {
        "nearest_neighbour_cosine": float(nearest_S.mean()),
        "nearest_neighbour_cosine_median": float(nearest_S.quantile(0.5)),
        "mean_abs_cosine": (total - n) / (n * (n - 1)),
    }


@torch.no_grad()
def similarity_snapshot(W_dec: Tensor, seed: int = 0) -> dict[str, Any]:
    """|w_i . w_j| as a histogram over pairs, and of a fixed block of features in full; arrays for a file.

    `histogram` [BINS] counts pairs i < j by |cosine| (bins `edges` [BINS + 1]), of all rows or of SAMPLED of them drawn
    by the seed; `block` [n, n] float16 holds the cosines of the rows `features` [n], n at most BLOCK.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(W_dec), generator=generator).to(W_dec.device)
    block = order[:BLOCK].sort().values
    unit = F.normalize(W_dec[order[:SAMPLED]].float(), dim=1)
    counts = torch.zeros(BINS, dtype=torch.int64)
    for cosine in _tiles(unit):
        counts += torch.histc(cosine.abs().clamp(max=1).cpu(), BINS, 0, 1).long()
    counts[-1] -= len(unit)  # each row with itself
    rows = F.normalize(W_dec[block].float(), dim=1)
    return {
        "histogram": (counts // 2).numpy(),
        "edges": np.linspace(0, 1, BINS + 1),
        "features": block.cpu().numpy(),
        "block": (rows @ rows.T).cpu().numpy().astype(np.float16),
    }


def _unit_rows(W: Tensor) -> Tensor:
    """Rows of W [n, d] that are not zero, at unit norm; in float32 at least, for the sake of SAEs stored in 16 bit."""
    W = W.to(torch.promote_types(W.dtype, torch.float32))
    norm = W.norm(dim=1, keepdim=True)
    return (W / norm)[norm[:, 0] > 0]


def _tiles(unit: Tensor) -> Iterator[Tensor]:
    """Cosines of TILE rows at a time with all rows [<= TILE, n], -1 for a row with itself."""
    for start in range(0, len(unit), TILE):
        cosine = unit[start : start + TILE] @ unit.T
        cosine.diagonal(start).fill_(-1)
        yield cosine
