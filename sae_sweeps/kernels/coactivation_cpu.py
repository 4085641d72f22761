"""Competing cosines on the CPU: one pass over features that counts partners, weighs them, and adds value and gradient.

A feature with few competing partners is done pair by pair. One with many is left for the tiles, where cosines and
gradient are matrix products over [TILE, d_sae]; its partners are counted again there, which costs little beside them.
"""

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.kernels.active_lists import ROWS, active_lists
from sae_sweeps.kernels.competition import Competition, Found
from sae_sweeps.kernels.counting_sort import Array
from sae_sweeps.kernels.features import Features
from sae_sweeps.kernels.threads import compiled, over_blocks

TILE = 512
DENSE_SHARE = 1 / 16
"""Share of all features from which a feature's partners are cheaper as a row of a tile (measured)."""
MARGIN = 1e-5
"""By so much, relative to the threshold, an overlap is below it whatever the rounding."""
DIVISION = {"error_model": "numpy"}
"""Division by 0 raises nothing: there is none."""
SUMS = {"fastmath": {"contract", "reassoc", "nsz"}}
"""Sums may be taken in lanes: NaN and infinity keep their meaning."""
OVERLAPS = ("jaccard", "min", "cosine", "batch")


@torch.no_grad()
def by_features(W: Tensor, f: Features, n_tokens: int, competition: Competition) -> Found:
    lists, weights = active_lists(f, n_tokens), W.detach().contiguous().numpy()
    n, number, rule = len(W), weights.dtype.type, competition
    linear = rule.form == "linear"
    numbers = (number(value) for value in (rule.threshold, rule.tau, (1 - MARGIN) * rule.threshold * linear, 1))
    n_active = np.diff(lists.feature_start).astype(number)
    how = (OVERLAPS.index(rule.overlap), linear, *numbers, n_active)
    grad = torch.empty(W.shape, dtype=W.dtype)
    grad_, value, pairs, many = grad.numpy(), np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.bool_)
    limit = int(DENSE_SHARE * n)

    def do_pairs(first: int, beyond: int) -> None:
        count, met, weight, cosine = np.zeros(n, np.int32), np.empty(n + 4, np.int32), *np.empty((2, n + 4), number)
        _pairs(*lists, weights, *how, first, beyond, limit, count, met, weight, cosine, value, pairs, many, grad_)

    over_blocks(do_pairs, n, ROWS)
    rows = many.nonzero()[0]
    tile = torch.empty(min(TILE, len(rows)), n, dtype=W.dtype)
    for start in range(0, len(rows), TILE):
        chunk = rows[start : start + TILE]
        S = torch.mm(W[chunk], W.T, out=tile[: len(chunk)])
        S_ = S.numpy()

        def do_tile(first: int, beyond: int, chunk: Array = chunk, S_: Array = S_) -> None:
            _tile(*lists, *how, chunk, first, beyond, np.zeros(n, np.int32), np.empty(n + 1, np.int32), value, S_)

        over_blocks(do_tile, len(chunk), 8)
        grad[chunk] = S @ W
    return torch.tensor(value.sum() / 2, dtype=W.dtype), int(pairs.sum()) // 2, grad


@compiled(**DIVISION)
def _count(i, feature_start, token, token_start, feature, count, met):
    """Add to `count` on how many tokens each feature meets i, list those that do in `met`; how many they are."""
    n_met = 0
    for p in range(feature_start[i], feature_start[i + 1]):
        t = token[p]
        for q in range(token_start[t], token_start[t + 1]):
            j = feature[q]
            met[n_met] = j
            n_met += count[j] == 0
            count[j] += 1
    return n_met


@compiled(**DIVISION)
def _below(both, i, j, n_tokens, overlap, low):
    """Whether the overlap is below `low`, without a division: so it is with most pairs, and their c_ij is 0."""
    if overlap == 0:
        return both < low * (i + j - both)
    if overlap == 1:
        return both < low * min(i, j)
    if overlap == 2:
        return both * both < low * low * (i * j)
    return both < low * n_tokens


@compiled(**DIVISION)
def _weigh(both, i, j, n_tokens, overlap, linear, t, tau, one):
    """c_ij, step by step as `coactivation.Competition` has it; all numbers in the type of the weights."""
    if overlap == 0:
        n = both / (i + j - both)
    elif overlap == 1:
        n = both / min(i, j)
    elif overlap == 2:
        n = both / np.sqrt(i * j)
    else:
        n = both / n_tokens
    if linear:
        return min(max((n - t) / t, one - one), one)
    return one / (one + np.exp(-((n - t) / (tau * t))))


@compiled(**SUMS)
def _four_dots(W, i, j, p, dots):
    """w_i . w_j of four partners j[p : p + 4] at once, so that their rows are fetched together."""
    a, b, c, e = j[p], j[p + 1], j[p + 2], j[p + 3]
    dot_a, dot_b, dot_c, dot_e = W[i, 0] * W[a, 0], W[i, 0] * W[b, 0], W[i, 0] * W[c, 0], W[i, 0] * W[e, 0]
    for d in range(1, W.shape[1]):
        w = W[i, d]
        dot_a += w * W[a, d]
        dot_b += w * W[b, d]
        dot_c += w * W[c, d]
        dot_e += w * W[e, d]
    dots[p], dots[p + 1], dots[p + 2], dots[p + 3] = dot_a, dot_b, dot_c, dot_e


@compiled(**SUMS)
def _add_four(grad, i, W, j, p, s):
    a, b, c, e = j[p], j[p + 1], j[p + 2], j[p + 3]
    s_a, s_b, s_c, s_e = s[p], s[p + 1], s[p + 2], s[p + 3]
    for d in range(W.shape[1]):
        grad[i, d] += s_a * W[a, d] + s_b * W[b, d] + s_c * W[c, d] + s_e * W[e, d]


@compiled(**DIVISION)
def _pairs(
    feature_start, token, token_start, feature, W, overlap, linear, t, tau, low, one, n_active, first, beyond, limit,
    count, met, weight, cosine, value, pairs, many, grad,
):  # fmt: skip
    """Features first .. beyond - 1: their pairs, value and gradient; those with more than `limit` are marked only."""
    n_tokens = one * np.float32(len(token_start) - 1)
    for i in range(first, beyond):
        n_met = _count(i, feature_start, token, token_start, feature, count, met)
        n_pairs = 0
        for p in range(n_met):
            j = met[p]
            n_both = one * np.float32(count[j])
            count[j] = 0
            if _below(n_both, n_active[i], n_active[j], n_tokens, overlap, low):
                continue
            c = _weigh(n_both, n_active[i], n_active[j], n_tokens, overlap, linear, t, tau, one)
            met[n_pairs] = j
            weight[n_pairs] = c
            n_pairs += (c > 0) & (j != i)
        pairs[i] = n_pairs
        many[i] = n_pairs > limit
        if many[i]:
            continue
        for d in range(W.shape[1]):
            grad[i, d] = 0
        while n_pairs % 4:  # partners of weight 0
            met[n_pairs], weight[n_pairs] = i, 0
            n_pairs += 1
        for p in range(0, n_pairs, 4):
            _four_dots(W, i, met, p, cosine)
            for q in range(p, p + 4):
                value[i] += weight[q] * abs(cosine[q])
                weight[q] = weight[q] if cosine[q] > 0 else (-weight[q] if cosine[q] < 0 else 0)
            _add_four(grad, i, W, met, p, weight)


@compiled(**DIVISION)
def _tile(
    feature_start, token, token_start, feature, overlap, linear, t, tau, low, one, n_active, rows, first, beyond, count,
    met, value, S,
):  # fmt: skip
    """Rows first .. beyond - 1 of S [rows, d_sae] from cosines to c_ij sign(cosine); their values."""
    n_tokens = one * np.float32(len(token_start) - 1)
    for r in range(first, beyond):
        i = rows[r]
        _count(i, feature_start, token, token_start, feature, count, met)
        count[i] = 0
        for j in range(S.shape[1]):
            n_both, cosine = one * np.float32(count[j]), S[r, j]
            count[j] = 0
            S[r, j] = 0
            if n_both > 0 and cosine != 0:
                c = _weigh(n_both, n_active[i], n_active[j], n_tokens, overlap, linear, t, tau, one)
                value[i] += c * abs(cosine)
                S[r, j] = c if cosine > 0 else -c
