"""The sparse operations on a CPU, compiled by numba: loops over the active pairs, each row of the result by itself.

Sums over d_in run four rows at a time. `sparse_reference` defines each function.
"""

# mypy: ignore-errors
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.kernels import (
    blocks_numba,
    bounded_numba,
    bounded_threshold_numba,
    counting_sort,
    largest_numba,
    memory,
    sparse_reference,
)
from sae_sweeps.kernels.listed_numba import add_rows, rows_times
from sae_sweeps.kernels.pairs import Pairs
from sae_sweeps.kernels.threads import SUMS, array, compiled, equal_parts, over_rows

NAME = "numba"
SPARSE_UP_TO = 1 / 4
"""Share of active features up to which the sums over pairs cost less than dense products (blocks_numba.py)."""
BLOCK = 32
"""Rows of a matrix summed in one block, so that the sum does not depend on the number of threads."""

bounded_above = bounded_numba.above
bounded_active = bounded_threshold_numba.active
# only for architectures that override SAE's methods: otherwise the optimizer's step does both
remove_parallel = sparse_reference.remove_parallel
normalize = sparse_reference.normalize


def largest(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    z = array(z)
    return largest_numba.largest_of(z, np.zeros(0, z.dtype), k)


def product_and_largest(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, z: Tensor) -> tuple[Tensor, Tensor]:
    torch.mm(centred, W_enc, out=z)  # b_enc is added while selecting, which saves a pass over z
    return largest_numba.largest_of(z.numpy(), array(b_enc), k)


def bounded_largest(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    found = bounded_numba.largest(centred, W_enc, b_enc, k, block)
    if found is None:
        z = memory.kept("z", (len(centred), W_enc.shape[1]), W_enc.dtype)
        return product_and_largest(centred, W_enc, b_enc, k, z)
    return found


def above(z: Tensor, threshold: float | Tensor, at_most: int) -> tuple[Tensor, Tensor, Tensor] | None:
    start = torch.zeros(len(z) + 1, dtype=torch.int64)
    least = array(torch.as_tensor(threshold, dtype=z.dtype).expand(z.shape[1]))
    over_rows(_count_above, len(z), array(z), least, start.numpy()[1:])
    start.cumsum_(0)
    if int(start[-1]) > at_most:
        return None
    feature, values = torch.empty(int(start[-1]), dtype=torch.int64), torch.empty(int(start[-1]), dtype=z.dtype)
    over_rows(_fill_above, len(z), array(z), least, start.numpy(), feature.numpy(), values.numpy())
    return start, feature, values


def decode(pairs: Pairs, values: Tensor, W: Tensor) -> Tensor:
    out = torch.empty(pairs.n_tokens, W.shape[1], dtype=W.dtype)
    arguments = (array(pairs.start), array(pairs.feature), array(values), array(W), out.numpy())
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
    given = [array(tensor) for tensor in (pairs.start, pairs.feature, values, W, b, x)]
    over_rows(_residual, len(x), *given, error.numpy(), squares.numpy(), products.numpy())
    return error, squares, products


def dots(pairs: Pairs, W: Tensor, g: Tensor) -> Tensor:
    out = torch.empty(len(pairs.feature), dtype=W.dtype)
    arguments = (array(pairs.start), array(pairs.feature), array(W), array(g), out.numpy())
    if _by_blocks(pairs):
        blocks_numba.products(*arguments)
    else:
        over_rows(_dots, pairs.n_tokens, *arguments)
    return out


def transposed(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    start, token, slot = counting_sort.transposed(array(pairs.start), array(pairs.feature), pairs.n_features)
    return torch.from_numpy(start), torch.from_numpy(slot), torch.from_numpy(token)


def weight_gradient(pairs: Pairs, values: Tensor, g: Tensor) -> Tensor:
    start, slot, token = pairs.transposed
    out = memory.take((pairs.n_features, g.shape[1]), g.dtype)
    arguments = (array(start), array(token), array(values).take(array(slot)), array(g), out.numpy())
    if blocks_numba.pay(len(token), pairs.n_features, len(g)):
        blocks_numba.combinations(*arguments, bounds=equal_parts(start))
    else:
        over_rows(_weight_gradient, pairs.n_features, *arguments, bounds=equal_parts(start))
    return out


def sums(pairs: Pairs, values: Tensor) -> Tensor:
    start, slot, _ = pairs.transposed
    out = torch.empty(pairs.n_features, dtype=values.dtype)
    over_rows(_sums, pairs.n_features, array(start), array(slot), array(values), out.numpy(), bounds=equal_parts(start))
    return out


def combination(factors: Tensor, rows: Tensor) -> Tensor:
    parts = torch.empty(-(-len(rows) // BLOCK), rows.shape[1], dtype=rows.dtype)
    over_rows(_combination, len(parts), np.arange(len(rows)), array(factors), array(rows), parts.numpy())
    return parts.sum(0)


def _by_blocks(pairs: Pairs) -> bool:
    return pairs.ordered and blocks_numba.pay(len(pairs.feature), pairs.n_tokens, pairs.n_features)


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


@compiled()
def _decode(first, feature, values, W, out, start, stop):
    for b in range(start, stop):
        out[b] = 0
        add_rows(feature, values, W, (0, W.shape[1]), first[b], first[b + 1], out[b])


@compiled()
def _dots(first, feature, W, g, out, start, stop):
    for b in range(start, stop):
        rows_times(feature, W, (0, W.shape[1]), first[b], first[b + 1], g[b], out)


@compiled(**SUMS)
def _residual(first, feature, values, W, bias, x, error, squares, products, start, stop):
    for b in range(start, stop):
        e, row, square = error[b], x[b], W.dtype.type(0)
        e[:] = 0
        add_rows(feature, values, W, (0, W.shape[1]), first[b], first[b + 1], e)
        for t in range(len(e)):
            e[t] = (row[t] - bias[t]) - e[t]
            square += e[t] * e[t]
        squares[b] = square
        rows_times(feature, W, (0, W.shape[1]), first[b], first[b + 1], e, products)  # they are in the cache


@compiled()
def _weight_gradient(first, token, values, g, out, start, stop):
    for i in range(start, stop):
        out[i] = 0
        add_rows(token, values, g, (0, g.shape[1]), first[i], first[i + 1], out[i])


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
        add_rows(number, factors, rows, (0, rows.shape[1]), i * BLOCK, min((i + 1) * BLOCK, len(rows)), out[i])
