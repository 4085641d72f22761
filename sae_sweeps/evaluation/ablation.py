"""The effect of ablating features on probes, for TPP and SCR.

With row means F [R, d_sae] of the features and an affine decoder, ablating a set S shifts a probe's logit on a row by
-sum_{j in S} F_j (W_dec_j . w). SAEBench runs the SAE again for every set and every class.
"""

from __future__ import annotations

from torch import Tensor

from sae_sweeps.evaluation.probes import Probes


def mean_difference(train_RF: Tensor, rows_n: Tensor, labels_n: Tensor) -> Tensor:
    """Mean feature of the rows of the class less that of the others [d_sae]."""
    rows_n, labels_n = rows_n.to(train_RF.device), labels_n.to(train_RF.device)
    return train_RF[rows_n[labels_n]].mean(0) - train_RF[rows_n[~labels_n]].mean(0)


def strongest(effects_F: Tensor, n: int) -> Tensor:
    """Features with the n largest effects, or as many as have one.

    As in SAEBench, effects of 0 are not counted but may be chosen: they rank before negative ones.
    """
    return effects_F.topk(min(n, int((effects_F != 0).sum()))).indices


def logits_after(
    base_RC: Tensor, features_RF: Tensor, effects_F: Tensor, dot_FC: Tensor, n_values: list[int]
) -> dict[int, Tensor]:
    """Logits [R, C] of C probes after ablating the n strongest features, for each n.

    Args:
        base_RC: logits as they are; features_RF: row means; dot_FC: W_dec_j . w_c.
    """
    chosen = {n: strongest(effects_F, n) for n in n_values}
    return {n: base_RC - features_RF[:, features] @ dot_FC[features] for n, features in chosen.items()}


def logits_of(probes: Probes, x_RD: Tensor) -> Tensor:
    """Logits [R, C] of all probes on all rows."""
    return x_RD @ probes.weight_CD.T.to(x_RD) + probes.bias_C.to(x_RD)
