"""The sparse operations on a GPU, as Triton kernels: one program for each row of the result.

`sparse_reference` defines each. With TRITON_INTERPRET=1 they run on a CPU too, slowly, which tests them without a GPU.
"""

# mypy: ignore-errors
from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_sweeps.kernels import sparse_reference
from sae_sweeps.kernels.largest_triton import largest
from sae_sweeps.kernels.launching import StepShape, launch
from sae_sweeps.kernels.pairs import Pairs

NAME = "triton"
SPARSE_UP_TO = 1 / 64
"""Share of active features up to which sums over pairs are taken; a guess, as a GPU's matrix units are faster still."""
COLUMNS = 1024
"""Columns of the result that one program computes."""

NARROW = {"_sums": "adds single numbers from anywhere"}
"""Kernels whose main loop has no 128 bits in a row to load."""

above = sparse_reference.above
normalize = sparse_reference.normalize


def product_and_largest(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, z: Tensor) -> tuple[Tensor, Tensor]:
    return largest(torch.addmm(b_enc, centred, W_enc, out=z), k)


def decode(pairs: Pairs, values: Tensor, W: Tensor) -> Tensor:
    out, d = W.new_empty(pairs.n_tokens, W.shape[1]), W.shape[1]
    block = min(COLUMNS, triton.next_power_of_2(d))
    grid = (pairs.n_tokens, triton.cdiv(d, block))
    launch(_decode, grid, pairs.start, pairs.feature, values.contiguous(), W.contiguous(), out, d, BLOCK=block)
    return out


def residual(pairs: Pairs, values: Tensor, W: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    error = x - b - decode(pairs, values, W)
    return error, error.square().sum(1), dots(pairs, W, error)


def dots(pairs: Pairs, W: Tensor, g: Tensor) -> Tensor:
    out, d = W.new_empty(len(pairs.feature)), W.shape[1]
    block = triton.next_power_of_2(d)
    rows = (pairs.start, pairs.feature, W.contiguous(), g.contiguous())
    launch(_dots, (pairs.n_tokens,), *rows, out, d, BLOCK=block, num_warps=_warps(block))
    return out


def transposed(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    start, slot, token = sparse_reference.transposed(pairs)
    return start, slot.int(), token.int()


def weight_gradient(pairs: Pairs, values: Tensor, g: Tensor) -> Tensor:
    start, slot, token = pairs.transposed
    out, d = g.new_empty(pairs.n_features, g.shape[1]), g.shape[1]
    block = min(COLUMNS, triton.next_power_of_2(d))
    grid = (pairs.n_features, triton.cdiv(d, block))
    launch(_weight_gradient, grid, start, slot, token, values.contiguous(), g.contiguous(), out, d, BLOCK=block)
    return out


def sums(pairs: Pairs, values: Tensor) -> Tensor:
    start, slot, _ = pairs.transposed
    out = values.new_empty(pairs.n_features)
    launch(_sums, (pairs.n_features,), start, slot, values.contiguous(), out, BLOCK=128)
    return out


def combination(factors: Tensor, rows: Tensor) -> Tensor:
    return factors @ rows


def remove_parallel(grad: Tensor, W: Tensor) -> None:
    n, d = W.shape
    block = triton.next_power_of_2(d)
    launch(_remove_parallel, (n,), grad, W, d, BLOCK=block, num_warps=_warps(block))


def compile_for(shape: StepShape) -> None:
    """Compile each kernel as a step of this shape launches it."""
    W = shape.meta(shape.d_sae, shape.d_in)
    x, values = shape.meta(shape.batch, shape.d_in), shape.meta(shape.batch * shape.k)
    number = shape.meta(len(values), dtype=torch.int64)
    pairs = Pairs(shape.meta(shape.batch + 1, dtype=torch.int64), number, shape.d_sae, sys.modules[__name__])
    start = shape.meta(shape.d_sae + 1, dtype=torch.int64)
    pairs.transposed = start, number.int(), number.int()
    residual(pairs, values, W, W[0], x)
    weight_gradient(pairs, values, x)
    sums(pairs, values)
    remove_parallel(W, W)


def _warps(block: int) -> int:
    return 4 if block <= 2048 else 8 if block <= 16_384 else 16


@triton.jit
def _decode(start_ptr, feature_ptr, value_ptr, W_ptr, out_ptr, d, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = column < d
    total = tl.zeros([BLOCK], out_ptr.dtype.element_ty)
    for p in range(tl.load(start_ptr + token), tl.load(start_ptr + token + 1)):
        w = tl.load(W_ptr + tl.load(feature_ptr + p) * d + column, mask=valid, other=0.0)
        total += tl.load(value_ptr + p) * w
    tl.store(out_ptr + token * d + column, total, mask=valid)


@triton.jit
def _dots(start_ptr, feature_ptr, W_ptr, g_ptr, out_ptr, d, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    valid = column < d
    g = tl.load(g_ptr + token * d + column, mask=valid, other=0.0)
    for p in range(tl.load(start_ptr + token), tl.load(start_ptr + token + 1)):
        w = tl.load(W_ptr + tl.load(feature_ptr + p) * d + column, mask=valid, other=0.0)
        tl.store(out_ptr + p, tl.sum(w * g, 0))


@triton.jit
def _weight_gradient(start_ptr, slot_ptr, token_ptr, value_ptr, g_ptr, out_ptr, d, BLOCK: tl.constexpr):
    feature = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = column < d
    total = tl.zeros([BLOCK], out_ptr.dtype.element_ty)
    for p in range(tl.load(start_ptr + feature), tl.load(start_ptr + feature + 1)):
        token = tl.load(token_ptr + p).to(tl.int64)
        g = tl.load(g_ptr + token * d + column, mask=valid, other=0.0)
        total += tl.load(value_ptr + tl.load(slot_ptr + p)) * g
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


@triton.jit
def _remove_parallel(grad_ptr, W_ptr, d, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    valid = column < d
    grad = tl.load(grad_ptr + row * d + column, mask=valid, other=0.0)
    w = tl.load(W_ptr + row * d + column, mask=valid, other=0.0)
    tl.store(grad_ptr + row * d + column, grad - tl.sum(grad * w, 0) * w, mask=valid)
