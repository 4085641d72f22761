"""Composition: how far decoder rows are sums of fewer, more elementary directions, and how many of them are distinct.

A small BatchTopK SAE, the meta-SAE of Leask et al. 2025 (arXiv 2502.04878), is trained on the decoder's rows; the
better it explains them, the more composed they are. OrtSAE (arXiv 2509.22033) calls the variance it explains the
composition rate, with a quarter as many latents as rows and 4 active on average; its Table 1 has, as quoted by others,
0.53 for ReLU, 0.49 BatchTopK, 0.35 Matryoshka and 0.34 OrtSAE (Gemma-2-2B, layer 20, L0 70). Leask et al. train 2,304
latents on 49,152 rows, 4 active, for 2,000 epochs of batches of 4,096 (Adam, 1e-4). Here latents start at rows, so that
none is dead, and 300 steps come within 0.03 of 3,000 (d_sae 2048, d_in 160), in the same order of SAEs.

The rate depends on the shape: with d_sae 2048 and d_in 160 random directions have 0.52 and a trained TopK SAE 0.53.
So the rate of random directions is reported beside it; orthonormal rows have 1 / RATIO. How OrtSAE counts distinct
features could not be found: the count and its threshold on the cosine are this project's.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

RATIO = 4
ACTIVE = 4
STEPS = 300
LR = 3e-3
BATCH = 512
MOST_ROWS = 8192
SAME = 0.9
"""Cosine above which two rows are the same feature."""
TILE = 1024


def composition(W_dec: Tensor, seed: int = 0) -> dict[str, float]:
    """composition_rate: share of the variance of the unit rows that the meta-SAE explains; composition_rate_random: of
    as many random directions, for comparison; distinct_features: rows that are not within a cosine of 0.9 of
    an earlier one.

    W_dec [d_sae, d_in]; rows of zeros are left out, and of more than MOST_ROWS rows a seeded sample is taken for the
    rate. Empty for fewer than 8 rows.
    """
    norm = W_dec.norm(dim=1, keepdim=True)
    unit = (W_dec.float() / norm)[norm[:, 0] > 0].detach()
    if len(unit) < 2 * RATIO:
        return {}
    return {
        "composition_rate": meta_sae_explains(unit, seed),
        "composition_rate_random": by_chance(min(len(unit), MOST_ROWS), unit.shape[1], seed, unit.device),
        "distinct_features": float(distinct(unit)),
    }


@lru_cache(maxsize=8)  # the same for all runs of a sweep
def by_chance(n: int, d: int, seed: int, device: torch.device) -> float:
    """`meta_sae_explains` of n random directions in d dimensions."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return meta_sae_explains(F.normalize(rows, dim=1).to(device), seed)


def meta_sae_explains(unit: Tensor, seed: int) -> float:
    """Fraction of the rows' variance about their mean that a BatchTopK SAE of a quarter as many latents explains."""
    generator = torch.Generator().manual_seed(seed)
    if len(unit) > MOST_ROWS:
        unit = unit[torch.randperm(len(unit), generator=generator)[:MOST_ROWS].to(unit.device)]
    n, n_latents, mean = len(unit), max(2, len(unit) // RATIO), unit.mean(0)
    x = unit - mean
    start = torch.randperm(n, generator=generator)[:n_latents].to(unit.device)
    D = F.normalize(x[start], dim=1).clone().requires_grad_()  # atoms start at rows
    E = D.detach().T.clone().requires_grad_()
    b = torch.zeros(n_latents, device=unit.device, requires_grad=True)
    optimizer = torch.optim.Adam([D, E, b], lr=LR)

    def reconstructed(rows: Tensor) -> Tensor:
        f = (rows @ E + b).relu()
        kept = min(ACTIVE * len(rows), f.numel())
        smallest = f.flatten().topk(kept, sorted=False).values.min()
        return (f * (f >= smallest)) @ D

    for _ in range(STEPS):
        rows = x[torch.randint(n, (min(BATCH, n),), generator=generator).to(unit.device)]
        loss = (rows - reconstructed(rows)).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            D.div_(D.norm(dim=1, keepdim=True).clamp(min=1e-12))
    with torch.no_grad():
        error = sum((part - reconstructed(part)).square().sum() for part in x.split(BATCH))
    return float(1 - error / x.square().sum().clamp(min=1e-12))


@torch.no_grad()
def distinct(unit: Tensor) -> int:
    """Rows of `unit` [n, d] that are not within a cosine of SAME of an earlier row."""
    earlier = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
    for start in range(0, len(unit), TILE):
        cosine = unit[start : start + TILE] @ unit.T
        before = torch.ones_like(cosine, dtype=torch.bool).tril(start - 1)
        earlier[start : start + TILE] = ((cosine > SAME) & before).any(1)
    return int((~earlier).sum())
