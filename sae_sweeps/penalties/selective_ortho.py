"""Selective orthogonality: two groups of features, by their activity, whose decoder rows are kept orthogonal.

    L = lambda2 * reduction_{i in G1, j in G2} (w_i . w_j)^2

Groups come from moving averages of per-feature statistics: a relative threshold on one of them, two clusters of
(mean, max, std), or which features fire more on text to forget than on text to retain.
docs/methods.md, "Penalties"; figures of the study: `reference:selective_orthogonality`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from sae_sweeps.errors import NeedsRoles
from sae_sweeps.fields import AtLeastOne, BelowOne, Rule, one_of
from sae_sweeps.kernels.counts import counts
from sae_sweeps.kernels.features import DenseFeatures, Features
from sae_sweeps.kernels.gram import squared_products_between
from sae_sweeps.penalties.base import MovingAverage, Penalty, PenaltyValue, Reduction, WeightedConfig, reduced

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context
    from sae_sweeps.config.run import RunConfig

STATISTICS = ("mean", "max", "std", "frequency")
CLUSTERED = 3
"""Number of them that k-means uses: mean, max and std."""
RETAIN, FORGET = 1, 2


@dataclass
class SelectiveOrthoConfig(WeightedConfig):
    reduction: Reduction
    """sum over pairs between the groups; per_feature: sum / d_sae; mean over those pairs (a no-op at study weights)."""
    grouping: Annotated[str, one_of("relative_threshold", "kmeans", "corpus")]
    """relative_threshold: group 1 = features whose statistic exceeds alpha times the largest; kmeans: the cluster of
    the larger mean; corpus: features that fire more often on text to forget than on text to retain."""
    statistic: Annotated[str, one_of(*STATISTICS)]
    """mean, max, std or frequency, for relative_threshold."""
    alpha: Annotated[float, Rule(lambda value: 0 <= value < 1, "must lie in [0, 1), or no feature exceeds it.")]
    """Share of the largest statistic above which a feature is in group 1, for relative_threshold."""
    decay: BelowOne
    """Decay of the moving averages of the statistics."""
    regroup_every: AtLeastOne[int]
    """Steps between clusterings, for kmeans; the other groupings are renewed at every step."""

    def unused_keys(self) -> dict[str, str]:
        out: dict[str, str] = {}
        if self.grouping != "relative_threshold":
            out = dict.fromkeys(("alpha", "statistic"), "only penalty.grouping=relative_threshold uses it")
        if self.grouping != "kmeans":
            out["regroup_every"] = "only penalty.grouping=kmeans uses it"
        return out

    def check_run(self, run: RunConfig) -> None:
        if self.grouping == "corpus":
            check_roles("penalty.grouping=corpus", run)

    def plan_warnings(self) -> list[str]:
        if self.reduction == "mean":
            return ["with penalty.reduction=mean the term is about 1 / d_in of its weight: next to nothing"]
        return []

    def result_warnings(self, rows: list[dict[str, Any]]) -> list[str]:
        d_sae = [row["penalty/group_1"] + row["penalty/group_2"] for row in rows if "penalty/group_1" in row]
        empty = sum(row.get("penalty/group_1") in (0, *d_sae[:1]) for row in rows) / max(len(rows), 1)
        return [f"one of the two groups was empty in {empty:.0%} of the logged steps"] if empty >= 0.1 else []


def check_roles(key: str, run: RunConfig) -> None:
    """Raise ConfigError unless the run's text has both roles, forget and retain."""
    if run.synthetic or not run.data.has_roles():
        given = "model=synthetic" if run.synthetic else f"data={run.data.name}"
        raise NeedsRoles(
            f"{key}: needs text to forget and text to retain, which {given} has not; give data=builtin_roles."
        )


class SelectiveOrtho(Penalty):
    cfg: SelectiveOrthoConfig

    def __init__(self, cfg: SelectiveOrthoConfig, d_in: int, d_sae: int, total_steps: int, generator: torch.Generator):
        super().__init__(cfg, d_in, d_sae, total_steps, generator)
        self.statistics = MovingAverage((len(STATISTICS), d_sae), cfg.decay)
        self.retain, self.forget = MovingAverage((d_sae,), cfg.decay), MovingAverage((d_sae,), cfg.decay)
        self.register_buffer("first", torch.zeros(d_sae, dtype=torch.bool))
        self.first: Tensor
        """Which features are in group 1 [d_sae]."""

    @torch.no_grad()
    def observe(self, ctx: Context) -> None:
        self.statistics.update(batch_statistics(ctx.feature_acts, len(ctx.x)))
        if self.cfg.grouping == "relative_threshold":
            statistic = self.statistics.value[STATISTICS.index(self.cfg.statistic)]
            self.first.copy_(statistic > self.cfg.alpha * statistic.max())
        elif self.cfg.grouping == "kmeans":
            if ctx.step % self.cfg.regroup_every == 0:
                self.first.copy_(larger_cluster(self.statistics.value[:CLUSTERED], ctx.seed))
        else:
            for rate, role in ((self.retain, RETAIN), (self.forget, FORGET)):
                tokens = ctx.batch.role == role
                rate.update(firing_rates(ctx.feature_acts, tokens), where=tokens.any())
            self.first.copy_(self.forget.value > self.retain.value)

    def forward(self, ctx: Context) -> PenaltyValue:
        W, first = ctx.sae.W_dec, self.first
        n_first = first.sum()
        total = squared_products_between(W, first, ~first)
        value = reduced(total, self.cfg.reduction, len(W), n_first * (len(W) - n_first))
        return PenaltyValue(value, {"group_1": n_first, "group_2": len(W) - n_first})

    def monitor(self, ctx: Context) -> dict[str, Any]:
        quantiles = torch.linspace(0, 1, 11, dtype=self.statistics.value.dtype, device=self.first.device)
        spread = {
            name: statistic.quantile(quantiles).tolist()
            for name, statistic in zip(STATISTICS, self.statistics.value, strict=True)
        }
        n_first = int(self.first.sum())
        sizes = [n_first, len(self.first) - n_first]
        return {"groups": {"sizes": sizes, "first": self.first[:256].long().tolist(), "deciles": spread}}


def batch_statistics(f: Features, n_tokens: int) -> Tensor:
    """Mean, max, standard deviation and firing frequency of each feature over the batch [4, d_sae]."""
    if isinstance(f, DenseFeatures):
        f_BF = f.values.float()
        return torch.stack([f_BF.mean(0), f_BF.amax(0), f_BF.std(0, correction=0), (f_BF > 0).float().mean(0)])
    _, feature, value = f.listed()
    value, zeros = value.float(), value.new_zeros(f.d_sae, dtype=torch.float32)
    mean = zeros.index_add(0, feature, value) / n_tokens
    # on the tokens where a feature is not listed, it deviates by its mean
    square = zeros.index_add(0, feature, (value - mean[feature]).square())
    square += (n_tokens - counts(feature, f.d_sae)) * mean.square()
    largest = zeros.scatter_reduce(0, feature, value, "amax")
    every = torch.ones(n_tokens, dtype=torch.bool, device=value.device)
    return torch.stack([mean, largest, (square / n_tokens).sqrt(), firing_rates(f, every)])


def firing_rates(f: Features, tokens: Tensor) -> Tensor:
    """Share of the tokens that are true in `tokens` [B] on which each feature is active [d_sae]; NaN without tokens."""
    if isinstance(f, DenseFeatures):
        n_active = ((f.values > 0) & tokens[:, None]).sum(0)
    else:
        token, feature, value = f.listed()
        n_active = counts(feature, f.d_sae, among=(value > 0) & tokens[token])
    return n_active.float() / tokens.sum()


def larger_cluster(statistics: Tensor, seed: int) -> Tensor:
    """Which features are in the cluster of the larger mean, of two [d_sae], bool. statistics [3, d_sae].

    scikit-learn's k-means on standardised statistics; features with all statistics equal are one cluster.
    """
    from sklearn.cluster import KMeans

    points = statistics.T.double().cpu()
    spread = points.std(0, correction=0)
    points = (points - points.mean(0)) / torch.where(spread > 0, spread, 1)
    if len(points.unique(dim=0)) < 2:
        return torch.zeros(len(points), dtype=torch.bool)
    found = KMeans(2, n_init=4, random_state=seed).fit(points.numpy())
    labels = torch.from_numpy(found.labels_)
    return labels == int(found.cluster_centers_[:, 0].argmax())


CONFIG = SelectiveOrthoConfig
COMPONENT = SelectiveOrtho
