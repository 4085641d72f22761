"""Sums over rows of a matrix that a list names, compiled by numba, four rows at a time."""

# mypy: ignore-errors
from __future__ import annotations

from sae_sweeps.kernels.threads import SUMS, compiled


@compiled(**SUMS)
def add_rows(feature, factor, W, p, end, x):
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
def rows_times(feature, W, p, end, x, out):
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
