"""Sums over pairs where a token has many: the rows that are read come from a block of the matrix that fits the cache.

Visited token by token, a matrix larger than the cache is read once for each pair. Here the lists of `ROWS` tokens (or
features) are followed together through one block of the matrix after the other. At 512 -> 8192 and batch 2048 (EPYC,
one thread, thousand million multiply-adds a second, a dense product: 39):

    active features per token    64    256   1024   4096
    decode, row by row            5      8      7      7
    decode, by blocks             4      9     16     19
"""

# mypy: ignore-errors
from __future__ import annotations

import numpy as np

from sae_sweeps.kernels.threads import SUMS, compiled, over_rows

ROWS = 256
"""Rows of a block of the matrix, and of the result."""
WIDTH = 2048
"""Bytes of each row in a block, at most: with `ROWS` rows 512 KB, half of a core's second-level cache."""
FEWEST = 5
"""Pairs of a row in a block, in the mean, below which going to and fro between the blocks costs more than it saves."""


def pay(n_pairs: int, n_lists: int, n_rows: int) -> bool:
    """Whether blocks are faster for lists with so many pairs in all, into a matrix of n_rows."""
    return n_pairs * ROWS >= FEWEST * n_lists * n_rows


def combinations(start, index, values, M, out, bounds: list[int] | None = None) -> None:
    """out[r] = sum of values[p] M[index[p]] over p from start[r] to start[r + 1] - 1.

    Fastest where the indices of a row ascend. bounds: parts of the rows, one per thread.
    """
    over_rows(_combinations, len(out), start, index, values, M, out, _columns(M), bounds=bounds)


def products(start, index, M, g, out) -> None:
    """out[p] = M[index[p]] . g[r] for p from start[r] to start[r + 1] - 1; as `combinations`."""
    over_rows(_products, len(g), start, index, M, g, out, _columns(M))


def _columns(M: np.ndarray) -> np.ndarray:
    """Bounds of the blocks' columns."""
    d = M.shape[1]
    n = -(-d * M.itemsize // WIDTH)
    return np.array([*range(0, d, -(-d // (16 * n)) * 16), d])


@compiled(**SUMS)
def _add(index, values, M, p, end, first, last, x):
    """x += sum of values[p] M[index[p], first:last] over p .. end - 1."""
    while p + 4 <= end:
        m0, m1 = M[index[p], first:last], M[index[p + 1], first:last]
        m2, m3 = M[index[p + 2], first:last], M[index[p + 3], first:last]
        a0, a1, a2, a3 = values[p], values[p + 1], values[p + 2], values[p + 3]
        for t in range(len(x)):
            x[t] += a0 * m0[t] + a1 * m1[t] + a2 * m2[t] + a3 * m3[t]
        p += 4
    while p < end:
        m, a = M[index[p], first:last], values[p]
        for t in range(len(x)):
            x[t] += a * m[t]
        p += 1


@compiled(**SUMS)
def _multiply(index, M, p, end, first, last, x, out):
    """out[p] += M[index[p], first:last] . x for p .. end - 1."""
    zero = M.dtype.type(0)
    while p + 4 <= end:
        m0, m1 = M[index[p], first:last], M[index[p + 1], first:last]
        m2, m3 = M[index[p + 2], first:last], M[index[p + 3], first:last]
        s0, s1, s2, s3 = zero, zero, zero, zero
        for t in range(len(x)):
            s0 += m0[t] * x[t]
            s1 += m1[t] * x[t]
            s2 += m2[t] * x[t]
            s3 += m3[t] * x[t]
        out[p] += s0
        out[p + 1] += s1
        out[p + 2] += s2
        out[p + 3] += s3
        p += 4
    while p < end:
        m, s0 = M[index[p], first:last], zero
        for t in range(len(x)):
            s0 += m[t] * x[t]
        out[p] += s0
        p += 1


@compiled()
def _until(index, p, end, bound):
    """The first place from p on, at most end, whose index reaches the bound."""
    while p < end and index[p] < bound:
        p += 1
    return p


@compiled()
def _combinations(start, index, values, M, out, columns, begin, stop):
    place = np.empty(ROWS, np.int64)
    for r0 in range(begin, stop, ROWS):
        r1 = min(r0 + ROWS, stop)
        out[r0:r1] = 0
        for c in range(len(columns) - 1):
            first, last = columns[c], columns[c + 1]
            place[: r1 - r0] = start[r0:r1]
            for bound in range(ROWS, len(M) + ROWS, ROWS):
                for r in range(r0, r1):
                    p, end = place[r - r0], start[r + 1]
                    q = _until(index, p, end, bound) if bound < len(M) else end
                    _add(index, values, M, p, q, first, last, out[r, first:last])
                    place[r - r0] = q


@compiled()
def _products(start, index, M, g, out, columns, begin, stop):
    place = np.empty(ROWS, np.int64)
    for r0 in range(begin, stop, ROWS):
        r1 = min(r0 + ROWS, stop)
        out[start[r0] : start[r1]] = 0
        for c in range(len(columns) - 1):
            first, last = columns[c], columns[c + 1]
            place[: r1 - r0] = start[r0:r1]
            for bound in range(ROWS, len(M) + ROWS, ROWS):
                for r in range(r0, r1):
                    p, end = place[r - r0], start[r + 1]
                    q = _until(index, p, end, bound) if bound < len(M) else end
                    _multiply(index, M, p, q, first, last, g[r, first:last], out)
                    place[r - r0] = q
