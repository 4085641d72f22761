"""Sums over rows of a matrix that a list names, in some of its columns, compiled by numba, four rows at a time."""

# mypy: ignore-errors
from __future__ import annotations

from sae_sweeps.kernels.threads import SUMS, compiled


@compiled(**SUMS)
def add_rows(index, factor, M, columns, p, end, x):
    """x += sum of factor[p] M[index[p], columns] over p .. end - 1; columns: (first, last)."""
    first, last = columns
    while p + 4 <= end:
        m0, m1 = M[index[p], first:last], M[index[p + 1], first:last]
        m2, m3 = M[index[p + 2], first:last], M[index[p + 3], first:last]
        a0, a1, a2, a3 = factor[p], factor[p + 1], factor[p + 2], factor[p + 3]
        for t in range(len(x)):
            x[t] += a0 * m0[t] + a1 * m1[t] + a2 * m2[t] + a3 * m3[t]
        p += 4
    while p < end:
        m, a = M[index[p], first:last], factor[p]
        for t in range(len(x)):
            x[t] += a * m[t]
        p += 1


@compiled(**SUMS)
def rows_times(index, M, columns, p, end, x, out):
    """out[p] = M[index[p], columns] . x for p .. end - 1; added to what out holds unless the columns are the first."""
    (first, last), zero = columns, M.dtype.type(0)
    while p + 4 <= end:
        m0, m1 = M[index[p], first:last], M[index[p + 1], first:last]
        m2, m3 = M[index[p + 2], first:last], M[index[p + 3], first:last]
        s0, s1, s2, s3 = zero, zero, zero, zero
        for t in range(len(x)):
            s0 += m0[t] * x[t]
            s1 += m1[t] * x[t]
            s2 += m2[t] * x[t]
            s3 += m3[t] * x[t]
        if first > 0:
            s0, s1, s2, s3 = out[p] + s0, out[p + 1] + s1, out[p + 2] + s2, out[p + 3] + s3
        out[p], out[p + 1], out[p + 2], out[p + 3] = s0, s1, s2, s3
        p += 4
    while p < end:
        m, s0 = M[index[p], first:last], zero
        for t in range(len(x)):
            s0 += m[t] * x[t]
        out[p] = out[p] + s0 if first > 0 else s0
        p += 1
