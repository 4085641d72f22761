"""Competing cosines on the CPU: compiled loops over features that count partners, weigh them, add value and gradient.

A feature with few competing partners is computed pair by pair. Features with many are computed in tiles, where cosines
and gradient are matrix products over [TILE, d_sae]; their partners are counted again there, at little cost.
"""

# mypy: disable-error-code="no-untyped-def"
from typing import NamedTuple

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
"""Relative distance below the threshold from which an overlap is below it whatever the rounding."""
DIVISION = {"error_model": "numpy"}
"""No check for division by 0: none occurs."""
SUMS = {"fastmath": {"contract", "reassoc", "nsz"}}
"""Sums may be reordered into vector lanes; NaN and infinity keep their meaning."""
OVERLAPS = ("jaccard", "min", "cosine", "batch")


class Rule(NamedTuple):
    """A `Competition` for compiled code; all numbers in the dtype of the weights."""

    overlap: int
    """Index in OVERLAPS."""
    linear: bool
    t: np.floating
    tau: np.floating
    low: np.floating
    """Overlap below which c_ij is certainly 0."""
    one: np.floating
    n_tokens: np.floating


class Partners(NamedTuple):
    """Work space of one thread for the partners of one feature; four entries more than there are features."""

    n_common: Array
    """Tokens shared with each feature, 0 between two calls."""
    number: Array
    """Numbers of the partners."""
    weight: Array
    cosine: Array


class Result(NamedTuple):
    value: Array
    """Sum of c_ij |w_i . w_j| over j [d_sae]."""
    n_pairs: Array
    """Competing partners of each feature [d_sae]."""
    for_tiles: Array
    """Features with more partners than the limit [d_sae], bool."""
    grad: Array
    """[d_sae, d_in]."""


@torch.no_grad()
def by_features(W: Tensor, f: Features, n_tokens: int, competition: Competition) -> Found:
    """Value, number of competing pairs and gradient, as `coactivation.plain`."""
    lists, weights, n = active_lists(f, n_tokens), W.detach().contiguous().numpy(), len(W)
    n_active, rule = np.diff(lists.feature_start).astype(weights.dtype), _rule(competition, n_tokens, weights.dtype)
    grad = torch.empty(W.shape, dtype=W.dtype)
    result = Result(np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.bool_), grad.numpy())
    limit = int(DENSE_SHARE * n)

    def do_pairs(first: int, end: int) -> None:
        _pairs(lists, n_active, rule, weights, first, end, limit, _partners(n, weights.dtype), result)

    over_blocks(do_pairs, n, ROWS)
    rows = result.for_tiles.nonzero()[0]
    tile = torch.empty(min(TILE, len(rows)), n, dtype=W.dtype)
    for start in range(0, len(rows), TILE):
        chunk = rows[start : start + TILE]
        S = torch.mm(W[chunk], W.T, out=tile[: len(chunk)])
        S_ = S.numpy()

        def do_tile(first: int, end: int, chunk: Array = chunk, S_: Array = S_) -> None:
            _tile(lists, n_active, rule, chunk, first, end, _partners(n, weights.dtype), result.value, S_)

        over_blocks(do_tile, len(chunk), 16)
        grad[chunk] = S @ W
    return torch.tensor(result.value.sum() / 2, dtype=W.dtype), int(result.n_pairs.sum()) // 2, grad


def _rule(competition: Competition, n_tokens: int, dtype: np.dtype[np.floating]) -> Rule:
    linear, t = competition.form == "linear", competition.threshold
    t, tau, low, one, tokens = np.array([t, competition.tau, (1 - MARGIN) * t * linear, 1, n_tokens], dtype)
    return Rule(OVERLAPS.index(competition.overlap), linear, t, tau, low, one, tokens)


def _partners(n: int, dtype: np.dtype[np.floating]) -> Partners:
    return Partners(np.zeros(n, np.int32), np.empty(n + 4, np.int32), np.empty(n + 4, dtype), np.empty(n + 4, dtype))


@compiled(**DIVISION)
def _count(i, lists, n_common, number):
    """Add the tokens that features share with i to `n_common`, list these features in `number`; how many they are."""
    feature_start, token, token_start, feature = lists
    n_met = 0
    for p in range(feature_start[i], feature_start[i + 1]):
        t = token[p]
        for q in range(token_start[t], token_start[t + 1]):
            j = feature[q]
            number[n_met] = j
            n_met += n_common[j] == 0
            n_common[j] += 1
    return n_met


@compiled(**DIVISION)
def _below(n_both, n_i, n_j, rule):
    """Whether the overlap is below `rule.low`, without a division: true of most pairs, whose c_ij is 0."""
    if rule.overlap == 0:
        return n_both < rule.low * (n_i + n_j - n_both)
    if rule.overlap == 1:
        return n_both < rule.low * min(n_i, n_j)
    if rule.overlap == 2:
        return n_both * n_both < rule.low * rule.low * (n_i * n_j)
    return n_both < rule.low * rule.n_tokens


@compiled(**DIVISION)
def _weigh(n_both, n_i, n_j, rule):
    """c_ij, step by step as in `Competition`."""
    if rule.overlap == 0:
        n = n_both / (n_i + n_j - n_both)
    elif rule.overlap == 1:
        n = n_both / min(n_i, n_j)
    elif rule.overlap == 2:
        n = n_both / np.sqrt(n_i * n_j)
    else:
        n = n_both / rule.n_tokens
    if rule.linear:
        return min(max((n - rule.t) / rule.t, rule.one - rule.one), rule.one)
    return rule.one / (rule.one + np.exp(-((n - rule.t) / (rule.tau * rule.t))))


@compiled(**DIVISION)
def _competing(i, lists, n_active, rule, partners):
    """List the features that compete with i and their c_ij in `partners`; how many they are. Clears `n_common`."""
    n_common, number, weight, _ = partners
    n_pairs = 0
    for p in range(_count(i, lists, n_common, number)):
        j = number[p]
        n_both = rule.one * np.float32(n_common[j])
        n_common[j] = 0
        if _below(n_both, n_active[i], n_active[j], rule):
            continue
        c = _weigh(n_both, n_active[i], n_active[j], rule)
        number[n_pairs], weight[n_pairs] = j, c
        n_pairs += (c > 0) & (j != i)
    return n_pairs


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
    """grad_i += sum of s w_j over four partners j[p : p + 4]."""
    a, b, c, e = j[p], j[p + 1], j[p + 2], j[p + 3]
    s_a, s_b, s_c, s_e = s[p], s[p + 1], s[p + 2], s[p + 3]
    for d in range(W.shape[1]):
        grad[i, d] += s_a * W[a, d] + s_b * W[b, d] + s_c * W[c, d] + s_e * W[e, d]


@compiled(**DIVISION)
def _pairs(lists, n_active, rule, W, first, end, limit, partners, result):
    """Value and gradient of the features first .. end - 1; those with more than `limit` partners are only marked."""
    _, number, weight, cosine = partners
    value, n_pairs_of, for_tiles, grad = result
    for i in range(first, end):
        n_pairs = _competing(i, lists, n_active, rule, partners)
        n_pairs_of[i], for_tiles[i] = n_pairs, n_pairs > limit
        if n_pairs > limit:
            continue
        for d in range(W.shape[1]):
            grad[i, d] = 0
        while n_pairs % 4:  # filled up with partners of weight 0
            number[n_pairs], weight[n_pairs] = i, 0
            n_pairs += 1
        for p in range(0, n_pairs, 4):
            _four_dots(W, i, number, p, cosine)
            for q in range(p, p + 4):
                value[i] += weight[q] * abs(cosine[q])
                weight[q] = weight[q] if cosine[q] > 0 else (-weight[q] if cosine[q] < 0 else 0)
            _add_four(grad, i, W, number, p, weight)


@compiled(**DIVISION)
def _tile(lists, n_active, rule, rows, first, end, partners, value, S):
    """Turn the rows first .. end - 1 of S [rows, d_sae] from cosines into c_ij sign(cosine), and add their values."""
    n_common, number, _, _ = partners
    for r in range(first, end):
        i = rows[r]
        _count(i, lists, n_common, number)
        n_common[i] = 0
        for j in range(S.shape[1]):
            n_both, cosine = rule.one * np.float32(n_common[j]), S[r, j]
            n_common[j] = 0
            S[r, j] = 0
            if n_both > 0 and cosine != 0:
                c = _weigh(n_both, n_active[i], n_active[j], rule)
                value[i] += c * abs(cosine)
                S[r, j] = c if cosine > 0 else -c
