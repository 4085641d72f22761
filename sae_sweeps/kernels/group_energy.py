"""Norm of each group of features, and features times a factor for each group, for dense f.

Plain autograd gives the same with three times as many [B, d_sae] temporaries, which dominate the cost here.
"""

from typing import Any

import torch
from torch import Tensor


def group_norms(f_BF: Tensor, group_of_F: Tensor, n_groups: int) -> Tensor:
    """E_tg = || f_t restricted to g ||_2 [B, G]; its gradient, f / E, is 0 where it is 0."""
    norms: Tensor = GroupNorms.apply(f_BF, group_of_F, n_groups)
    return norms


def scaled_groups(f_BF: Tensor, gate_BG: Tensor, group_of_F: Tensor) -> Tensor:
    """f_ti gate_tg of the group g of i [B, d_sae]."""
    scaled: Tensor = ScaledGroups.apply(f_BF, gate_BG, group_of_F)
    return scaled


def _sum_by_group(x_BF: Tensor, group_of_F: Tensor, n_groups: int) -> Tensor:
    return x_BF.new_zeros(len(x_BF), n_groups).index_add_(1, group_of_F, x_BF)


class GroupNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, group: Tensor, n_groups: int) -> Tensor:
        norms = _sum_by_group(f.square(), group, n_groups).sqrt_()
        ctx.save_for_backward(f, group, norms)
        return norms

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        f, group, norms = ctx.saved_tensors
        per_norm = torch.where(norms > 0, grads[0] / norms, 0)
        return per_norm.index_select(1, group).mul_(f), None, None


class ScaledGroups(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, gate: Tensor, group: Tensor) -> Tensor:
        ctx.save_for_backward(f, gate, group)
        return gate.index_select(1, group).mul_(f)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        f, gate, group = ctx.saved_tensors
        on_gate = _sum_by_group(grads[0] * f, group, gate.shape[1]) if ctx.needs_input_grad[1] else None
        return gate.index_select(1, group).mul_(grads[0]), on_gate, None
