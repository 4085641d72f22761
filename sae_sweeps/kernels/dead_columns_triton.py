"""Products of the dead features' columns on a GPU, as Triton kernels that read on the device how many there are.

Grids are for all features; programs beyond the dead ones end at once. [B, d_sae] buffers hold the columns of the dead
features first, in the order of `number`, then 0 to the end of a block of ROW columns, and are not written beyond.
"""

# mypy: ignore-errors
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_sweeps.kernels.launching import StepShape, launch

ROW = 4096
"""Columns of a block, which a program gathers or compares at a time; a tile never ends beyond one."""
TILE = {torch.bfloat16: (128, 128, 32, 8), torch.float32: (64, 64, 16, 8)}
"""Dtype of the products -> rows, columns and depth of a tile, and warps."""

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""The interpreter holds bfloat16 as integers, and would multiply these."""


def largest(z: Tensor, number: Tensor, n: Tensor, k: int, product: torch.dtype) -> Tensor:
    """ReLU(z) at the k largest of each row's columns number[:n], ties by place, and 0 elsewhere [B, d_sae].

    z [B, d_sae]; number [d_sae] int64; n scalar int32, on the device. NaN is the largest.
    """
    f = torch.empty(z.shape, dtype=product, device=z.device)
    rows, width = z.shape
    launch(_gather, (rows, triton.cdiv(width, ROW)), z, number, n, f, width, BLOCK=ROW, num_warps=8)
    bits = 15 if product == torch.bfloat16 else 31
    launch(_keep_largest, (rows,), f, n, k, width, BITS=bits, BLOCK=ROW, num_warps=8)
    return f


def left(f: Tensor, number: Tensor, n: Tensor, W: Tensor, error: Tensor, product: torch.dtype) -> Tensor:
    """error - sum of f[:, j] W[number[j]] over j < n [B, d]; W [d_sae, d]."""
    out, (rows, d) = torch.empty_like(error), error.shape
    _tiles(_left, (rows, d), product, f, number, n, W.contiguous(), error.contiguous(), out, rows, d, f.shape[1])
    return out


def dots(
    g: Tensor, W: Tensor, number: Tensor, n: Tensor, f: Tensor, product: torch.dtype, bias: Tensor | None = None
) -> Tensor:
    """g_b . W[number[j]] where f[b, j] is not 0, else 0, for j < n [B, d_sae]; g [B, d].

    With a bias [d_sae] its ReLU(g_b . W[number[j]] + bias[number[j]]).
    """
    (rows, d), width = g.shape, f.shape[1]
    out, biased = torch.empty(f.shape, dtype=product, device=f.device), bias is not None
    arguments = g.contiguous(), W.contiguous(), number, n, f, out, bias if biased else W, rows, d, width
    _tiles(_dots, (rows, width), product, *arguments, BIAS=biased)
    return out


def add_products(
    out: Tensor, f: Tensor, g: Tensor, number: Tensor, n: Tensor, product: torch.dtype, sums: Tensor | None = None
) -> None:
    """out[number[j]] += sum of f[b, j] g[b] over b, and sums[number[j]] += sum of f[b, j], for j < n.

    In place: out [d_sae, d], contiguous, sums [d_sae]; g [B, d].
    """
    assert out.is_contiguous()
    (rows, d), width = g.shape, f.shape[1]
    arguments = out, f, g.contiguous(), number, n, out if sums is None else sums, rows, d, width
    _tiles(_add_products, (width, d), product, *arguments, SUMS=sums is not None)


def compile_for(shape: StepShape) -> None:
    """Compile each kernel as a step of this shape launches it."""
    z, W = shape.meta(shape.batch, shape.d_sae, dtype=shape.products), shape.meta(shape.d_sae, shape.d_in)
    x, product = shape.meta(shape.batch, shape.d_in), shape.products
    number, n = shape.meta(shape.d_sae, dtype=torch.int64), shape.meta(dtype=torch.int32)
    f = largest(z, number, n, max(1, shape.d_in // 2), product)
    left(f, number, n, W, x, product)
    dots(x, W, number, n, f, product)
    for out in (W, W.to(product)) if product != W.dtype else (W,):  # a gradient from sums over pairs, or from a product
        add_products(out, f, x, number, n, product)
        add_products(out, f, x, number, n, product, W[:, 0].contiguous())


def _tiles(kernel: Any, size: tuple[int, int], product: torch.dtype, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel with a program for each tile of a result of this size."""
    m, n, depth, warps = TILE[product]
    tile = {"M": m, "N": n, "K": depth, "num_warps": warps, "BF16": product == torch.bfloat16}
    launch(kernel, (triton.cdiv(size[0], m), triton.cdiv(size[1], n)), *arguments, **constants, **tile)


@triton.jit
def _gather(z_ptr, number_ptr, n_ptr, f_ptr, width, BLOCK: tl.constexpr):
    row, n = tl.program_id(0).to(tl.int64), tl.load(n_ptr)
    if tl.program_id(1) * BLOCK < n:
        j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        place = tl.load(number_ptr + j, mask=j < width, other=0)
        z = tl.load(z_ptr + row * width + place, mask=j < n, other=0.0).to(tl.float32)
        f = tl.where(z <= 0, 0.0, z)  # leaves NaN
        tl.store(f_ptr + row * width + j, f.to(f_ptr.dtype.element_ty), mask=j < width)


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
                key = _key(f_ptr + first + column, first + column < width)
                count += tl.sum((key >= higher).to(tl.int32), 0)
            threshold = tl.where(count >= k, higher, threshold)
            enough = tl.where(count >= k, count, enough)
            bit -= 1
        higher = n * 0
        for first in range(0, n, BLOCK):
            key = _key(f_ptr + first + column, first + column < width)
            higher += tl.sum((key > threshold).to(tl.int32), 0)
        ties_wanted, ties = k - higher, n * 0
        for first in range(0, n, BLOCK):
            valid = first + column < width
            key = _key(f_ptr + first + column, valid)
            tie = (key == threshold).to(tl.int32)
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
        f = tl.load(f_ptr + row[:, None] * width + j[None], mask=(row < rows)[:, None] & (j < width)[None], other=0.0)
        number = tl.load(number_ptr + j, mask=j < width, other=0)
        W = tl.load(W_ptr + number[:, None] * d + column[None], mask=(column < d)[None], other=0.0)
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
        number = tl.load(number_ptr + j, mask=j < width, other=0)
        total = tl.zeros([M, N], tl.float32)
        for first in range(0, d, K):
            i = first + depth
            g = tl.load(g_ptr + row[:, None] * d + i[None], mask=(row < rows)[:, None] & (i < d)[None], other=0.0)
            W = tl.load(W_ptr + number[:, None] * d + i[None], mask=(i < d)[None], other=0.0)
            total = _times(g, tl.trans(W), total, BF16)
        if BIAS:
            total += tl.load(bias_ptr + number)[None]
        place, valid = row[:, None] * width + j[None], (row < rows)[:, None] & (j < width)[None]
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
            valid = (row < rows)[:, None] & (j < width)[None]
            f = tl.load(f_ptr + row[:, None] * width + j[None], mask=valid, other=0.0)
            valid = (row < rows)[:, None] & (column < d)[None]
            g = tl.load(g_ptr + row[:, None] * d + column[None], mask=valid, other=0.0)
            total = _times(tl.trans(f), g, total, BF16)
            if SUMS:
                sums += tl.sum(f.to(tl.float32), 0)
        place, valid = number[:, None] * d + column[None], (j < n)[:, None] & (column < d)[None]
        total += tl.load(out_ptr + place, mask=valid, other=0.0).to(tl.float32)
        tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=valid)
        if SUMS:
            if tl.program_id(1) == 0:
                tl.store(sum_ptr + number, tl.load(sum_ptr + number, mask=j < n, other=0.0) + sums, mask=j < n)
