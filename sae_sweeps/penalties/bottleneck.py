"""Structured information bottleneck: groups of features that share little information.

    L = lambda2 L_MI + group_lasso_weight L_lasso + l2_weight L_2 + contrastive_weight L_nce

    L_MI    = mean_{g<h} -0.5 log(1 - min(rho_gh^2, 0.9999)), rho the correlation of the groups' energies E_g and E_h
              over the last W tokens in token order (`GroupLayer.recent`); gradient through the current batch only
    L_lasso = mean_t sum_g sqrt(features in g) E_tg                       (Yuan and Lin 2006)
    L_2     = ||W_enc||^2 + ||W_dec||^2; with unit-norm decoder rows the second is the constant d_sae
    L_nce   = InfoNCE (`kernels/info_nce.py`): between tokens, of the energy profiles E_t / |E_t|, adjacent tokens being
              each other's positives; or between groups, of the features' activations over the batch,
              v_i = (f_1i, ..., f_Bi) / |f_.i|, features of one group being each other's positives:

              mean_i mean_{j in g(i), j != i} -log( exp(v_i . v_j / tau) / sum_{l != i} exp(v_i . v_l / tau) )

              A feature that fires nowhere in the batch takes no part; one alone in its group is no anchor, but
              remains a negative of the others

Groups, W and the options that change f belong to the group layer. The four weights are part of the loss, so the
penalty's own weight is 1 times the schedule. docs/methods.md, "Penalties"; figures of the study:
`reference:information_bottleneck`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from sae_sweeps.errors import ConfigError
from sae_sweeps.fields import NotNegative, Positive, added, one_of
from sae_sweeps.kernels.choose import asynchronous
from sae_sweeps.kernels.info_nce import (
    NORM_FLOOR,
    info_nce,
    info_nce_between_groups,
    masked_info_nce,
    masked_info_nce_between_groups,
    neighbour_mask,
    neighbours,
    unit_rows,
)
from sae_sweeps.penalties.base import Penalty, PenaltyConfig, PenaltyValue

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context
    from sae_sweeps.config.run import RunConfig

WEIGHTS = ("lambda2_max", "group_lasso_weight", "l2_weight", "contrastive_weight")


@dataclass
class BottleneckConfig(PenaltyConfig):
    lambda2_max: NotNegative[float]
    """Weight of the mutual information between groups: a mean over pairs, some 0.01 nats, so weights are large."""
    group_lasso_weight: NotNegative[float]
    """Weight of the group lasso."""
    l2_weight: NotNegative[float]
    """Weight of the squared norm of the weights."""
    contrastive_weight: NotNegative[float]
    """Weight of the InfoNCE; `contrast` decides between what."""
    temperature: Positive[float]
    """tau of that InfoNCE."""
    contrast: Annotated[str, one_of("tokens", "groups")] = added("tokens")
    """tokens: adjacent tokens have similar energy profiles; groups: the features of a group fire on the same tokens of
    the batch, those of other groups on others."""

    def unused_keys(self) -> dict[str, str]:
        why = "penalty.contrastive_weight=0 leaves InfoNCE out"
        return {} if self.contrastive_weight else dict.fromkeys(("temperature", "contrast"), why)

    def peak_weight(self) -> float:
        """1, as the loss contains the weights; 0 where all of them are 0."""
        return float(any(getattr(self, key) > 0 for key in WEIGHTS))

    def sampling(self) -> str:
        return "contiguous_windows"

    def check_run(self, run: RunConfig) -> None:
        if run.group_layer.name == "none":
            raise ConfigError("group_layer=none: penalty=bottleneck needs groups; give group_layer=groups.")
        if self.contrastive_weight and self.contrast == "tokens" and run.train.sampling == "tokens":
            raise ConfigError(
                "train.sampling=tokens: shuffled tokens are hardly ever neighbours, which penalty.contrastive_weight="
                f"{self.contrastive_weight:g} needs with penalty.contrast=tokens; leave it at auto."
            )


class Bottleneck(Penalty):
    cfg: BottleneckConfig

    def forward(self, ctx: Context) -> PenaltyValue:
        cfg, groups = self.cfg, ctx.groups
        assert groups is not None
        with torch.autocast(ctx.x.device.type, enabled=False):
            E_BG = groups.energies(ctx.feature_acts)
            terms: dict[str, tuple[Tensor, float]] = {}
            if cfg.lambda2_max:
                n_pairs = groups.n_groups * (groups.n_groups - 1)
                mi = groups.recent_information(E_BG).sum() / n_pairs
                terms["mi"] = mi, cfg.lambda2_max
            if cfg.group_lasso_weight:
                terms["group_lasso"] = (E_BG @ groups.sizes().to(E_BG.dtype).sqrt()).mean(), cfg.group_lasso_weight
            if cfg.l2_weight:
                terms["l2"] = ctx.sae.W_enc.square().sum() + ctx.sae.W_dec.square().sum(), cfg.l2_weight
            if cfg.contrastive_weight:
                nce = self.between_groups(ctx) if cfg.contrast == "groups" else self.between_tokens(ctx, E_BG)
                terms["contrastive"] = nce, cfg.contrastive_weight
        loss = sum((value * weight for value, weight in terms.values()), start=ctx.x.new_zeros(()))
        return PenaltyValue(loss, {name: value.detach() for name, (value, _) in terms.items()})

    def between_tokens(self, ctx: Context, E_BG: Tensor) -> Tensor:
        places = ctx.batch.sequence, ctx.batch.position
        if asynchronous(E_BG):
            return masked_info_nce(unit_rows(E_BG), neighbour_mask(*places), self.cfg.temperature)
        return info_nce(unit_rows(E_BG), neighbours(*places), self.cfg.temperature)

    def between_groups(self, ctx: Context) -> Tensor:
        assert ctx.groups is not None
        f_FB, group_of_F = ctx.feature_acts.dense().T, ctx.groups.group_of_F
        fires = f_FB.detach().square().sum(1) > NORM_FLOOR**2
        if asynchronous(f_FB):
            of_groups = group_of_F, ctx.groups.n_groups, fires
            return masked_info_nce_between_groups(unit_rows(f_FB), *of_groups, self.cfg.temperature)
        return info_nce_between_groups(unit_rows(f_FB[fires]), group_of_F[fires], self.cfg.temperature)


CONFIG = BottleneckConfig
COMPONENT = Bottleneck
