"""How many of a synthetic world's true features an SAE has found."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLD = 0.9
"""Cosine from which a decoder row counts as a true feature, as is usual for synthetic data."""
MERGED = 4
"""Most true features whose sum a row is compared with: a correlated group or a family of the default world. By chance
no random row (64 dimensions, 256 features) comes near a sum of up to 6."""


@torch.no_grad()
def recovery(
    W_dec: Tensor, features_FD: Tensor, kind: list[str], parent_F: Tensor, threshold: float = THRESHOLD
) -> dict[str, float]:
    """Measures of recovery, overall and by kind of true feature (suffixes `_correlated`, `_hierarchical`, `_plain`, and
    of the hierarchical ones `_parents` and `_children`).

    recovery_mmcs     mean over true features of the largest cosine with a decoder row
    recovery_matched  mean cosine after the assignment of rows to true features that makes it largest (Hungarian)
    recovery_share    share of true features whose assigned row is above the threshold
    recovery_split    share of true features with two rows or more above the threshold
    recovery_merged   share of decoder rows above the threshold with the sum of their two, three or four nearest true
                      features, and nearer to it than to any one; by kind of the nearest

    Args:
        W_dec: decoder rows [d_sae, d_in].
        features_FD: true directions, unit norm [n_features, d_in].
        kind: of each true feature; parent_F: its parent's number or -1 [n_features].
    """
    from scipy.optimize import linear_sum_assignment

    rows = F.normalize(W_dec.float(), dim=1)
    features = features_FD.to(rows)
    cosine_FS = features @ rows.T
    best_F = cosine_FS.amax(1)
    split_F = (cosine_FS > threshold).sum(1) >= 2
    assigned, row = linear_sum_assignment(cosine_FS.cpu().numpy(), maximize=True)
    matched_F = torch.zeros(len(features), device=rows.device)  # 0 where there are fewer rows than features
    matched_F[torch.from_numpy(assigned)] = cosine_FS[torch.from_numpy(assigned), torch.from_numpy(row)]
    nearest_S = cosine_FS.argmax(0)
    merged_S = _merged(rows, features, cosine_FS, threshold)

    out: dict[str, float] = {}
    for suffix, member_F in _kinds(kind, parent_F.to(rows.device)).items():
        if not bool(member_F.any()):
            continue
        out |= {
            f"recovery_mmcs{suffix}": float(best_F[member_F].mean()),
            f"recovery_matched{suffix}": float(matched_F[member_F].mean()),
            f"recovery_share{suffix}": float((matched_F[member_F] > threshold).float().mean()),
            f"recovery_split{suffix}": float(split_F[member_F].float().mean()),
            f"recovery_merged{suffix}": float((merged_S & member_F[nearest_S]).float().mean()),
        }
    return out


def _kinds(kind: list[str], parent_F: Tensor) -> dict[str, Tensor]:
    """Suffix of a metric's name -> which true features it covers [n_features], bool."""
    is_kind = {
        name: torch.tensor([k == name for k in kind], device=parent_F.device)
        for name in ("correlated", "hierarchical", "plain")
    }
    whole = torch.ones_like(parent_F, dtype=torch.bool)
    children = parent_F >= 0
    return {
        "": whole,
        **{f"_{name}": member for name, member in is_kind.items()},
        "_parents": is_kind["hierarchical"] & ~children,
        "_children": children,
    }


def _merged(rows: Tensor, features: Tensor, cosine_FS: Tensor, threshold: float) -> Tensor:
    """Which rows point at the sum of two to MERGED true features rather than at one [d_sae], bool."""
    nearest = cosine_FS.topk(min(MERGED, len(features)), dim=0)
    total = features[nearest.indices[0]]
    merged = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for further in nearest.indices[1:]:
        total = total + features[further]
        with_sum = (rows * F.normalize(total, dim=1)).sum(1)
        merged |= (with_sum > threshold) & (with_sum > nearest.values[0])
    return merged
