"""Products of the dead features' columns on a GPU, as Triton kernels that read on the device how many there are.

Grids are for all features; programs beyond the dead ones end at once. [B, d_sae] buffers hold the columns of the dead
features first, in the order of `number`, and are not written beyond them.
"""

# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROW = 1024
"""Columns that one program gathers."""
TILE = {torch.bfloat16: (128, 128, 32, 8), torch.float32: (64, 64, 32, 4)}
"""Dtype of the products -> rows, columns and depth of a tile, and warps."""

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""The interpreter holds bfloat16 as integers, and would multiply these."""


def largest(z: Tensor, number: Tensor, n: Tensor, k: int, product: torch.dtype) -> Tensor:
    """ReLU(z) at the k largest of each row's columns number[:n], ties by place, and 0 elsewhere [B, d_sae].

    z [B, d_sae] float32; number [d_sae] int64; n scalar int32, on the device. NaN is the largest.
    """
    f = torch.empty(z.shape, dtype=product, device=z.device)
    rows, width = z.shape
    _gather[(rows, triton.cdiv(width, ROW))](z, number, n, f, width, BLOCK=ROW)
    bits = 15 if product == torch.bfloat16 else 31
    _keep_largest[(rows,)](f, n, k, width, BITS=bits, BLOCK=4096, num_warps=8)
    return f


def left(f: Tensor, number: Tensor, n: Tensor, W: Tensor, error: Tensor, product: torch.dtype) -> Tensor:
    """error - sum of f[:, j] W[number[j]] over j < n [B, d]; W [d_sae, d]."""
    out, (rows, d) = torch.empty_like(error), error.shape
    m, columns, depth, warps = TILE[product]
    grid = triton.cdiv(rows, m), triton.cdiv(d, columns)
    tile = {"M": m, "N": columns, "K": depth, "num_warps": warps}
    _left[grid](f, number, n, W, error.contiguous(), out, rows, d, f.shape[1], BF16=product == torch.bfloat16, **tile)
    return out


def dots(
    g: Tensor, W: Tensor, number: Tensor, n: Tensor, f: Tensor, product: torch.dtype, bias: Tensor | None = None
) -> Tensor:
    """g_b . W[number[j]] + bias[number[j]] where f[b, j] is not 0, else 0, for j < n [B, d_sae]; g [B, d]."""
    (rows, d), width = g.shape, f.shape[1]
    out = torch.empty(f.shape, dtype=product, device=f.device)
    m, columns, depth, warps = TILE[product]
    grid = triton.cdiv(rows, m), triton.cdiv(width, columns)
    tile = {"M": m, "N": columns, "K": depth, "num_warps": warps}
    arguments = (g.contiguous(), W.contiguous(), number, n, f, out, W if bias is None else bias, rows, d, width)
    _dots[grid](*arguments, BIAS=bias is not None, BF16=product == torch.bfloat16, **tile)
    return out


def add_products(
    out: Tensor, f: Tensor, g: Tensor, number: Tensor, n: Tensor, product: torch.dtype, sums: Tensor | None = None
) -> None:
    """out[number[j]] += sum of f[b, j] g[b] over b, and sums[number[j]] += sum of f[b, j], for j < n.

    In place: out [d_sae, d], contiguous, sums [d_sae]; g [B, d].
    """
    (rows, d), width = g.shape, f.shape[1]
    assert out.is_contiguous()
    m, columns, depth, warps = TILE[product]
    grid = triton.cdiv(width, m), triton.cdiv(d, columns)
    tile = {"M": m, "N": columns, "K": depth, "num_warps": warps}
    arguments = (out, f, g.contiguous(), number, n, out if sums is None else sums, rows, d, width)
    _add_products[grid](*arguments, SUMS=sums is not None, BF16=product == torch.bfloat16, **tile)


@triton.jit
def _gather(z_ptr, number_ptr, n_ptr, f_ptr, width, BLOCK: tl.constexpr):
    row, n = tl.program_id(0).to(tl.int64), tl.load(n_ptr)
    if tl.program_id(1) * BLOCK < n:
        j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        valid = j < n
        z = tl.load(z_ptr + row * width + tl.load(number_ptr + j, mask=valid, other=0), mask=valid, other=0.0)
        f = tl.where(z <= 0, 0.0, z)  # leaves NaN
        tl.store(f_ptr + row * width + j, f.to(f_ptr.dtype.element_ty), mask=valid)


@triton.jit
def _key(pointer, valid):
    """Integers in the order of the numbers, which are not below 0; NaN is the largest."""
    f = tl.load(pointer, mask=valid, other=0.0).to(tl.float32)
    return tl.where(f != f, 0x7FFFFFFF, f.to(tl.int32, bitcast=True))


@triton.jit
def _keep_largest(f_ptr, n_ptr, k, width, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Find the k-th largest bit by bit; BITS 15 where the numbers are bfloat16."""
    n = tl.load(n_ptr)
    f_ptr += tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    if n > k:
        threshold, enough = n * 0, n
        bit = 30
        while (bit > 30 - BITS) & (enough != k):
            higher = threshold + (1 << bit)
            count = n * 0
            for first in range(0, n, BLOCK):
                valid = first + column < n
                count += tl.sum(((_key(f_ptr + first + column, valid) >= higher) & valid).to(tl.int32), 0)
            threshold = tl.where(count >= k, higher, threshold)
            enough = tl.where(count >= k, count, enough)
            bit -= 1
        higher = n * 0
        for first in range(0, n, BLOCK):
            valid = first + column < n
            higher += tl.sum(((_key(f_ptr + first + column, valid) > threshold) & valid).to(tl.int32), 0)
        ties_wanted, ties = k - higher, n * 0
        for first in range(0, n, BLOCK):
            valid = first + column < n
            key = _key(f_ptr + first + column, valid)
            tie = ((key == threshold) & valid).to(tl.int32)
            kept = (key > threshold) | ((tie == 1) & (ties + tl.cumsum(tie, 0) <= ties_wanted))
            tl.store(f_ptr + first + column, tl.zeros([BLOCK], f_ptr.dtype.element_ty), mask=valid & (kept == 0))
            ties += tl.sum(tie, 0)


@triton.jit
def _times(a, b, total, BF16: tl.constexpr):
    if BF16:
        a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
    if INTERPRETED or not BF16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _left(
    f_ptr, number_ptr, n_ptr, W_ptr, error_ptr, out_ptr, rows, d, width,
    BF16: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * M + tl.arange(0, M)).to(tl.int64)
    column, depth = tl.program_id(1) * N + tl.arange(0, N), tl.arange(0, K)
    n = tl.load(n_ptr)
    total = tl.zeros([M, N], tl.float32)
    for first in range(0, n, K):
        j = first + depth
        f = tl.load(f_ptr + row[:, None] * width + j[None], mask=(row < rows)[:, None] & (j < n)[None], other=0.0)
        number = tl.load(number_ptr + j, mask=j < n, other=0)
        W = tl.load(W_ptr + number[:, None] * d + column[None], mask=(j < n)[:, None] & (column < d)[None], other=0.0)
        total = _times(f, W, total, BF16)
    place, valid = row[:, None] * d + column[None], (row < rows)[:, None] & (column < d)[None]
    tl.store(out_ptr + place, tl.load(error_ptr + place, mask=valid, other=0.0) - total, mask=valid)


@triton.jit
def _dots(
    g_ptr, W_ptr, number_ptr, n_ptr, f_ptr, out_ptr, bias_ptr, rows, d, width,
    BIAS: tl.constexpr, BF16: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    n = tl.load(n_ptr)
    if tl.program_id(1) * N < n:
        row = (tl.program_id(0) * M + tl.arange(0, M)).to(tl.int64)
        j, depth = tl.program_id(1) * N + tl.arange(0, N), tl.arange(0, K)
        number = tl.load(number_ptr + j, mask=j < n, other=0)
        total = tl.zeros([M, N], tl.float32)
        for first in range(0, d, K):
            i = first + depth
            g = tl.load(g_ptr + row[:, None] * d + i[None], mask=(row < rows)[:, None] & (i < d)[None], other=0.0)
            W = tl.load(W_ptr + number[:, None] * d + i[None], mask=(j < n)[:, None] & (i < d)[None], other=0.0)
            total = _times(g, tl.trans(W), total, BF16)
        if BIAS:
            total += tl.load(bias_ptr + number, mask=j < n, other=0.0)[None]
        place, valid = row[:, None] * width + j[None], (row < rows)[:, None] & (j < n)[None]
        f = tl.load(f_ptr + place, mask=valid, other=0.0)
        total = tl.where(f == 0, 0.0, total)
        if BIAS:
            total = tl.where(total <= 0, 0.0, total)
        tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=valid)


@triton.jit
def _add_products(
    out_ptr, f_ptr, g_ptr, number_ptr, n_ptr, sum_ptr, rows, d, width,
    SUMS: tl.constexpr, BF16: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    n = tl.load(n_ptr)
    if tl.program_id(0) * M < n:
        j, column = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1) * N + tl.arange(0, N)
        number = tl.load(number_ptr + j, mask=j < n, other=0)
        total, sums = tl.zeros([M, N], tl.float32), tl.zeros([M], tl.float32)
        for first in range(0, rows, K):
            row = (first + tl.arange(0, K)).to(tl.int64)
            f = tl.load(f_ptr + row[:, None] * width + j[None], mask=(row < rows)[:, None] & (j < n)[None], other=0.0)
            valid = (row < rows)[:, None] & (column < d)[None]
            g = tl.load(g_ptr + row[:, None] * d + column[None], mask=valid, other=0.0)
            total = _times(tl.trans(f), g, total, BF16)
            if SUMS:
                sums += tl.sum(f.to(tl.float32), 0)
        place, valid = number[:, None] * d + column[None], (j < n)[:, None] & (column < d)[None]
        tl.store(out_ptr + place, tl.load(out_ptr + place, mask=valid, other=0.0) + total, mask=valid)
        if SUMS:
            if tl.program_id(1) == 0:
                tl.store(sum_ptr + number, tl.load(sum_ptr + number, mask=j < n, other=0.0) + sums, mask=j < n)
