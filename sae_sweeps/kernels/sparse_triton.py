"""The sparse operations on a GPU: sums over pairs as Triton kernels, or dense products where those take less time.

`sparse_reference` defines each, `cost` decides between the two. A kernel computes SLAB columns of all rows before the
next ones, so that the rows that it gathers stay in the L2 cache. With TRITON_INTERPRET=1 the kernels run on a CPU too,
slowly, which tests them without a GPU.
"""

# mypy: ignore-errors
from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_sweeps.kernels import cost, sparse_reference
from sae_sweeps.kernels.largest_triton import largest
from sae_sweeps.kernels.launching import StepShape, launch
from sae_sweeps.kernels.pairs import Pairs
from sae_sweeps.kernels.rounded import rounded

NAME = "triton"
NARROW = {"_sums": "adds single numbers from anywhere"}
"""Kernels whose main loop has no 128 bits in a row to load."""
ROWS = 8
"""Rows that a program reads at once."""

SPARSE_UP_TO = 0.0
"""No `above`: how many pairs there are decides there how much is computed, and to read it would stop the host."""

above = sparse_reference.above
bounded_above = sparse_reference.bounded_above
bounded_largest = sparse_reference.bounded_largest
normalize = sparse_reference.normalize


def product_and_largest(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, z: Tensor) -> tuple[Tensor, Tensor]:
    return largest(torch.addmm(b_enc, centred, W_enc, out=z), k)


def decode(pairs: Pairs, values: Tensor, W: Tensor) -> Tensor:
    if _dense("decode", pairs, W):
        return _product(_written_out(pairs, values), W, pairs.products)
    return _decode_from(pairs, values, W, None, None)[0]


def residual(pairs: Pairs, values: Tensor, W: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if _dense("decode", pairs, W):
        error = x - b - decode(pairs, values, W)
        squares = error.square().sum(1)
    else:
        error, squares = _decode_from(pairs, values, W, b, x)
    return error, squares, dots(pairs, W, error)


def dots(pairs: Pairs, W: Tensor, g: Tensor) -> Tensor:
    if _dense("dots", pairs, W):
        products = _product(g, W, pairs.products, transposed=True, out=pairs.products)
        return products.view(-1)[pairs.token * pairs.n_features + pairs.feature].to(W.dtype)
    d = W.shape[1]
    slab, n_slabs = _slabs(d)
    parts = W.new_empty(n_slabs, len(pairs.feature))
    rows = pairs.start, pairs.feature, W.contiguous(), g.contiguous()
    launch(_dots, (pairs.n_tokens, n_slabs), *rows, parts, parts.shape[1], d, SLAB=slab, ROWS=ROWS, num_warps=1)
    return parts[0] if n_slabs == 1 else parts.sum(0)


def transposed(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    # a shorter key has fewer digits to sort by
    key = pairs.feature.to(torch.int16 if pairs.n_features <= 2**15 else torch.int32)
    feature, slot = key.sort(stable=True)
    first = torch.arange(pairs.n_features + 1, device=key.device, dtype=torch.int32)
    start = torch.searchsorted(feature.int(), first)  # counting would stop the host
    return start, slot.int(), pairs.token[slot].int()


def weight_gradient(pairs: Pairs, values: Tensor, g: Tensor) -> Tensor:
    if _dense("weight_gradient", pairs, g):
        return _product(_written_out(pairs, values).T, g, pairs.products, out=pairs.products)
    start, slot, token = pairs.transposed
    out, d = g.new_empty(pairs.n_features, g.shape[1]), g.shape[1]
    slab, n_slabs = _slabs(d)
    # in the order of the transposed pairs, so that a program reads them in a row
    rows = start, token, values[slot], g.contiguous()
    launch(_weighted, (pairs.n_features, n_slabs), *rows, out, d, SLAB=slab, ROWS=ROWS, num_warps=_warps(slab))
    return out


def sums(pairs: Pairs, values: Tensor) -> Tensor:
    start, slot, _ = pairs.transposed
    out = values.new_empty(pairs.n_features)
    launch(_sums, (pairs.n_features,), start, slot, values.contiguous(), out, BLOCK=64, num_warps=1)
    return out


def combination(factors: Tensor, rows: Tensor) -> Tensor:
    return factors @ rows if rows.dtype == factors.dtype else _product(factors[None], rows, rows.dtype)[0]


def remove_parallel(grad: Tensor, W: Tensor) -> None:
    sparse_reference.remove_parallel(grad, W)


def _dense(operation: str, pairs: Pairs, like: Tensor) -> bool:
    """Whether a dense product takes less time than sums over the pairs."""
    shape = pairs.n_tokens, pairs.n_features, like.shape[1], len(pairs.feature)
    precision = cost.precision_of(pairs.products or like.dtype)
    return cost.dense_is_cheaper(operation, cost.device_of(like.device.index), *shape, precision, like.element_size())


def _written_out(pairs: Pairs, values: Tensor) -> Tensor:
    """f [B, d_sae] in the dtype of the products, until the next call writes other values of the pairs there."""
    values = values.to(pairs.products or values.dtype)
    if pairs.matrix is None or pairs.matrix.dtype != values.dtype:
        pairs.matrix = values.new_zeros(pairs.n_tokens * pairs.n_features)
    pairs.matrix[pairs.token * pairs.n_features + pairs.feature] = values
    return pairs.matrix.view(pairs.n_tokens, pairs.n_features)


def _product(
    a: Tensor, b: Tensor, dtype: torch.dtype | None, transposed: bool = False, out: torch.dtype | None = None
) -> Tensor:
    """a b, or a b^T, of factors rounded to the dtype and summed in float32, given as `out` (None: as float32).

    dtype None: in their own, all of it.
    """
    if dtype is not None:
        a, b = a.to(dtype), rounded(b, dtype)
    b = b.T if transposed else b
    if dtype is None or out == dtype and _on_matrix_units(a):
        return a @ b
    if _on_matrix_units(a):
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a.float() @ b.float()).to(out or torch.float32)  # the product of two such numbers is exact in float32


def _on_matrix_units(a: Tensor) -> bool:
    return a.is_cuda and not triton.knobs.runtime.interpret


def _slabs(d: int) -> tuple[int, int]:
    """Columns that a program computes, and how many programs that takes."""
    slab = min(cost.SLAB, max(128, triton.next_power_of_2(d)))
    return slab, triton.cdiv(d, slab)


def _warps(slab: int) -> int:
    """So that each thread loads 128 bits of a row of float32."""
    return max(1, slab // 128)


def _decode_from(
    pairs: Pairs, values: Tensor, W: Tensor, b: Tensor | None, x: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """f W, or x - b - f W and the sums of its squares [B] where x is given."""
    out, d = W.new_empty(pairs.n_tokens, W.shape[1]), W.shape[1]
    slab, n_slabs = _slabs(d)
    parts = out.new_empty(n_slabs, pairs.n_tokens) if x is not None else out
    b, x = (out, out) if x is None else (b.contiguous(), x.contiguous())
    of_pairs = pairs.start, pairs.feature, values.contiguous(), W.contiguous()
    constants = {"SLAB": slab, "ROWS": ROWS, "RESIDUAL": parts is not out, "num_warps": _warps(slab), "maxnreg": 64}
    launch(_decode, (pairs.n_tokens, n_slabs), *of_pairs, b, x, out, parts, pairs.n_tokens, d, **constants)
    return out, None if parts is out else parts[0] if n_slabs == 1 else parts.sum(0)


def compile_for(shape: StepShape) -> None:
    """Compile each kernel as a step of this shape launches it."""
    W = shape.meta(shape.d_sae, shape.d_in)
    x, values = shape.meta(shape.batch, shape.d_in), shape.meta(shape.batch * shape.k)
    number = shape.meta(len(values), dtype=torch.int64)
    pairs = Pairs(shape.meta(shape.batch + 1, dtype=torch.int64), number, shape.d_sae, sys.modules[__name__])
    pairs.products = shape.products if shape.products != shape.dtype else None
    start = shape.meta(shape.d_sae + 1, dtype=torch.int64)
    pairs.transposed = start, number.int(), number.int()
    residual(pairs, values, W, W[0], x)
    weight_gradient(pairs, values, x)
    sums(pairs, values)
    decode(pairs, values, W)


@triton.jit(do_not_specialize=["n_tokens"])
def _decode(
    start_ptr, feature_ptr, value_ptr, W_ptr, b_ptr, x_ptr, out_ptr, square_ptr, n_tokens, d,
    SLAB: tl.constexpr, ROWS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slab = tl.program_id(1)
    column = slab * SLAB + tl.arange(0, SLAB)
    valid = column < d
    total = tl.zeros([SLAB], out_ptr.dtype.element_ty)
    end = tl.load(start_ptr + token + 1)
    for first in range(tl.load(start_ptr + token), end, ROWS):
        pair = first + tl.arange(0, ROWS)
        row = W_ptr + tl.load(feature_ptr + pair, mask=pair < end, other=0) * d
        value = tl.load(value_ptr + pair, mask=pair < end, other=0.0)
        w = tl.load(row[:, None] + column[None, :], mask=(pair < end)[:, None] & valid[None, :], other=0.0)
        total += tl.sum(value[:, None] * w, 0)
    if RESIDUAL:
        x = tl.load(x_ptr + token * d + column, mask=valid, other=0.0)
        total = x - tl.load(b_ptr + column, mask=valid, other=0.0) - total
        tl.store(square_ptr + slab * n_tokens + token, tl.sum(total * total, 0))
    tl.store(out_ptr + token * d + column, total, mask=valid)


@triton.jit(do_not_specialize=["n_pairs"])
def _dots(start_ptr, feature_ptr, W_ptr, g_ptr, part_ptr, n_pairs, d, SLAB: tl.constexpr, ROWS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    slab = tl.program_id(1)
    column = slab * SLAB + tl.arange(0, SLAB)
    valid = column < d
    g = tl.load(g_ptr + token * d + column, mask=valid, other=0.0)
    end = tl.load(start_ptr + token + 1)
    for first in range(tl.load(start_ptr + token), end, ROWS):
        pair = first + tl.arange(0, ROWS)
        row = W_ptr + tl.load(feature_ptr + pair, mask=pair < end, other=0) * d
        w = tl.load(row[:, None] + column[None, :], mask=(pair < end)[:, None] & valid[None, :], other=0.0)
        tl.store(part_ptr + slab.to(tl.int64) * n_pairs + pair, tl.sum(w * g[None, :], 1), mask=pair < end)


@triton.jit
def _weighted(
    start_ptr, token_ptr, value_ptr, g_ptr, out_ptr, d, SLAB: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    feature = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * SLAB + tl.arange(0, SLAB)
    valid = column < d
    total = tl.zeros([SLAB], out_ptr.dtype.element_ty)
    end = tl.load(start_ptr + feature + 1)
    for first in range(tl.load(start_ptr + feature), end, ROWS):
        pair = first + tl.arange(0, ROWS)
        row = g_ptr + tl.load(token_ptr + pair, mask=pair < end, other=0).to(tl.int64) * d
        value = tl.load(value_ptr + pair, mask=pair < end, other=0.0)
        g = tl.load(row[:, None] + column[None, :], mask=(pair < end)[:, None] & valid[None, :], other=0.0)
        total += tl.sum(value[:, None] * g, 0)
    tl.store(out_ptr + feature * d + column, total, mask=valid)


@triton.jit
def _sums(start_ptr, slot_ptr, value_ptr, out_ptr, BLOCK: tl.constexpr):
    feature = tl.program_id(0)
    end = tl.load(start_ptr + feature + 1)
    total = tl.zeros([BLOCK], out_ptr.dtype.element_ty)
    for first in range(tl.load(start_ptr + feature), end, BLOCK):
        p = first + tl.arange(0, BLOCK)
        slot = tl.load(slot_ptr + p, mask=p < end, other=0)
        total += tl.load(value_ptr + slot, mask=p < end, other=0.0)
    tl.store(out_ptr + feature, tl.sum(total, 0))
