"""The sparse operations on a CPU, compiled by numba: loops over the active pairs, each row of the result by itself.

Sums over d_in run four rows at a time. `sparse_reference` defines each function.
"""

# mypy: ignore-errors
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.kernels import blocks_numba, counting_sort, memory, sparse_reference
from sae_sweeps.kernels.pairs import Pairs
from sae_sweeps.kernels.threads import compiled, over_rows

NAME = "numba"
SPARSE_UP_TO = 1 / 4
"""Share of active features up to which the sums over pairs cost less than dense products (blocks_numba.py)."""
BLOCK = 32
"""Rows of a matrix summed in one block, so that the sum does not depend on the number of threads."""
SUMS = {"fastmath": {"contract", "reassoc", "nsz"}}
"""Sums may be reordered into vector lanes; NaN and infinity keep their meaning."""

# only for architectures that override SAE's methods: otherwise the optimizer's step does both
remove_parallel = sparse_reference.remove_parallel
normalize = sparse_reference.normalize


def largest(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    z = _np(z)
    return _largest_of(z, np.zeros(0, z.dtype), k)


def product_and_largest(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, z: Tensor) -> tuple[Tensor, Tensor]:
    torch.mm(centred, W_enc, out=z)  # b_enc is added while selecting, which saves a pass over z
    return _largest_of(z.numpy(), _np(b_enc), k)


def _largest_of(z: np.ndarray, bias: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
    """`largest` of z + bias, which is added in place; an empty bias adds nothing."""
    values, indices = np.empty((len(z), k), z.dtype), np.empty((len(z), k), np.int64)
    over_rows(_largest, len(z), z, bias, n_winners(z.shape[1], k), values, indices)
    return torch.from_numpy(values), torch.from_numpy(indices)


def n_winners(n: int, k: int) -> np.ndarray:
    """n, and the numbers of winners of the rounds of a tournament by fours that ends with 2 to 8 k."""
    sizes = [n]
    while sizes[-1] > 8 * max(k, 1):  # among fewer than 2 k numbers the bound would be too loose
        sizes.append(-(-sizes[-1] // 4))
    return np.array(sizes)


def bounded_largest(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    from sae_sweeps.kernels import bounded_numba

    found = bounded_numba.largest(centred, W_enc, b_enc, k, block)
    if found is None:
        z = memory.kept("z", (len(centred), W_enc.shape[1]), W_enc.dtype)
        return product_and_largest(centred, W_enc, b_enc, k, z)
    return found


def bounded_above(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, guess: float, n: int, block: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    from sae_sweeps.kernels import bounded_numba

    return bounded_numba.above(centred, W_enc, b_enc, guess, n, block)


def above(z: Tensor, threshold: float | Tensor, at_most: int) -> tuple[Tensor, Tensor, Tensor] | None:
    start = torch.zeros(len(z) + 1, dtype=torch.int64)
    least = _np(torch.as_tensor(threshold, dtype=z.dtype).expand(z.shape[1]))
    over_rows(_count_above, len(z), _np(z), least, start.numpy()[1:])
    start.cumsum_(0)
    if int(start[-1]) > at_most:
        return None
    feature, values = torch.empty(int(start[-1]), dtype=torch.int64), torch.empty(int(start[-1]), dtype=z.dtype)
    over_rows(_fill_above, len(z), _np(z), least, start.numpy(), feature.numpy(), values.numpy())
    return start, feature, values


def decode(pairs: Pairs, values: Tensor, W: Tensor) -> Tensor:
    out = torch.empty(pairs.n_tokens, W.shape[1], dtype=W.dtype)
    arguments = (_np(pairs.start), _np(pairs.feature), _np(values), _np(W), out.numpy())
    if _by_blocks(pairs):
        blocks_numba.combinations(*arguments)
    else:
        over_rows(_decode, pairs.n_tokens, *arguments)
    return out


def residual(pairs: Pairs, values: Tensor, W: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if _by_blocks(pairs):
        error = x - b - decode(pairs, values, W)
        return error, error.square().sum(1), dots(pairs, W, error)
    error, squares = torch.empty_like(x), torch.empty(len(x), dtype=x.dtype)
    products = torch.empty(len(pairs.feature), dtype=x.dtype)
    given = [_np(tensor) for tensor in (pairs.start, pairs.feature, values, W, b, x)]
    over_rows(_residual, len(x), *given, error.numpy(), squares.numpy(), products.numpy())
    return error, squares, products


def dots(pairs: Pairs, W: Tensor, g: Tensor) -> Tensor:
    out = torch.empty(len(pairs.feature), dtype=W.dtype)
    arguments = (_np(pairs.start), _np(pairs.feature), _np(W), _np(g), out.numpy())
    if _by_blocks(pairs):
        blocks_numba.products(*arguments)
    else:
        over_rows(_dots, pairs.n_tokens, *arguments)
    return out


def transposed(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    start, token, slot = counting_sort.transposed(_np(pairs.start), _np(pairs.feature), pairs.n_features)
    return torch.from_numpy(start), torch.from_numpy(slot), torch.from_numpy(token)


def weight_gradient(pairs: Pairs, values: Tensor, g: Tensor) -> Tensor:
    start, slot, token = pairs.transposed
    out = memory.take((pairs.n_features, g.shape[1]), g.dtype)
    arguments = (_np(start), _np(token), _np(values).take(_np(slot)), _np(g), out.numpy())
    if blocks_numba.pay(len(token), pairs.n_features, len(g)):
        blocks_numba.combinations(*arguments, bounds=_equal_parts(start))
    else:
        over_rows(_weight_gradient, pairs.n_features, *arguments, bounds=_equal_parts(start))
    return out


def sums(pairs: Pairs, values: Tensor) -> Tensor:
    start, slot, _ = pairs.transposed
    out = torch.empty(pairs.n_features, dtype=values.dtype)
    over_rows(_sums, pairs.n_features, _np(start), _np(slot), _np(values), out.numpy(), bounds=_equal_parts(start))
    return out


def combination(factors: Tensor, rows: Tensor) -> Tensor:
    parts = torch.empty(-(-len(rows) // BLOCK), rows.shape[1], dtype=rows.dtype)
    over_rows(_combination, len(parts), np.arange(len(rows)), _np(factors), _np(rows), parts.numpy())
    return parts.sum(0)


def _by_blocks(pairs: Pairs) -> bool:
    return pairs.ordered and blocks_numba.pay(len(pairs.feature), pairs.n_tokens, pairs.n_features)


def _np(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _equal_parts(start: Tensor) -> list[int]:
    """Bounds between features that give each thread about the same number of pairs."""
    threads = torch.get_num_threads()
    wanted = torch.arange(1, threads) * int(start[-1]) // threads
    return [0, *torch.searchsorted(start, wanted).tolist(), len(start) - 1]


@compiled(**SUMS)
def _best_of_four(row, best):
    """best[g] = largest of the elements g, g + q, g + 2 q and g + 3 q, q = len(best); returns the sum of the row."""
    q, total = len(best), row.dtype.type(0)
    a, b, c, d = row[:q], row[q : 2 * q], row[2 * q : 3 * q], row[3 * q :]
    for g in range(len(d)):
        one = a[g] if a[g] > b[g] else b[g]
        two = c[g] if c[g] > d[g] else d[g]
        best[g] = one if one > two else two
        total += (a[g] + b[g]) + (c[g] + d[g])
    for g in range(len(d), q):
        one = a[g] if a[g] > b[g] else b[g]
        best[g] = one if one > c[g] else c[g]
        total += a[g] + b[g] + c[g]
    return total


@compiled(**SUMS)
def _number_from(a, least):
    """Number of elements of a that are >= least; counted in a's own dtype, which compiles to vector instructions."""
    count, one, zero = a.dtype.type(0), a.dtype.type(1), a.dtype.type(0)
    for i in range(len(a)):
        count += one if a[i] >= least else zero
    return count


@compiled(**SUMS)
def _between(a, k, most, infinite, slack):
    """(low, high) by bisection: at least k elements of a are >= low, fewer than k are >= high, unless high is infinite.

    Ends when at most k + slack elements are >= low, or no number is between the two.
    """
    low = high = a[0]
    for i in range(len(a)):
        low = a[i] if a[i] < low else low
        high = a[i] if a[i] > high else high
    low, high, half = max(low, -most), min(high, most), a.dtype.type(0.5)
    if _number_from(a, low) < k:
        return -infinite, low
    if _number_from(a, high) >= k:
        return high, infinite
    while True:
        middle = half * low + half * high
        if middle <= low or middle >= high:
            return low, high
        count = _number_from(a, middle)
        if count < k:
            high = middle
        else:
            low = middle
            if count <= k + slack:
                return low, high


@compiled()
def _add(row, bias):
    for i in range(len(bias)):
        row[i] += bias[i]


@compiled()
def _rounds(row, best):
    """Fill best[r] with the winners of round r, from row on; the sum of the row, NaN where an element is."""
    if len(best) == 1:
        return row.sum()
    total = _best_of_four(row, best[1])
    for r in range(2, len(best)):
        _best_of_four(best[r - 1], best[r])
    return total


@compiled()
def _at_least(row, best, low, place, spare):
    """Places of the elements of row that are >= low, found from the last round's winners down to the row.

    Lists are filled without branches, which the processor would predict wrongly. place and spare [n + 1] are work
    space; returns the one that holds the places, and how many they are.
    """
    last, found = best[-1] if len(best) > 1 else row, 0
    for g in range(len(last)):
        place[found] = g
        found += last[g] >= low
    for r in range(len(best) - 2, -1, -1):
        level = best[r] if r else row
        n_winners, found = found, 0
        for i in range(n_winners):
            for at in range(place[i], len(level), len(best[r + 1])):  # the four that met in this round
                spare[found] = at
                found += level[at] >= low
        place, spare = spare, place
    return place, found


@compiled()
def _write_tied(candidate, place, high, values, indices):
    """Write as many candidates as there are values: first those >= high, then of the others, which are all equal."""
    j = 0
    for first in (True, False):
        for i in range(len(candidate)):
            if (candidate[i] >= high) == first and j < len(values):
                values[j], indices[j] = candidate[i], place[i]
                j += 1


@compiled()
def _write_largest(candidate, places, n_candidates, values, indices):
    """As many of the first n candidates as there are values, the largest; both lists are overwritten."""
    infinite, most = candidate.dtype.type(np.inf), np.finfo(candidate.dtype).max
    low, high = _between(candidate[:n_candidates], len(values), most, infinite, 0)
    found = 0
    for i in range(n_candidates):
        at, value = places[i], candidate[i]
        places[found], candidate[found] = at, value
        found += value >= low
    if found == len(values):
        for j in range(found):
            values[j], indices[j] = candidate[j], places[j]
    else:
        _write_tied(candidate[:found], places, high, values, indices)


@compiled()
def _largest(z, bias, sizes, values, indices, start, stop):
    """The k largest of each row of z + bias and their places, for the rows start .. stop - 1; z += bias in place.

    A tournament by fours: each of the k largest beats, in every round, all but at most k - 1 of the others. So a lower
    bound of the k largest among the last round's few winners bounds the k-th largest of the row, and only groups whose
    winner reaches it are searched. sizes: the row's length, then the number of winners of each round.
    """
    n, k = z.shape[1], values.shape[1]
    best = [np.empty(size, z.dtype) for size in sizes]
    place, spare, candidate = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32), np.empty(n + 1, z.dtype)
    most, infinite = np.finfo(z.dtype).max, z.dtype.type(np.inf)
    for b in range(start, stop):
        row = z[b]
        _add(row, bias)
        if np.isnan(_rounds(row, best)) and np.isnan(row).any():  # as in torch, NaN is the largest
            for j in range(k):
                values[b, j], indices[b, j] = np.nan, j
            continue
        low, _ = _between(best[-1] if len(best) > 1 else row, k, most, infinite, k >> 3)
        places, n_candidates = _at_least(row, best, low, place, spare)
        for i in range(n_candidates):
            candidate[i] = row[places[i]]
        _write_largest(candidate, places, n_candidates, values[b], indices[b])


@compiled()
def _count_above(z, threshold, count, start, stop):
    for b in range(start, stop):
        n = 0
        row = z[b]
        for i in range(len(row)):
            n += row[i] > threshold[i]
        count[b] = n


@compiled()
def _fill_above(z, threshold, first, feature, values, start, stop):
    place = np.empty(z.shape[1] + 1, np.int64)
    for b in range(start, stop):
        row, p, found = z[b], first[b], 0
        for i in range(len(row)):  # without branches, which the processor would predict wrongly
            place[found] = i
            found += row[i] > threshold[i]
        for i in range(found):
            feature[p + i], values[p + i] = place[i], row[place[i]]


@compiled(**SUMS)
def _add_rows(feature, factor, W, p, end, x):
    """x += sum of factor[p] W[feature[p]] over p .. end - 1."""
    d = len(x)
    while p + 4 <= end:
        w0, w1, w2, w3 = W[feature[p]], W[feature[p + 1]], W[feature[p + 2]], W[feature[p + 3]]
        a0, a1, a2, a3 = factor[p], factor[p + 1], factor[p + 2], factor[p + 3]
        for t in range(d):
            x[t] += a0 * w0[t] + a1 * w1[t] + a2 * w2[t] + a3 * w3[t]
        p += 4
    while p < end:
        w, a = W[feature[p]], factor[p]
        for t in range(d):
            x[t] += a * w[t]
        p += 1


@compiled(**SUMS)
def _rows_times(feature, W, p, end, x, out):
    """out[p] = W[feature[p]] . x for p .. end - 1."""
    d, zero = len(x), W.dtype.type(0)
    while p + 4 <= end:
        w0, w1, w2, w3 = W[feature[p]], W[feature[p + 1]], W[feature[p + 2]], W[feature[p + 3]]
        s0, s1, s2, s3 = zero, zero, zero, zero
        for t in range(d):
            s0 += w0[t] * x[t]
            s1 += w1[t] * x[t]
            s2 += w2[t] * x[t]
            s3 += w3[t] * x[t]
        out[p], out[p + 1], out[p + 2], out[p + 3] = s0, s1, s2, s3
        p += 4
    while p < end:
        w, s0 = W[feature[p]], zero
        for t in range(d):
            s0 += w[t] * x[t]
        out[p] = s0
        p += 1


@compiled()
def _decode(first, feature, values, W, out, start, stop):
    for b in range(start, stop):
        out[b] = 0
        _add_rows(feature, values, W, first[b], first[b + 1], out[b])


@compiled()
def _dots(first, feature, W, g, out, start, stop):
    for b in range(start, stop):
        _rows_times(feature, W, first[b], first[b + 1], g[b], out)


@compiled(**SUMS)
def _residual(first, feature, values, W, bias, x, error, squares, products, start, stop):
    for b in range(start, stop):
        e, row, square = error[b], x[b], W.dtype.type(0)
        e[:] = 0
        _add_rows(feature, values, W, first[b], first[b + 1], e)
        for t in range(len(e)):
            e[t] = (row[t] - bias[t]) - e[t]
            square += e[t] * e[t]
        squares[b] = square
        _rows_times(feature, W, first[b], first[b + 1], e, products)  # they are in the cache


@compiled()
def _weight_gradient(first, token, values, g, out, start, stop):
    for i in range(start, stop):
        out[i] = 0
        _add_rows(token, values, g, first[i], first[i + 1], out[i])


@compiled()
def _sums(first, slot, values, out, start, stop):
    for i in range(start, stop):
        out[i] = 0
        for p in range(first[i], first[i + 1]):
            out[i] += values[slot[p]]


@compiled()
def _combination(number, factors, rows, out, start, stop):
    for i in range(start, stop):
        out[i] = 0
        _add_rows(number, factors, rows, i * BLOCK, min((i + 1) * BLOCK, len(rows)), out[i])
