"""InfoNCE over the rows of a batch, with any number of positives per row, value and gradient in one pass.

    L = mean over anchors a of  mean_{p in P(a)}  -log( exp(s_ap) / sum_{j in C(a)} exp(s_aj) ),  s_ij = u_i . u_j / tau

P(a) are the positives of a, C(a) its candidates: the positives and the negatives, never a itself. Rows without a
positive are no anchors; without an anchor L = 0. With one positive this is van den Oord et al. 2018 (arXiv
1807.03748), with several the outer form of Khosla et al. 2020 (arXiv 2004.11362).

Positives are a list of pairs, or a mask of all pairs of rows: a list's length would have to be read from a GPU.
"""

import torch
from torch import Tensor

from sae_sweeps.kernels.counts import counts
from sae_sweeps.kernels.value_and_gradient import differentiable

Pairs = tuple[Tensor, Tensor]
"""(anchor, positive), rows of the batch, both [n_pairs] int64; no pair occurs twice."""

NORM_FLOOR = 1e-6
TILE = 1024
"""Anchors at a time, between groups of features."""


def info_nce(u_BD: Tensor, pairs: Pairs, temperature: float, candidate_BB: Tensor | None = None) -> Tensor:
    """L, scalar, differentiable in u_BD. candidate_BB (bool) are the C(a); without it, all rows but a."""
    if not len(pairs[0]):
        return (u_BD * 0).sum()
    value: Tensor = differentiable(u_BD, _info_nce, *pairs, temperature, candidate_BB)
    return value


def _info_nce(
    u: Tensor, anchor: Tensor, positive: Tensor, temperature: float, candidate: Tensor | None
) -> tuple[Tensor, Tensor]:
    per_row = counts(anchor, len(u))
    rows = per_row.nonzero().squeeze(1)
    place = (per_row > 0).cumsum(0)[anchor] - 1  # row of each pair's anchor in logits_AB
    weight = 1 / (per_row[anchor] * len(rows)).to(u.dtype)
    logits_AB = similarities(u, candidate, rows).div_(temperature)
    log_p_AB = logits_AB.log_softmax(1)
    value = -(weight * log_p_AB[place, positive]).sum()
    grad_AB = log_p_AB.exp_().div_(len(rows))  # dL / dlogits
    grad_AB.index_put_((place, positive), -weight, accumulate=True)
    return value, (grad_AB.T @ u[rows]).index_add_(0, rows, grad_AB @ u).div_(temperature)


def masked_info_nce(
    u_BD: Tensor, positive_BB: Tensor, temperature: float, candidate_BB: Tensor | None = None
) -> Tensor:
    """As `info_nce`; positive_BB (bool): which rows are the P(a) of each row."""
    value: Tensor = differentiable(u_BD, _masked_info_nce, positive_BB, temperature, candidate_BB)
    return value


def _masked_info_nce(
    u: Tensor, positive_BB: Tensor, temperature: float, candidate_BB: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows = torch.arange(len(u), device=u.device)
    log_p_BB = similarities(u, candidate_BB, rows).div_(temperature).log_softmax(1)
    value, grad_BB = _value_and_slope(log_p_BB, positive_BB, positive_BB.sum(1), positive_BB.any(1).sum())
    return value, (grad_BB.T @ u).addmm_(grad_BB, u).div_(temperature)


def _value_and_slope(log_p_AN: Tensor, positive_AN: Tensor, n_A: Tensor, n_anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Part of L of the rows A of log p, and dL / dlogits, which overwrites log p.

    n_A: positives of each row, 0 of rows that are no anchors; n_anchors: how many rows have some.
    """
    share_A = (n_A > 0) / n_anchors.clamp(min=1).to(log_p_AN.dtype)
    weight_AN = positive_AN * (share_A / n_A.clamp(min=1))[:, None]
    value = -(log_p_AN.masked_fill(~positive_AN, 0) * weight_AN).sum()
    # the logarithms of a row without candidates are not numbers
    grad_AN = log_p_AN.exp_().mul_(share_A[:, None]).masked_fill_((n_A == 0)[:, None], 0)
    return value, grad_AN.sub_(weight_AN)


def info_nce_between_groups(u_ND: Tensor, group_N: Tensor, temperature: float) -> Tensor:
    """L, scalar, with the other rows of its group as each row's positives and all rows but itself as its candidates.

    In tiles of anchors, so that no [N, N] matrix is held: the rows are a dictionary's features.
    """
    value: Tensor = differentiable(u_ND, _between_groups, group_N, temperature)
    return value


def _between_groups(u: Tensor, group: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    n_positive = torch.bincount(group, minlength=1)[group] - 1
    anchors = (n_positive > 0).nonzero().squeeze(1)
    value, grad = u.new_zeros(()), torch.zeros_like(u)
    for rows in anchors.split(TILE) if len(anchors) else ():
        log_p_AN = similarities(u, None, rows).div_(temperature).log_softmax(1)
        positive_AN = group[rows, None] == group
        positive_AN[torch.arange(len(rows), device=u.device), rows] = False
        weight_AN = positive_AN / (n_positive[rows, None] * len(anchors)).to(u.dtype)
        value -= (log_p_AN.masked_fill(~positive_AN, 0) * weight_AN).sum()
        grad_AN = log_p_AN.exp_().div_(len(anchors)).sub_(weight_AN)  # dL / dlogits
        grad += (grad_AN.T @ u[rows]).index_add_(0, rows, grad_AN @ u)
    return value, grad.div_(temperature)


def masked_info_nce_between_groups(
    u_ND: Tensor, group_N: Tensor, n_groups: int, member_N: Tensor, temperature: float
) -> Tensor:
    """As `info_nce_between_groups` of the rows that are true in member_N alone; group_N in 0 .. n_groups - 1."""
    value: Tensor = differentiable(u_ND, _masked_between_groups, group_N, n_groups, member_N, temperature)
    return value


def _masked_between_groups(
    u: Tensor, group: Tensor, n_groups: int, member: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    n_positive = (counts(group, n_groups, among=member)[group] - 1).clamp(min=0) * member
    n_anchors = (n_positive > 0).sum()
    value, grad = u.new_zeros(()), torch.zeros_like(u)
    for rows in torch.arange(len(u), device=u.device).split(TILE):
        log_p_AN = similarities(u, member.expand(len(u), -1), rows).div_(temperature).log_softmax(1)
        positive_AN = (group[rows, None] == group) & member & (rows[:, None] != torch.arange(len(u), device=u.device))
        positive_AN &= member[rows, None]
        part, grad_AN = _value_and_slope(log_p_AN, positive_AN, n_positive[rows], n_anchors)
        value += part
        grad.addmm_(grad_AN.T, u[rows]).index_add_(0, rows, grad_AN @ u)
    return value, grad.div_(temperature)


def similarities(u_BD: Tensor, candidate_BB: Tensor | None, rows: Tensor) -> Tensor:
    """u_a . u_j of the anchors `rows` [A] with every row j [A, B]; -inf where j is no candidate."""
    s_AB = u_BD[rows] @ u_BD.T
    s_AB[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
    return s_AB if candidate_BB is None else s_AB.masked_fill_(~candidate_BB[rows], -torch.inf)


def unit_rows(h_BD: Tensor) -> Tensor:
    """h / |h|; 0 with gradient 0 for rows shorter than NORM_FLOOR, such as those of tokens on which nothing fires."""
    squares = h_BD.square().sum(1, keepdim=True)
    long = squares > NORM_FLOOR**2
    return h_BD * torch.where(long, squares, 1).rsqrt() * long


def neighbours(sequence: Tensor, position: Tensor) -> Pairs:
    """Rows at neighbouring positions of one sequence, each pair in both orders. sequence, position [B]."""
    key = (sequence.long() << 32) + position.long()
    ordered, row_of = key.sort(stable=True)
    first, end = torch.searchsorted(ordered, key + 1), torch.searchsorted(ordered, key + 1, right=True)
    count = end - first  # a token drawn twice is two rows
    row = torch.repeat_interleave(count)
    nth = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    successor = row_of[first[row] + nth]
    return torch.cat([row, successor]), torch.cat([successor, row])


def neighbour_mask(sequence: Tensor, position: Tensor) -> Tensor:
    """The pairs of `neighbours` as a mask [B, B]."""
    distance = position[:, None].long() - position.long()
    return (sequence[:, None] == sequence) & (distance.abs() == 1)
