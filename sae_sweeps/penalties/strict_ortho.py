"""Strict orthogonality of all decoder rows at all times; the baseline of adaptive sharing.

    L = lambda2 * reduction_{i<j} (w_i . w_j)^2

docs/methods.md, "Penalties"; figures of the study: `reference:adaptive_sharing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_sweeps.kernels.gram import squared_products
from sae_sweeps.penalties.base import Penalty, PenaltyValue, Reduction, WeightedConfig, reduced

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context


def n_pairs(d_sae: int) -> float:
    return d_sae * (d_sae - 1) / 2


@dataclass
class StrictOrthoConfig(WeightedConfig):
    reduction: Reduction
    """sum over pairs i < j; per_feature: sum / d_sae; mean over all pairs. A sum grows as d_sae^2 / d_in."""


class StrictOrtho(Penalty):
    cfg: StrictOrthoConfig

    def forward(self, ctx: Context) -> PenaltyValue:
        W = ctx.sae.W_dec
        return PenaltyValue(reduced(squared_products(W), self.cfg.reduction, len(W), n_pairs(len(W))))


CONFIG = StrictOrthoConfig
COMPONENT = StrictOrtho
