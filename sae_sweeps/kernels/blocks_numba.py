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

from sae_sweeps.kernels.listed_numba import add_rows, rows_times
from sae_sweeps.kernels.threads import compiled, over_rows

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


@compiled()
def _cuts(start, index, n_rows):
    """For each list, where its indices reach each block of a matrix of n_rows, and its end [blocks + 1, lists]."""
    cuts = np.empty((-(-n_rows // ROWS) + 1, len(start) - 1), np.int64)
    cuts[0], cuts[-1] = start[:-1], start[1:]
    for block in range(1, len(cuts) - 1):
        for r in range(cuts.shape[1]):
            p = cuts[block - 1, r]
            while p < start[r + 1] and index[p] < block * ROWS:
                p += 1
            cuts[block, r] = p
    return cuts


@compiled()
def _combinations(start, index, values, M, out, columns, begin, stop):
    for r0 in range(begin, stop, ROWS):
        r1 = min(r0 + ROWS, stop)
        out[r0:r1] = 0
        cuts = _cuts(start[r0 : r1 + 1], index, len(M))
        for c in range(len(columns) - 1):
            part = columns[c], columns[c + 1]
            for block in range(len(cuts) - 1):
                for r in range(r0, r1):
                    p, end = cuts[block, r - r0], cuts[block + 1, r - r0]
                    add_rows(index, values, M, part, p, end, out[r, part[0] : part[1]])


@compiled()
def _products(start, index, M, g, out, columns, begin, stop):
    for r0 in range(begin, stop, ROWS):
        r1 = min(r0 + ROWS, stop)
        cuts = _cuts(start[r0 : r1 + 1], index, len(M))
        for c in range(len(columns) - 1):
            part = columns[c], columns[c + 1]
            for block in range(len(cuts) - 1):
                for r in range(r0, r1):
                    p, end = cuts[block, r - r0], cuts[block + 1, r - r0]
                    rows_times(index, M, part, p, end, g[r, part[0] : part[1]], out)
