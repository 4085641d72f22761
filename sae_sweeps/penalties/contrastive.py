"""Contrastive SAE: features of tokens that belong together are alike under a learnt projection.

    L = lambda2 * (InfoNCE of u_t + diversity_weight * D),     u_t = f_t H / |f_t H|,  H [d_sae, head_dim] learnt

with the InfoNCE of `kernels/info_nce.py` over all rows of the batch: each row that has positives is an anchor, every
other row a candidate. Positives:

    adjacent       rows of the same sequence at neighbouring positions
    top5_similar   the 5 rows of largest cosine with the anchor's, no gradient through the choice: by feature
                   activations f (as recorded) or by the head's output u, of the rows with a cosine above 0; or by x
    pairs          precomputed pairs of one role: rows i and i + B/2; candidates are the positive and all rows of
                   another role, but no further rows of the same role

D = 1 - H(q) / log d_sae, q_i = sum_t f_ti / sum_tj f_tj: feature diversity, 0 where all features are used alike, 1
where one carries everything; 0 where nothing fires. docs/methods.md, "Penalties"; figures of the study:
`reference:contrastive`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sae_sweeps.errors import ConfigError, NeedsRoles
from sae_sweeps.fields import AtLeastOne, NotNegative, Positive, added, one_of
from sae_sweeps.kernels.choose import asynchronous
from sae_sweeps.kernels.counts import counts
from sae_sweeps.kernels.features import Features, TopKFeatures
from sae_sweeps.kernels.info_nce import (
    Pairs,
    info_nce,
    masked_info_nce,
    neighbour_mask,
    neighbours,
    similarities,
    unit_rows,
)
from sae_sweeps.penalties.base import Penalty, PenaltyValue, WeightedConfig

if TYPE_CHECKING:
    from sae_sweeps.architectures.batch import Batch
    from sae_sweeps.architectures.context import Context
    from sae_sweeps.config.run import RunConfig

N_SIMILAR = 5


@dataclass
class ContrastiveConfig(WeightedConfig):
    positives: Annotated[str, one_of("adjacent", "top5_similar", "pairs")]
    """adjacent: neighbouring tokens; top5_similar: the 5 nearest of the batch; pairs: precomputed, of one role."""
    head_dim: AtLeastOne[int]
    """Dimensions of the head."""
    temperature: Positive[float]
    """tau of the InfoNCE."""
    diversity_weight: NotNegative[float]
    """Weight of the feature-diversity term, relative to the InfoNCE; 0 turns it off."""
    similar_by: Annotated[str, one_of("feature_acts", "head", "x")] = added("x")
    """What top5_similar compares: feature activations, the head's output, or the activations x that are encoded."""

    def unused_keys(self) -> dict[str, str]:
        return {} if self.positives == "top5_similar" else {"similar_by": "only penalty.positives=top5_similar uses it"}

    def sampling(self) -> str:
        return {"adjacent": "adjacent_pairs", "top5_similar": "tokens", "pairs": "role_pairs"}[self.positives]

    def check_run(self, run: RunConfig) -> None:
        if self.positives == "pairs" and run.synthetic:
            raise NeedsRoles(
                "penalty.positives=pairs: model=synthetic has no roles; choose a model, or penalty.positives=adjacent."
            )
        sampling = run.train.sampling
        if self.positives == "pairs" and sampling not in ("role_pairs", "text_pairs"):
            raise ConfigError(f"train.sampling={sampling}: penalty.positives=pairs needs role_pairs; leave it at auto.")
        if self.positives == "adjacent" and sampling == "tokens":
            raise ConfigError(
                "train.sampling=tokens: shuffled tokens are hardly ever neighbours, which penalty.positives=adjacent "
                "needs; leave it at auto."
            )

    def result_warnings(self, rows: list[dict[str, Any]]) -> list[str]:
        anchors = [row["penalty/anchors"] for row in rows if "penalty/anchors" in row]
        idle = anchors.count(0) / max(len(anchors), 1)
        return [f"no token had a positive and a negative in {idle:.0%} of the logged steps"] if idle >= 0.1 else []


class Contrastive(Penalty):
    cfg: ContrastiveConfig

    def __init__(self, cfg: ContrastiveConfig, d_in: int, d_sae: int, total_steps: int, generator: torch.Generator):
        super().__init__(cfg, d_in, d_sae, total_steps, generator)
        self.head = nn.Parameter(torch.randn(d_sae, cfg.head_dim, generator=generator) / d_sae**0.5)

    def project(self, f: Features) -> Tensor:
        """u [B, head_dim], unit rows; 0 for a token on which nothing fires."""
        with torch.autocast(self.head.device.type, enabled=False):
            return unit_rows(f.decode(self.head))

    def pairs(self, ctx: Context, u_BD: Tensor) -> tuple[Pairs, Tensor | None]:
        """(anchor, positive), and the candidates of each row [B, B] bool; None where all other rows are."""
        batch = ctx.batch
        if self.cfg.positives == "adjacent":
            return neighbours(batch.sequence, batch.position), None
        if self.cfg.positives == "top5_similar":
            nearest, kept = self.similar(ctx, u_BD)
            row = torch.arange(len(kept), device=kept.device)
            return (row.repeat_interleave(kept.sum(1)), nearest[kept]), None
        return role_pairs(batch), role_candidates(batch)

    def masks(self, ctx: Context, u_BD: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `pairs`, with the pairs as a mask [B, B]."""
        batch = ctx.batch
        if self.cfg.positives == "adjacent":
            return neighbour_mask(batch.sequence, batch.position), None
        none_BB = torch.zeros(len(batch), len(batch), dtype=torch.bool, device=u_BD.device)
        if self.cfg.positives == "top5_similar":
            return none_BB.scatter(1, *self.similar(ctx, u_BD)), None
        return none_BB.index_put(role_pairs(batch), none_BB.new_ones(())), role_candidates(batch)

    @torch.no_grad()
    def similar(self, ctx: Context, u_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The other rows most similar to each row [B, 5], and which of them are alike enough to be its positives."""
        with torch.autocast(u_BD.device.type, enabled=False):
            if self.cfg.similar_by == "x":
                x_BD = normalize(ctx.x)
                return largest(x_BD @ x_BD.T, -math.inf)
            if self.cfg.similar_by == "head":
                return largest(u_BD @ u_BD.T, 0.0)
            # row a of the product is |f_a| times the cosines, which leaves their order as it is
            return largest(ctx.feature_acts.decode(normalize(ctx.feature_acts.dense()).T.contiguous()), 0.0)

    def forward(self, ctx: Context) -> PenaltyValue:
        u_BD = self.project(ctx.feature_acts)
        if asynchronous(u_BD):
            positive_BB, candidate_BB = self.masks(ctx, u_BD)
            loss = masked_info_nce(u_BD, positive_BB, self.cfg.temperature, candidate_BB)
            n_positive = positive_BB.sum(1)
        else:
            pairs, candidate_BB = self.pairs(ctx, u_BD)
            loss = info_nce(u_BD, pairs, self.cfg.temperature, candidate_BB)
            n_positive = counts(pairs[0], len(ctx.x))
        n_candidates = len(ctx.x) - 1 if candidate_BB is None else candidate_BB.sum(1)
        anchors = (n_positive > 0) & (n_candidates > n_positive)
        terms: dict[str, float | Tensor] = {"info_nce": loss.detach(), "anchors": anchors.float().mean()}
        if self.cfg.diversity_weight:
            diversity = concentration(ctx.feature_acts)
            loss = loss + self.cfg.diversity_weight * diversity
            terms["diversity"] = diversity.detach()
        return PenaltyValue(loss, terms)

    @torch.no_grad()
    def monitor(self, ctx: Context) -> dict[str, Any]:
        """Alignment (mean cosine of positives), uniformity (log mean exp(-2 |u_i - u_j|^2), Wang and Isola 2020,
        arXiv 2005.10242) and retrieval (share of anchors whose most similar candidate is a positive)."""
        u = self.project(ctx.feature_acts)
        (anchor, positive), candidate_BB = self.pairs(ctx, u)
        record: dict[str, float | None] = {"alignment": None, "uniformity": None, "retrieval": None, "chance": None}
        if len(anchor):
            rows = anchor.unique()
            s_AB = similarities(u, candidate_BB, rows)
            is_positive = torch.zeros(len(u), len(u), dtype=torch.bool, device=u.device)
            is_positive[anchor, positive] = True
            hits = is_positive[rows].gather(1, s_AB.argmax(1, keepdim=True))
            record["alignment"] = float((u[anchor] * u[positive]).sum(1).mean())
            record["retrieval"] = float(hits.float().mean())
            record["chance"] = float((is_positive[rows].sum(1) / (s_AB > -torch.inf).sum(1)).mean())
        if len(u) > 1:
            squared_distances = torch.pdist(u).square()
            record["uniformity"] = float((-2 * squared_distances).exp().mean().log())
        return {"contrastive": record}


def largest(similarity_BB: Tensor, above: float) -> tuple[Tensor, Tensor]:
    """The N_SIMILAR other rows of largest similarity to each row [B, 5], and which of them exceed `above`."""
    similarity_BB.fill_diagonal_(-math.inf)
    most, nearest = similarity_BB.topk(min(N_SIMILAR, len(similarity_BB) - 1), dim=1)
    return nearest, most > above


def role_pairs(batch: Batch) -> Pairs:
    """Rows i and i + B/2, each pair in both orders."""
    first = torch.arange(len(batch) // 2, device=batch.x.device)
    second = first + len(first)
    return torch.cat([first, second]), torch.cat([second, first])


def role_candidates(batch: Batch) -> Tensor:
    """Candidates of each row [B, B]: its positive and all rows of another role."""
    candidate_BB = batch.role[:, None] != batch.role
    # texts in pairs without roles: all other rows are candidates
    others_BB = ~torch.eye(len(batch), dtype=torch.bool, device=batch.x.device)
    candidate_BB |= others_BB & (batch.role == batch.role[0]).all()
    pairs = role_pairs(batch)
    return candidate_BB.index_put(pairs, candidate_BB.new_ones(()))


def concentration(f: Features) -> Tensor:
    """D = 1 - H(q) / log d_sae of the share q of all activation that each feature carries; scalar.

    No gradient reaches features that fire nowhere in the batch, where that of q log q has no bound.
    """
    if isinstance(f, TopKFeatures):
        usage = f.values.new_zeros(f.d_sae).index_add(0, f.indices.flatten(), f.values.flatten())
    else:
        usage = f.dense().sum(0)
    usage = usage * (usage > 0)
    total = usage.sum()
    q = usage / torch.where(total > 0, total, 1)
    entropy = -(q * torch.where(q > 0, q, 1).log()).sum()
    return (1 - entropy / math.log(max(f.d_sae, 2))) * (total > 0)


CONFIG = ContrastiveConfig
COMPONENT = Contrastive
