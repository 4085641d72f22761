"""The k largest numbers of each row, compiled by numba: a tournament, and a threshold found by halving and counting."""

# mypy: ignore-errors
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.kernels.threads import SUMS, compiled, over_rows


def largest_of(z: np.ndarray, bias: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
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
def number_from(a, least):
    """Number of elements of a that are >= least; counted in a's own dtype, which compiles to vector instructions."""
    count, one, zero = a.dtype.type(0), a.dtype.type(1), a.dtype.type(0)
    for i in range(len(a)):
        count += one if a[i] >= least else zero
    return count


@compiled(**SUMS)
def between(a, k, most, infinite, slack):
    """(low, high) by bisection: at least k elements of a are >= low, fewer than k are >= high, unless high is infinite.

    Ends when at most k + slack elements are >= low, or no number is between the two.
    """
    low = high = a[0]
    for i in range(len(a)):
        low = a[i] if a[i] < low else low
        high = a[i] if a[i] > high else high
    low, high, half = max(low, -most), min(high, most), a.dtype.type(0.5)
    if number_from(a, low) < k:
        return -infinite, low
    if number_from(a, high) >= k:
        return high, infinite
    while True:
        middle = half * low + half * high
        if middle <= low or middle >= high:
            return low, high
        count = number_from(a, middle)
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
def rounds(row, best):
    """Fill best[r] with the winners of round r, from row on; the sum of the row, NaN where an element is."""
    if len(best) == 1:
        return row.sum()
    total = _best_of_four(row, best[1])
    for r in range(2, len(best)):
        _best_of_four(best[r - 1], best[r])
    return total


@compiled()
def at_least(row, best, low, place, spare):
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
def write_largest(candidate, places, n_candidates, values, indices):
    """As many of the first n candidates as there are values, the largest; both lists are overwritten."""
    infinite, most = candidate.dtype.type(np.inf), np.finfo(candidate.dtype).max
    low, high = between(candidate[:n_candidates], len(values), most, infinite, 0)
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
        if np.isnan(rounds(row, best)) and np.isnan(row).any():  # as in torch, NaN is the largest
            for j in range(k):
                values[b, j], indices[b, j] = np.nan, j
            continue
        low, _ = between(best[-1] if len(best) > 1 else row, k, most, infinite, k >> 3)
        places, n_candidates = at_least(row, best, low, place, spare)
        for i in range(n_candidates):
            candidate[i] = row[places[i]]
        write_largest(candidate, places, n_candidates, values[b], indices[b])
