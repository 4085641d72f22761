"""New groups of features: reassigned by similarity to the groups' centres, or resized by mutual information."""

import torch
from torch import Tensor


def centres(W_FD: Tensor, group_of_F: Tensor, n_groups: int) -> Tensor:
    """Mean row of each group, unit norm [G, D]; 0 for an empty group."""
    sums = W_FD.new_zeros(n_groups, W_FD.shape[1]).index_add(0, group_of_F, W_FD)
    return torch.nn.functional.normalize(sums, dim=1)


def balanced_assignment(similarity_FG: Tensor, capacity_G: Tensor) -> Tensor:
    """Group of each feature [F], with capacity_G places in each group, as many in all as there are features.

    In rounds: each unassigned feature proposes to the most similar group with free places, which takes the most similar
    of them. Ties go to the lower number.
    """
    group_of_F = torch.full_like(similarity_FG[:, 0], -1, dtype=torch.int64)
    free_G = capacity_G.clone()
    while len(waiting := (group_of_F < 0).nonzero().squeeze(1)):
        best, choice = similarity_FG[waiting].masked_fill(free_G == 0, -torch.inf).max(1)
        order = best.argsort(descending=True, stable=True)
        order = order[choice[order].argsort(stable=True)]
        choice = choice[order]
        proposals_G = torch.bincount(choice, minlength=len(free_G))
        rank = torch.arange(len(choice), device=choice.device) - (proposals_G.cumsum(0) - proposals_G)[choice]
        taken = rank < free_G[choice]
        group_of_F[waiting[order[taken]]] = choice[taken]
        free_G -= torch.bincount(choice[taken], minlength=len(free_G))
    return group_of_F


def resized(
    group_of_F: Tensor, mi_GG: Tensor, W_FD: Tensor, n_pairs: int, share: float, max_size: int
) -> tuple[Tensor, list[tuple[int, int, float]]]:
    """New group of each feature [F], and (from, to, MI) of each pair of groups between which features moved.

    The `n_pairs` pairs with the largest MI, no group in two of them: the smaller group (at a tie, the higher number)
    gives `share` of its features, at least one, those most similar to the larger group's centre, which holds at most
    `max_size`. No group is emptied.
    """
    n_groups, group_of_F = len(mi_GG), group_of_F.clone()
    centre_GD = centres(W_FD, group_of_F, n_groups)
    size = torch.bincount(group_of_F, minlength=n_groups).tolist()
    g, h = torch.triu_indices(n_groups, n_groups, 1, device=mi_GG.device)
    value, order = mi_GG[g, h].sort(descending=True, stable=True)
    free, moves = set(range(n_groups)), list[tuple[int, int, float]]()
    for mi, one, other in zip(value.tolist(), g[order].tolist(), h[order].tolist(), strict=True):
        if len(moves) == n_pairs or mi <= 0:
            break
        if one not in free or other not in free:
            continue
        giver, taker = (one, other) if size[other] > size[one] else (other, one)
        n_moved = min(max(1, round(share * size[giver])), size[giver] - 1, max_size - size[taker])
        if n_moved < 1:
            continue
        members = (group_of_F == giver).nonzero().squeeze(1)
        nearest = (W_FD[members] @ centre_GD[taker]).argsort(descending=True, stable=True)[:n_moved]
        group_of_F[members[nearest]] = taker
        free -= {giver, taker}
        moves.append((giver, taker, mi))
    return group_of_F, moves
