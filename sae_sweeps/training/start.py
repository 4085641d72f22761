"""Scale of the activations and initial decoder bias, from a run's first batches."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_sweeps.config.schema import TrainConfig

N_START_TOKENS = 16_384


def n_start_steps(batch_size: int, total_steps: int) -> int:
    """How many first steps have about N_START_TOKENS tokens."""
    return min(total_steps, max(1, -(-N_START_TOKENS // batch_size)))


def activation_scale(x: Tensor, cfg: TrainConfig) -> float:
    """s with mean |s x| = sqrt(d_in), or 1 where the run does not normalise. x [n, d_in]."""
    if not cfg.normalize_activations:
        return 1.0
    return float(x.shape[1] ** 0.5 / x.double().norm(dim=1).mean())


def decoder_bias(x: Tensor, cfg: TrainConfig) -> Tensor:
    """Initial b_dec [d_in] from x [n, d_in], in raw units."""
    if cfg.b_dec_init == "zero":
        return torch.zeros_like(x[0])
    mean = x.double().mean(0)
    return (mean if cfg.b_dec_init == "mean" else geometric_median(x.double(), mean)).float()


def geometric_median(x: Tensor, start: Tensor, steps: int = 100, tolerance: float = 1e-7) -> Tensor:
    """Point [d_in] with the least mean distance to the rows of x [n, d_in], by Weiszfeld's iteration."""
    median = start
    for _ in range(steps):
        weight = 1 / (x - median).norm(dim=1).clamp_min(1e-12)
        new = (weight[:, None] * x).sum(0) / weight.sum()
        moved = (new - median).norm()
        median = new
        if moved <= tolerance * median.norm():
            break
    return median
