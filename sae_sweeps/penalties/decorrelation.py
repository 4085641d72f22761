"""Decorrelation: a penalty on correlated feature activations.

    L = lambda2 * reduction_{i<j} corr(f_i, f_j)^2

corr is taken over the batch, among features whose variance exceeds a floor, optionally only the most active ones. Its
curricula are schedules (linear, exponential, two_phase). docs/methods.md, "Penalties".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_sweeps.fields import NotNegative, PositiveShare
from sae_sweeps.kernels.choose import loops
from sae_sweeps.kernels.features import DenseFeatures, Features
from sae_sweeps.kernels.gram import squared_products
from sae_sweeps.penalties.base import Penalty, PenaltyValue, Reduction, WeightedConfig, reduced

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context


@dataclass
class DecorrelationConfig(WeightedConfig):
    reduction: Reduction
    """sum over pairs i < j; per_feature: sum / d_sae; mean over the pairs above the floor."""
    active_fraction: PositiveShare
    """Share of the features taken into account, those that fire on most tokens of the batch; 1 takes all."""
    variance_floor: NotNegative[float]
    """A feature whose variance over the batch is not above this is left out and gets no gradient."""

    def result_warnings(self, rows: list[dict[str, Any]]) -> list[str]:
        idle = sum(row.get("penalty/features", 2) < 2 for row in rows) / max(len(rows), 1)
        return [f"no pair of features varied in {idle:.0%} of the logged steps"] if idle >= 0.1 else []


class Decorrelation(Penalty):
    cfg: DecorrelationConfig

    def forward(self, ctx: Context) -> PenaltyValue:
        total, n = self.over_entries(ctx) or self.over_matrix(ctx.feature_acts)
        value = reduced(total, self.cfg.reduction, ctx.sae.d_sae, n * (n - 1) / 2)
        return PenaltyValue(value, {"features": n})

    def over_entries(self, ctx: Context) -> tuple[Tensor, int] | None:
        """The sum over pairs from the entries of a sparse f; None off the CPU and where matrix products cost less."""
        f = ctx.feature_acts
        if isinstance(f, DenseFeatures) or not loops(ctx.sae.kernels, ctx.x):
            return None
        from sae_sweeps.kernels.correlations import Sparse, squared_correlations

        sparse = Sparse(f, len(ctx.x))
        if sparse.cost() > len(ctx.x) ** 2 * f.d_sae:
            return None
        kept = torch.zeros(f.d_sae, dtype=torch.bool)
        kept[most_active(torch.from_numpy(sparse.n_active), self.cfg.active_fraction)] = True
        return squared_correlations(sparse, kept.numpy(), self.cfg.variance_floor)

    def over_matrix(self, features: Features) -> tuple[Tensor, Tensor]:
        """The sum over pairs by matrix products, and the number of features that vary."""
        f = features.dense()
        if self.cfg.active_fraction < 1:
            f = f[:, most_active((f > 0).sum(0), self.cfg.active_fraction)]
        with torch.autocast(f.device.type, enabled=False):
            u, varies = standardized_features(f, self.cfg.variance_floor)
            return squared_products(u.T), varies.sum()


def most_active(fires: Tensor, fraction: float) -> Tensor:
    """Features that fire on most tokens, ceil(fraction * d_sae) of them; of equal ones the first. fires [d_sae]."""
    n = max(1, -int(-fraction * len(fires) // 1))
    return fires.sort(descending=True, stable=True).indices[:n].sort().values


def standardized_features(f: Tensor, variance_floor: float) -> tuple[Tensor, Tensor]:
    """u with corr(f_i, f_j) = u_i . u_j over the batch [B, n], 0 for features that do not vary, and which do [n]."""
    centred = f - f.mean(0)
    square = centred.square().sum(0)
    varies = square > variance_floor * len(f)
    return torch.where(varies, centred * torch.where(varies, square, 1).rsqrt(), 0), varies


CONFIG = DecorrelationConfig
COMPONENT = Decorrelation
