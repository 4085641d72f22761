"""Adaptive feature sharing: decoder rows are kept orthogonal while the reconstruction is good, not while it is poor.

    L = lambda2 * (1 - alpha(p)) * g(e) * reduction_{i<j} (w_i . w_j)^2
    g(e) = clip((2 tau - e) / tau, 0, 1)

alpha is piecewise linear in the progress p, e a moving average of the batch's fraction of variance unexplained: the
constraint holds in full up to tau and is lifted at 2 tau. docs/methods.md, "Penalties"; figures of the
study: `reference:adaptive_sharing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_sweeps.fields import BelowOne, Positive
from sae_sweeps.kernels.choose import asynchronous
from sae_sweeps.kernels.gram import squared_products
from sae_sweeps.penalties.base import MovingAverage, Penalty, PenaltyValue, Reduction, WeightedConfig, reduced
from sae_sweeps.penalties.strict_ortho import n_pairs
from sae_sweeps.schedules import check_piecewise, piecewise

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context


@dataclass
class AdaptiveSharingConfig(WeightedConfig):
    reduction: Reduction
    """sum over pairs i < j; per_feature: sum / d_sae; mean over all pairs."""
    breakpoints: list[float]
    """Progress p at which alpha is given, rising."""
    alphas: list[float]
    """alpha at each of them: 0 keeps the constraint in full, 1 lifts it."""
    tau: Positive[float]
    """Fraction of variance unexplained up to which the constraint holds in full."""
    decay: BelowOne
    """Decay of the moving average e."""

    def check(self) -> None:
        check_piecewise("penalty.breakpoints", self.breakpoints, "penalty.alphas", self.alphas)

    def alpha_at(self, progress: float) -> float:
        return piecewise(progress, self.breakpoints, self.alphas)

    def curves(self, total_steps: int) -> dict[str, list[float]]:
        return {"alpha": [self.alpha_at(step / total_steps) for step in range(total_steps)]}

    def never_acts(self) -> str | None:
        return "alpha is 1 throughout" if min(self.alphas) >= 1 else None

    def result_warnings(self, rows: list[dict[str, Any]]) -> list[str]:
        lifted = sum(row.get("penalty/constraint") == 0 for row in rows) / max(len(rows), 1)
        return (
            [f"the constraint was lifted (fvu above 2 tau) in {lifted:.0%} of the logged steps"] if lifted > 0.5 else []
        )


class AdaptiveSharing(Penalty):
    cfg: AdaptiveSharingConfig

    def __init__(self, cfg: AdaptiveSharingConfig, d_in: int, d_sae: int, total_steps: int, generator: torch.Generator):
        super().__init__(cfg, d_in, d_sae, total_steps, generator)
        self.error = MovingAverage((), cfg.decay)

    def observe(self, ctx: Context) -> None:
        x = ctx.x.detach()
        variance = (x - x.mean(0)).square().sum()
        fvu = ctx.error.detach().square().sum() / variance
        # unchanged by a batch of one token or of equal ones, which has no variance
        self.error.update(torch.where(variance > 0, fvu, self.error.value))

    def constraint(self) -> Tensor:
        """g(e), scalar."""
        tau = self.cfg.tau
        return ((2 * tau - self.error.value) / tau).clamp(0, 1)

    def forward(self, ctx: Context) -> PenaltyValue:
        W, alpha, g = ctx.sae.W_dec, self.cfg.alpha_at(ctx.progress), self.constraint()
        terms: dict[str, float | Tensor] = {"alpha": alpha, "constraint": g, "fvu_average": self.error.value}
        if alpha >= 1 or (not asynchronous(g) and float(g) == 0):
            return PenaltyValue(W.new_zeros(()), terms)
        strict = reduced(squared_products(W), self.cfg.reduction, len(W), n_pairs(len(W)))
        return PenaltyValue((1 - alpha) * g * strict, terms)


CONFIG = AdaptiveSharingConfig
COMPONENT = AdaptiveSharing
