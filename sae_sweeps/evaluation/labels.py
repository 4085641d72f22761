"""Whether tokens with the same label have similar features: normalised mutual information and silhouette."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MOST_DIMENSIONS = 50


def label_separation(f_BF: Tensor, labels_B: Tensor, seed: int = 0, max_tokens: int = 4000) -> dict[str, float]:
    """`nmi` and `silhouette` of features against labels, by scikit-learn; empty for fewer than two labels.

    Features of each token are scaled to unit norm and reduced to at most 50 dimensions (truncated SVD). nmi compares
    k-means clusters of that, as many as there are labels, with the labels (0 to 1); silhouette is that of the labels
    themselves in cosine distance (-1 to 1). Tokens on which nothing fires are left out. Seeded; of more than
    `max_tokens` tokens a sample is taken.

    Args:
        f_BF: features [n, d_sae]; labels_B: whole numbers [n].
    """
    from scipy.sparse import csr_matrix
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.metrics import normalized_mutual_info_score, silhouette_score
    from sklearn.preprocessing import normalize

    fires = (f_BF != 0).any(1)
    f_BF, labels = f_BF[fires], labels_B[fires].cpu().numpy()
    if len(labels) > max_tokens:
        chosen = np.sort(np.random.default_rng(seed).choice(len(labels), max_tokens, replace=False))
        f_BF, labels = f_BF[torch.from_numpy(chosen).to(f_BF.device)], labels[chosen]
    n_labels = len(np.unique(labels))
    if not 2 <= n_labels < len(labels):
        return {}
    points = normalize(csr_matrix(f_BF.float().cpu().numpy()))
    if points.shape[1] > MOST_DIMENSIONS:
        points = TruncatedSVD(MOST_DIMENSIONS, random_state=seed).fit_transform(points)
    else:
        points = points.toarray()
    clusters = KMeans(n_labels, n_init=3, random_state=seed).fit_predict(points)
    return {
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "silhouette": float(silhouette_score(points, labels, metric="cosine")),
    }
