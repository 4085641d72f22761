"""The auxiliary loss that revives dead features. Gao et al. 2024 (arXiv 2406.04093)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae_sweeps.kernels import choose, dead_columns
from sae_sweeps.kernels.features import TopKFeatures
from sae_sweeps.kernels.pairs import per_token

if TYPE_CHECKING:
    from sae_sweeps.architectures.base import SAE
    from sae_sweeps.architectures.context import Context


def auxiliary_loss(sae: SAE, ctx: Context, k_aux: int | None) -> Tensor:
    """Squared error of modelling the residual with the k_aux largest dead features, summed over d_in, mean over tokens.

    `k_aux` None means d_in / 2. Scaled down while fewer than k_aux features are dead, as in the paper's released code.
    """
    dead, k_aux = sae.dead(), k_aux or max(1, len(sae.b_dec) // 2)
    if choose.asynchronous(dead):
        return _squares_left(sae, ctx, dead, k_aux).mean() * (dead.sum() / k_aux).clamp(max=1.0)
    n_dead = int(dead.sum())
    if n_dead == 0:
        return ctx.x.new_zeros((), dtype=torch.float32)
    n_chosen = min(k_aux, n_dead)
    if sae.kernels is None:
        values, indices = ctx.pre_acts.masked_fill(~dead, -torch.inf).topk(n_chosen, dim=1, sorted=False)
        f = TopKFeatures(values.relu(), indices, sae.d_sae)
    else:
        numbers = dead.nonzero().squeeze(1)
        values, nth = sae.kernels.largest(ctx.pre_acts_of(numbers), n_chosen)
        pairs = per_token(numbers[nth], sae.d_sae, sae.kernels)
        values = sae.chosen(values.reshape(-1), pairs, ctx.x - sae.b_dec.detach()).view_as(nth)
        f = TopKFeatures(values.relu(), numbers[nth], sae.d_sae, pairs)
    e_hat = f.decode(sae.W_dec)
    return (ctx.error.detach() - e_hat).square().sum(1).mean() * min(1.0, n_dead / k_aux)


def _squares_left(sae: SAE, ctx: Context, dead: Tensor, k_aux: int) -> Tensor:
    """Sums of the squares [B] of what the dead features [d_sae], bool, leave of the error; no number is read."""
    kernels = dead_columns.kernels_for(sae.kernels, sae.W_dec)
    if kernels is None:
        pre_acts = ctx.pre_acts if sae.coarse is None else sae.pre_activations(ctx.x)
        e_hat = dead_columns.masked(pre_acts, dead, k_aux) @ sae.W_dec
        return (ctx.error.detach() - e_hat).square().sum(1)
    centred, weights = ctx.x - sae.b_dec.detach(), (sae.W_enc, sae.b_enc, sae.b_dec, sae.W_dec)
    coarse, z = sae.coarse is not None, ctx.pre_acts if ctx.known_pre_acts is None else ctx.known_pre_acts
    return dead_columns.squares_left(kernels, z, dead, k_aux, ctx.error, centred, weights, coarse, ctx.feature_acts)
