"""Progressive sparsity-guided orthogonality of features that are active together too often.

    L = lambda2(p) * sum_{i<j} c_ij(p) |w_i . w_j|

c_ij, the competition, grows with the overlap n_ij of the tokens on which the two features are active; it is 0 where
they are never active together. No gradient flows through it. docs/methods.md, "Penalties"; figures of the
study: `reference:progressive_orthogonality`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from sae_sweeps.fields import BelowOne, Positive, Rule, one_of
from sae_sweeps.kernels.choose import asynchronous, pairwise
from sae_sweeps.kernels.coactivation import competing_cosines
from sae_sweeps.kernels.competition import Competition
from sae_sweeps.penalties.base import Penalty, PenaltyValue, Reduction, WeightedConfig, reduced
from sae_sweeps.schedules import smoothed

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context

THRESHOLD_FLOOR = 1e-6


@dataclass
class OrthoConfig(WeightedConfig):
    threshold: Annotated[str, one_of("decreasing", "constant", "increasing")]
    """decreasing: t = base (1 - p); constant: t = base; increasing: t = base (1 + p)."""
    base_threshold: Annotated[float, Rule(lambda value: 0 <= value <= 1, "an overlap lies between 0 and 1.")]
    """Overlap from which two features compete."""
    momentum: BelowOne
    """m in t <- m t + (1 - m) t(p), starting at t(0); 0 follows t(p) exactly."""
    competition: Annotated[str, one_of("linear", "sigmoid")]
    """linear: clip((n - t) / t, 0, 1); sigmoid: 1 / (1 + exp(-(n - t) / (tau t)))."""
    tau: Positive[float]
    """Softness of the sigmoid, relative to the threshold."""
    overlap: Annotated[str, one_of("jaccard", "min", "cosine", "batch")]
    """jaccard: |A n B| / |A u B|; min: / min(|A|, |B|); cosine: / sqrt(|A| |B|); batch: / B."""
    reduction: Reduction
    """sum over pairs i < j (over ordered pairs it would be twice that, and lambda2_max half); per_feature: sum / d_sae;
    mean over the pairs that compete."""

    def unused_keys(self) -> dict[str, str]:
        return {} if self.competition == "sigmoid" else {"tau": "only penalty.competition=sigmoid uses it"}

    def never_acts(self) -> str | None:
        if self.competition == "linear" and min(self.threshold_at(0.0), self.threshold_at(1.0)) >= 1:
            return f"no overlap exceeds base_threshold={self.base_threshold:g} with penalty.threshold={self.threshold}"
        return None

    def plan_warnings(self) -> list[str]:
        if self.competition == "linear" and self.threshold_at(1.0) >= 1:
            return [
                f"with penalty.threshold=increasing and base_threshold={self.base_threshold:g} the threshold reaches "
                f"{self.threshold_at(1.0):g}: no pair competes at the end"
            ]
        return []

    def result_warnings(self, rows: list[dict[str, Any]]) -> list[str]:
        idle = sum(row.get("penalty/competing_pairs", 0) == 0 for row in rows) / max(len(rows), 1)
        return [f"no pair of features competed in {idle:.0%} of the logged steps"] if idle >= 0.1 else []

    def threshold_at(self, progress: float) -> float:
        """t(p) before momentum and floor."""
        factor = {"decreasing": 1 - progress, "constant": 1.0, "increasing": 1 + progress}
        return self.base_threshold * factor[self.threshold]

    def curves(self, total_steps: int) -> dict[str, list[float]]:
        targets = (self.threshold_at(step / total_steps) for step in range(total_steps))
        follow = partial(smoothed, momentum=self.momentum)
        return {"threshold": list(accumulate(targets, follow, initial=self.threshold_at(0.0)))[1:]}


class Ortho(Penalty):
    cfg: OrthoConfig

    def __init__(self, cfg: OrthoConfig, d_in: int, d_sae: int, total_steps: int, generator: torch.Generator):
        super().__init__(cfg, d_in, d_sae, total_steps, generator)
        self.register_buffer("threshold", torch.tensor(cfg.threshold_at(0.0), dtype=torch.float64))
        self.threshold: Tensor

    def observe(self, ctx: Context) -> None:
        target = self.cfg.threshold_at(ctx.progress)
        self.threshold.copy_(smoothed(self.threshold, target, self.cfg.momentum))

    def pair_competition(self) -> Competition:
        cfg, t = self.cfg, self.threshold.clamp(min=THRESHOLD_FLOOR)
        return Competition(cfg.overlap, cfg.competition, t if asynchronous(t) else float(t), cfg.tau)

    def forward(self, ctx: Context) -> PenaltyValue:
        W = ctx.sae.W_dec
        total, pairs = competing_cosines(
            W, ctx.feature_acts, len(ctx.x), self.pair_competition(), pairwise(ctx.sae.kernels, W), ctx.error
        )
        terms: dict[str, float | Tensor] = {"competing_pairs": pairs, "threshold": self.threshold.clone()}
        return PenaltyValue(reduced(total, self.cfg.reduction, ctx.sae.d_sae, pairs), terms)


CONFIG = OrthoConfig
COMPONENT = Ortho
