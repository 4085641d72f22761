"""Sum of squared correlations over pairs of features, value and gradient, from the entries of a sparse f.

With u_i the centred f_i at unit length and K = sum_i u_i u_i^T [B, B], over the features that vary,

    sum_{i<j} corr(f_i, f_j)^2 = (||K||_F^2 - n) / 2
    gradient on f_ti = 2 ((K f_i)_t - s_i (f_ti - mean f_i)) / |f_i - mean f_i|^2,      s_i = u_i^T K u_i

as K times the vector of ones is 0. Centring is a correction of rank 2, so both cost sum_i n_i^2 multiply-adds, n_i the
tokens on which feature i is active, where matrix products cost B^2 d_sae.
"""

# mypy: disable-error-code="no-untyped-def"
import numpy as np
import torch
from torch import Tensor

from sae_sweeps.kernels.active_lists import ROWS
from sae_sweeps.kernels.counting_sort import Array, starts, transposed
from sae_sweeps.kernels.features import Features
from sae_sweeps.kernels.threads import compiled, over_blocks
from sae_sweeps.kernels.value_and_gradient import differentiable

COST = 60
"""Cost of a multiply-add over lists, in multiply-adds of a matrix product (measured)."""


class Sparse:
    """The entries of f, by token and by feature, in float64."""

    def __init__(self, f: Features, n_tokens: int):
        token, feature, self.values = f.listed()
        self.n_tokens, self.row, self.feature = n_tokens, token.numpy(), feature.numpy()
        self.value = self.values.detach().numpy().astype(np.float64)
        self.token_start = starts(np.bincount(self.row, minlength=n_tokens))
        self.start, self.token, self.pair = transposed(self.token_start, self.feature, f.d_sae)
        self.n_listed = np.diff(self.start)
        self.n_active = np.bincount(self.feature[self.value > 0], minlength=f.d_sae)

    def cost(self) -> float:
        """Of the sum below, in multiply-adds of a matrix product."""
        return COST * float(np.square(self.n_listed, dtype=np.float64).sum())


def squared_correlations(sparse: Sparse, kept: Array, variance_floor: float) -> tuple[Tensor, int]:
    """sum_{i<j} corr(f_i, f_j)^2, differentiable in f's entries, and the number of features that vary.

    kept [d_sae] bool: the features taken into account.
    """
    value, n = differentiable(sparse.values, _correlations, sparse, kept, variance_floor)
    return value, n


def _correlations(values: Tensor, sparse: Sparse, kept: Array, variance_floor: float) -> tuple[Tensor, Tensor, int]:
    n_tokens, value = sparse.n_tokens, sparse.value
    feature, n_features = sparse.feature, len(sparse.n_listed)
    mean = np.bincount(feature, value, n_features) / n_tokens
    square = np.bincount(feature, np.square(value - mean[feature]), n_features)
    square += (n_tokens - sparse.n_listed) * np.square(mean)
    varies = kept & (square > variance_floor * n_tokens)
    weight = np.where(varies, 1 / np.where(varies, square, 1), 0)
    shift = np.bincount(sparse.row, value * (mean * weight)[feature], n_tokens)
    shift -= (np.square(mean) * weight).sum() / 2  # K_ts = sum_i weight_i f_ti f_si - shift_t - shift_s
    by_feature = sparse.start, sparse.token, sparse.pair
    K, norms, gradient = np.empty((n_tokens, n_tokens)), np.empty(n_tokens), np.zeros(len(value))

    def gram(first: int, end: int) -> None:
        _gram(sparse.token_start, feature, value, *by_feature, weight, shift, K, norms, first, end)

    def slope(first: int, end: int) -> None:
        _gradient(*by_feature, value, weight, mean, K, gradient, first, end)

    over_blocks(gram, n_tokens, ROWS)
    over_blocks(slope, n_features, ROWS)
    n = int(varies.sum())
    return torch.tensor((norms.sum() - n) / 2, dtype=values.dtype), torch.from_numpy(gradient).to(values.dtype), n


@compiled()
def _gram(token_start, feature, value, start, token, pair, weight, shift, K, norms, first, end):
    """Rows first .. end - 1 of K, and the sums of their squares."""
    for t in range(first, end):
        for s in range(K.shape[1]):
            K[t, s] = -shift[t] - shift[s]
        for p in range(token_start[t], token_start[t + 1]):
            i = feature[p]
            if weight[i] > 0:
                a = weight[i] * value[p]
                for q in range(start[i], start[i + 1]):
                    K[t, token[q]] += a * value[pair[q]]
        norms[t] = 0
        for s in range(K.shape[1]):
            norms[t] += K[t, s] ** 2


@compiled()
def _gradient(start, token, pair, value, weight, mean, K, gradient, first, end):
    """Gradient on the entries of the features first .. end - 1."""
    for i in range(first, end):
        if weight[i] == 0:
            continue
        s_i = 0.0
        for p in range(start[i], start[i + 1]):
            t, product = token[p], 0.0
            for q in range(start[i], start[i + 1]):
                product += K[t, token[q]] * value[pair[q]]
            gradient[pair[p]] = product
            s_i += value[pair[p]] * product
        s_i *= weight[i]
        for p in range(start[i], start[i + 1]):
            f = value[pair[p]]
            gradient[pair[p]] = 2 * weight[i] * (gradient[pair[p]] - s_i * (f - mean[i]))
