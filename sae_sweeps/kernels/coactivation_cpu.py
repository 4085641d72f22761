"""Competing cosines on the CPU: compiled loops list the pairs that compete with their cosines, each pair once.

The gradient is for each feature a sum of rows of W, a part of the columns at a time where there are many pairs, so that
the rows come from the cache. Features with many partners are computed in tiles, by matrix products with all features
before them; their partners are counted again there, at little cost.
"""

# mypy: disable-error-code="no-untyped-def"
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sae_sweeps.kernels.active_lists import active_lists
from sae_sweeps.kernels.competing_pairs import (
    DIVISION,
    Ranked,
    Rule,
    count,
    forget,
    least_common,
    ranked,
    rule_of,
    weigh,
)
from sae_sweeps.kernels.competition import Competition
from sae_sweeps.kernels.counting_sort import Array, starts
from sae_sweeps.kernels.features import Features
from sae_sweeps.kernels.threads import SUMS, compiled, over_blocks, over_rows

PANEL = 2**23
"""Most pairs that may have to be listed at once, unless a single feature has more."""
DENSE_SHARE = 1 / 4
"""Share of the features before it from which a feature's partners cost less as a row of a tile (measured)."""
COLUMNS = 128
"""Columns of W at a time: 4 MB of 8,192 rows (measured: as good as 64)."""
FEW = 16
"""Pairs per feature up to which a second pass over W costs more than it saves."""
PARTS = 8
"""Parts of a list that are sorted side by side."""
TILE = 512
"""Rows of a tile."""
TILE_COLUMNS = 4096


class Pairs(NamedTuple):
    """Competing pairs (i, j), j < i, of the features first .. end - 1."""

    first: int
    end: int
    start: Array
    """First pair of each of these features [end - first]; there are gaps."""
    n: Array
    """Number of pairs of each [end - first]."""
    other: Array
    """j of each pair."""
    weight: Array
    """c_ij sign(w_i . w_j) of each pair."""


class RowSums:
    """A gradient on W [d_sae, d_in] as sums for some of its rows."""

    def __init__(self) -> None:
        self.parts: list[tuple[Array, Tensor]] = []
        """(rows [m], sums [m, d_in]); a row may be in several."""

    def add_to(self, out: Tensor, factor: Tensor) -> None:
        """out [d_sae, d_in] += factor * the gradient."""
        whole = out.contiguous()
        for rows, sums in self.parts:
            over_rows(_add_scaled, len(rows), whole.numpy(), rows, sums.numpy(), sums.numpy().dtype.type(factor))
        if whole is not out:
            out.copy_(whole)


@torch.no_grad()
def by_features(W: Tensor, f: Features, n_tokens: int, competition: Competition) -> tuple[Tensor, int, RowSums]:
    """Value, number of competing pairs and gradient, as `coactivation.plain`."""
    W = W.detach().contiguous()
    rule, n = rule_of(competition, n_tokens, W.numpy().dtype), len(W)
    r = ranked(active_lists(f, n_tokens), rule)
    value, n_pairs, gradient = np.zeros(n), np.zeros(n, np.int64), RowSums()
    for pairs in _panels(W, r, rule, value, n_pairs):
        _add_rows(gradient, W, *_by_feature(r, pairs), alone=pairs.end - pairs.first == n)
    _add_tiles(gradient, W, r, rule, (n_pairs > _limit(n)).nonzero()[0], value)
    return torch.tensor(value.sum(), dtype=W.dtype), int(n_pairs.sum()), gradient


def _limit(n: int) -> Array:
    """Partners that a feature may have without a row in a tile [n]; what a tile of fewer than TILE saves is nothing."""
    return (DENSE_SHARE * np.arange(n).clip(TILE)).astype(np.int64)


def _blocks(n: int) -> int:
    return max(64, n // (8 * torch.get_num_threads()))


def _panels(W: Tensor, r: Ranked, rule: Rule, value: Array, n_pairs: Array) -> Iterator[Pairs]:
    """The pairs of all features but those with a row in a tile; each item reuses the memory of the one before.

    Fills n_pairs [d_sae] for all features, value [d_sae] for those whose pairs are listed.
    """
    n, weights = len(W), W.numpy()
    room, limit, bounds = starts(r.n_most), _limit(n), [0]
    while bounds[-1] < n:
        within = int(np.searchsorted(room, room[bounds[-1]] + PANEL, "right")) - 1
        bounds.append(max(within, bounds[-1] + 1))
    most = int(np.diff(room[bounds]).max())
    other, weight = np.empty(most, np.int32), np.empty(most, weights.dtype)
    for first, end in zip(bounds, bounds[1:], strict=False):
        pairs = Pairs(first, end, room[first:end] - room[first], np.empty(end - first, np.int64), other, weight)
        _fill(pairs, weights, r, rule, limit, value, n_pairs)
        yield pairs


def _fill(pairs: Pairs, W: Array, r: Ranked, rule: Rule, limit: Array, value: Array, n_pairs: Array) -> None:
    def work(start: int, stop: int) -> None:
        space = np.zeros(len(W), np.int32), np.empty(len(W) + 1, np.int32), *np.empty((3, len(W)), W.dtype)
        _list(r, rule, W, limit, *space, pairs, start, stop, value, n_pairs)

    over_blocks(work, len(pairs.n), _blocks(len(pairs.n)))


def _by_feature(r: Ranked, pairs: Pairs) -> tuple[Array, Array, Array]:
    """The pairs (i, j) and (j, i) by the first of the two: number for each feature, the other's number, weight."""
    n = len(r.number)
    n_pairs = np.zeros(n, np.int64)
    n_pairs[pairs.first : pairs.end] = pairs.n
    ends = pairs.n.cumsum()
    bounds = np.searchsorted(ends, ends[-1] * np.arange(PARTS + 1) // PARTS)
    bounds[-1] = len(ends)
    n_back = np.zeros((PARTS, n), np.int64)
    over_blocks(lambda part, _: _count_back(pairs, bounds[part], bounds[part + 1], n_back[part]), PARTS, 1)
    size = np.empty(n, np.int64)
    size[r.number] = n_pairs + n_back.sum(0)
    own = starts(size)[r.number]
    place = own + n_pairs + np.cumsum(n_back, 0) - n_back
    other, weight = np.empty(size.sum(), np.int32), np.empty(size.sum(), pairs.weight.dtype)

    def write(part: int, _: int) -> None:
        _write(r.number, pairs, bounds[part], bounds[part + 1], own, place[part], other, weight)

    over_blocks(write, PARTS, 1)
    return size, other, weight


def _add_rows(gradient: RowSums, W: Tensor, size: Array, other: Array, weight: Array, alone: bool) -> None:
    """Add for each feature the sum over its pairs of weight * w_other.

    alone: there are no other pairs, so that features without one need no row.
    """
    rows = size.nonzero()[0] if alone else np.arange(len(size))
    start = torch.from_numpy(starts(size[rows]).astype(np.int32))
    numbers, weights = torch.from_numpy(other), torch.from_numpy(weight)
    sums = torch.empty(len(rows), W.shape[1], dtype=W.dtype)
    width = COLUMNS if len(other) > 2 * FEW * len(W) else W.shape[1]
    for part, out in zip(W.split(width, 1), sums.split(width, 1), strict=True):
        out.copy_(
            F.embedding_bag(
                numbers, part.contiguous(), start, mode="sum", per_sample_weights=weights, include_last_offset=True
            )
        )
    if alone or not gradient.parts:
        gradient.parts.append((rows, sums))
    else:
        gradient.parts[0][1].add_(sums)


def _add_tiles(gradient: RowSums, W: Tensor, r: Ranked, rule: Rule, rows: Array, value: Array) -> None:
    """Add value and gradient of the pairs of the features `rows` with those before them."""
    if not len(rows):
        return
    end, number = int(rows[-1]) + 1, torch.from_numpy(r.number)
    sums = torch.zeros(end, W.shape[1], dtype=W.dtype)
    for begin in range(0, end, TILE_COLUMNS):
        W_columns = W[number[begin : begin + TILE_COLUMNS]]
        later = rows[rows > begin]
        for at in range(0, len(later), TILE):
            chunk = later[at : at + TILE]
            before = W_columns[: int(chunk[-1]) - begin]
            W_rows, places = W[number[chunk]], torch.from_numpy(chunk)
            S = W_rows @ before.T
            _weigh(S.numpy(), r, rule, chunk, begin, value)
            sums.index_add_(0, places, S @ before)
            sums[begin : begin + len(before)].addmm_(S.T, W_rows)
    gradient.parts.append((r.number[:end], sums))


def _weigh(S: Array, r: Ranked, rule: Rule, rows: Array, begin: int, value: Array) -> None:
    """Turn S [rows, features from `begin` on] from cosines into c_ij sign(cosine) for j < i, else 0, and add values."""

    def work(start: int, stop: int) -> None:
        n = len(r.number)
        space = np.zeros(n, np.int32), np.empty(n + 1, np.int32), *np.empty((2, n), S.dtype)
        _tile(r, rule, rows, start, stop, begin, *space, value, S)

    over_blocks(work, len(rows), _blocks(len(rows)))


@compiled(**SUMS)
def _add_scaled(out, rows, sums, factor, start, stop):
    for row in range(start, stop):
        i = rows[row]
        for d in range(sums.shape[1]):
            out[i, d] += factor * sums[row, d]


@compiled(**SUMS)
def _dot(W, i, j):
    total = W[i, 0] * W[j, 0]
    for d in range(1, W.shape[1]):
        total += W[i, d] * W[j, d]
    return total


@compiled(**SUMS)
def _four_dots(W, i, a, b, c, e):
    """w_i . w_j of four partners at once, so that their rows are fetched together."""
    dot_a, dot_b, dot_c, dot_e = W[i, 0] * W[a, 0], W[i, 0] * W[b, 0], W[i, 0] * W[c, 0], W[i, 0] * W[e, 0]
    for d in range(1, W.shape[1]):
        w = W[i, d]
        dot_a += w * W[a, d]
        dot_b += w * W[b, d]
        dot_c += w * W[c, d]
        dot_e += w * W[e, d]
    return dot_a, dot_b, dot_c, dot_e


@compiled(**SUMS)
def _turned(c, cosine):
    """Turn the cosines into c_ij sign(cosine), each c long; the sum of c_ij |cosine|."""
    total, zero = 0.0, c.dtype.type(0)
    for x in range(len(c)):
        total += c[x] * abs(cosine[x])
        cosine[x] = c[x] if cosine[x] > 0 else (-c[x] if cosine[x] < 0 else zero)
    return total


@compiled()
def _list(r, rule, W, limit, n_common, met, n_both, n_j, c, pairs, start, stop, value, n_pairs):
    """List the pairs of the features first + start .. first + stop - 1."""
    number, other, weight, begin = r.number, pairs.other, pairs.weight, pairs.start[start]
    for row in range(start, stop):
        i = pairs.first + row
        pairs.start[row] = begin
        n_met = count(r, i, least_common(r.n_active[i], rule), n_common, met)
        for x in range(n_met):
            n_both[x], n_j[x] = n_common[met[x]], r.n_active[met[x]]
        forget(r, i, n_common)
        weigh(n_both[:n_met], r.n_active[i], n_j[:n_met], rule, c[:n_met])
        n = 0
        for x in range(n_met):
            met[n], c[n] = met[x], c[x]
            n += c[x] > 0
        n_pairs[i] = n
        if n > limit[i]:
            pairs.n[row] = 0
            continue
        pairs.n[row] = n
        x = 0
        while x + 4 <= n:
            n_j[x], n_j[x + 1], n_j[x + 2], n_j[x + 3] = _four_dots(
                W, number[i], number[met[x]], number[met[x + 1]], number[met[x + 2]], number[met[x + 3]]
            )
            x += 4
        while x < n:
            n_j[x] = _dot(W, number[i], number[met[x]])
            x += 1
        value[i] = _turned(c[:n], n_j)
        other[begin : begin + n], weight[begin : begin + n] = met[:n], n_j[:n]
        begin += n


@compiled()
def _count_back(pairs, start, stop, n_back):
    for row in range(start, stop):
        for x in range(pairs.start[row], pairs.start[row] + pairs.n[row]):
            n_back[pairs.other[x]] += 1


@compiled()
def _write(number, pairs, start, stop, own, place, other, weight):
    for row in range(start, stop):
        i, begin = pairs.first + row, pairs.start[row]
        for x in range(pairs.n[row]):
            j, w = pairs.other[begin + x], pairs.weight[begin + x]
            other[own[i] + x], weight[own[i] + x] = number[j], w
            other[place[j]], weight[place[j]] = number[i], w
            place[j] += 1


@compiled(**DIVISION)
def _tile(r, rule, rows, start, stop, begin, n_common, met, n_both, c, value, S):
    """`_weigh` for the rows start .. stop - 1."""
    for row in range(start, stop):
        i = rows[row]
        n, zero = min(i - begin, S.shape[1]), rule.t - rule.t
        count(r, i, 1, n_common, met)
        for j in range(n):
            n_both[j] = n_common[begin + j]
        forget(r, i, n_common)
        weigh(n_both[:n], r.n_active[i], r.n_active[begin : begin + n], rule, c[:n])
        for j in range(n):
            c[j] = c[j] if n_both[j] > 0 else zero
        value[i] += _turned(c[:n], S[row])
        S[row, n:] = 0
