"""Whether tokens with the same label have similar features, and whether single features distinguish the labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.evaluation.selection import fold_masks

MOST_DIMENSIONS = 50
TOP = 10


def label_separation(
    f_BF: Tensor, labels_B: Tensor, seed: int = 0, max_tokens: int = 4000, selection: str = "validation"
) -> dict[str, float]:
    """`nmi`, `silhouette`, `feature_mi`, `feature_mi_top10`; empty for fewer than two labels.

    Features of each token are scaled to unit norm and reduced to at most 50 dimensions (truncated SVD). nmi compares
    k-means clusters of that, as many as there are labels, with the labels (0 to 1); silhouette is that of the labels
    themselves in cosine distance (-1 to 1); both by scikit-learn. They are high where the
    label is the main difference between tokens; on single tokens that is the word, so both are near 0 for most SAEs.
    The other two are high where some feature is about the label (see `information`): that of the most informative
    feature, and the mean of the ten most informative.

    Tokens on which nothing fires are left out. Seeded; of more than `max_tokens` tokens a sample is taken.

    Args:
        f_BF: features [n, d_sae]; labels_B: whole numbers [n].
        selection: on which tokens the most informative features are chosen and measured, as in `information`.
    """
    from scipy.sparse import csr_matrix
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.metrics import normalized_mutual_info_score, silhouette_score
    from sklearn.preprocessing import normalize

    fires = (f_BF != 0).any(1)
    f_BF, labels = f_BF[fires], labels_B.cpu()[fires.cpu()].numpy()
    if len(labels) > max_tokens:
        chosen = np.sort(np.random.default_rng(seed).choice(len(labels), max_tokens, replace=False))
        f_BF, labels = f_BF[torch.from_numpy(chosen).to(f_BF.device)], labels[chosen]
    n_labels = len(np.unique(labels))
    if not 2 <= n_labels < len(labels):
        return {}
    label_n, by_fold = torch.from_numpy(labels), []
    for choosing_n, measured_n in fold_masks(label_n, selection):
        found_F = information(f_BF[choosing_n.to(f_BF.device)], label_n[choosing_n])
        best = found_F.topk(min(TOP, f_BF.shape[1])).indices
        by_fold.append(information(f_BF[measured_n.to(f_BF.device)], label_n[measured_n])[best])
    largest = torch.stack(by_fold).mean(0)
    points = normalize(csr_matrix(f_BF.float().cpu().numpy()))
    if points.shape[1] > MOST_DIMENSIONS:
        points = TruncatedSVD(MOST_DIMENSIONS, random_state=seed).fit_transform(points)
    else:
        points = points.toarray()
    clusters = KMeans(n_labels, n_init=3, random_state=seed).fit_predict(points)
    return {
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "silhouette": float(silhouette_score(points, labels, metric="cosine")),
        "feature_mi": float(largest[0]),
        "feature_mi_top10": float(largest.mean()),
    }


def information(f_BF: Tensor, labels_B: Tensor) -> Tensor:
    """Mutual information of each feature's firing and the label, I(f > 0; label) / H(label) [d_sae], 0 to 1."""
    one_hot = torch.nn.functional.one_hot(torch.unique(labels_B, return_inverse=True)[1]).to(f_BF.device).float()
    fires_FL = ((f_BF > 0).float().T @ one_hot).double() / len(f_BF)
    label_L = one_hot.double().mean(0)
    joint = entropy(torch.cat([fires_FL, label_L - fires_FL], dim=1))
    share_F = fires_FL.sum(1)
    own = entropy(torch.stack([share_F, 1 - share_F], dim=1))
    return ((own + entropy(label_L) - joint) / entropy(label_L)).clamp(0, 1)


def entropy(p: Tensor) -> Tensor:
    """Of distributions in the last dimension, in nats."""
    return -torch.xlogy(p, p.clamp(min=0)).sum(-1)
