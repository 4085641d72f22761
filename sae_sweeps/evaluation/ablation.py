"""What ablating features does to probes: the part that TPP and SCR share.

With row means F [R, d_sae] of the features and an affine decoder, ablating a set S shifts a probe's logit on a row by
-sum_{j in S} F_j (W_dec_j . w). SAEBench runs the SAE again for every set and every class; here all numbers of features
are prefix sums of one product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_sweeps.evaluation.probes import Probes


def mean_difference(train_RF: Tensor, rows_n: Tensor, labels_n: Tensor) -> Tensor:
    """Mean feature of the rows of the class less that of the others [d_sae]."""
    rows_n, labels_n = rows_n.to(train_RF.device), labels_n.to(train_RF.device)
    return train_RF[rows_n[labels_n]].mean(0) - train_RF[rows_n[~labels_n]].mean(0)


def strongest(effects_F: Tensor, n: int) -> Tensor:
    """Up to n features with the largest effects, largest first, none whose effect is 0."""
    n_nonzero = int((effects_F != 0).sum())
    ranked = effects_F.masked_fill(effects_F == 0, -torch.inf).topk(min(n, n_nonzero)).indices
    return ranked


def logits_after(
    base_RC: Tensor, features_RF: Tensor, chosen_n: Tensor, dot_FC: Tensor, n_values: list[int]
) -> dict[int, Tensor]:
    """Logits [R, C] of C probes after ablating the first n of `chosen_n`, for each n.

    Args:
        base_RC: logits as they are; features_RF: row means; dot_FC: W_dec_j . w_c.
    """
    out, logits_RC, done = {}, base_RC, 0
    for n in sorted(n_values):
        more = chosen_n[done : min(n, len(chosen_n))]
        if len(more):
            logits_RC = logits_RC - features_RF[:, more] @ dot_FC[more]
        done += len(more)
        out[n] = logits_RC
    return out


def logits_of(probes: Probes, x_RD: Tensor) -> Tensor:
    """Logits [R, C] of all probes on all rows."""
    return x_RD @ probes.weight_CD.T.to(x_RD) + probes.bias_C.to(x_RD)
