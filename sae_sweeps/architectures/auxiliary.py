"""The auxiliary loss that brings dead features back. Gao et al. 2024 (arXiv 2406.04093)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae_sweeps.architectures.features import TopKFeatures

if TYPE_CHECKING:
    from sae_sweeps.architectures.base import SAE
    from sae_sweeps.training.context import Context


def auxiliary_loss(sae: SAE, ctx: Context, k_aux: int | None) -> Tensor:
    """Squared error of modelling the residual with the k_aux largest dead features, summed over d_in, mean over tokens.

    `k_aux` None means d_in / 2. Scaled down while fewer than k_aux features are dead, as in the paper's released code.
    """
    dead = sae.dead()
    n_dead = int(dead.sum())
    if n_dead == 0:
        return ctx.z.new_zeros((), dtype=torch.float32)
    wanted = k_aux or max(1, len(sae.b_dec) // 2)
    z_dead = ctx.z.masked_fill(~dead, -torch.inf)
    values, indices = z_dead.topk(min(wanted, n_dead), dim=1, sorted=False)
    e_hat = TopKFeatures(values.relu().float(), indices, sae.d_sae).decode(sae.W_dec)
    return (ctx.error.detach() - e_hat).square().sum(1).mean() * min(1.0, n_dead / wanted)
