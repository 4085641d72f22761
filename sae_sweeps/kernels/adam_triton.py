"""What follows a backward pass on a GPU, in two passes over each parameter: the norm of the gradients, then Adam.

A matrix with rows of unit norm has the part of its gradient along each row measured in the first pass and subtracted in
the second, which also brings the rows back to unit norm, all while a row is in registers. The second pass changes
nothing where a flag on the device is set. No step waits for the host: Adam's counts of steps stay on the device.
"""

# mypy: ignore-errors
from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_sweeps.kernels.launching import StepShape, launch

LONGEST = 8192
"""Longest row of unit norm that a program holds."""
BLOCK = 2048
"""Numbers that a program takes where there are no rows."""
N_RATES = 8
"""1 / divisor, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1^n), 1 / sqrt(1 - beta2^n), eps; and one that fills up."""
NARROW = {"_rates": "takes a number for each parameter"}


def n_parts(tensor: Tensor, unit_rows: bool) -> int:
    """Partial sums that `square_sums` writes for a tensor."""
    return len(tensor) if unit_rows else triton.cdiv(tensor.numel(), BLOCK)


def square_sums(grad: Tensor, parts: Tensor, W: Tensor | None = None, dots: Tensor | None = None) -> None:
    """Write sums of the squares of grad to parts [n_parts]. With W [n, d], of unit rows: those of grad - dots W, and
    dots [n], the length of each row of grad along that of W."""
    rows = W is not None
    shape = grad.shape if rows else (len(parts), min(BLOCK, triton.next_power_of_2(grad.numel())))
    block = triton.next_power_of_2(shape[1])
    W, dots = (W, dots) if rows else (grad, parts)
    constants = {"UNIT_ROWS": rows, "BLOCK": block, "num_warps": _warps(block)}
    launch(_square_sums, (shape[0],), grad, W, dots, parts, grad.numel(), shape[1], **constants)


def rates(
    lr: float, constants: Tensor, divisor: Tensor, skip: Tensor, moves: Tensor, steps: Tensor, out: Tensor
) -> None:
    """Count a step for the parameters that move, unless it is skipped, and write each one's rates to out [n, N_RATES].

    constants: beta1, beta2, eps, float64. divisor and skip (bool): scalars. moves: 1 for a parameter that has a
    gradient, else 0 [n], uint8. steps: Adam's counts [n], float32. out: float64.
    """
    (bits,) = struct.unpack("q", struct.pack("d", lr))  # Triton would pass a float in single precision
    n = triton.next_power_of_2(len(steps))
    skip = skip.view(torch.uint8)
    launch(
        _rates, (1,), constants, divisor, skip, moves, steps, out, bits, len(steps), N=n, N_RATES=N_RATES, num_warps=1
    )


def adam(
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    w: Tensor,
    rates: Tensor,
    skip: Tensor,
    dots: Tensor | None = None,
    copy: Tensor | None = None,
) -> None:
    """Move w and its moments, four tensors of one shape, all contiguous, unless skip, a bool scalar, is true. In place.

    With dots [n]: for matrices [n, d] and the gradient grad - dots w; w's rows then have unit norm. With a copy of w in
    bfloat16: it is written too.
    """
    rows = dots is not None
    d = w.shape[1] if rows else min(BLOCK, triton.next_power_of_2(w.numel()))
    grid = len(w) if rows else triton.cdiv(w.numel(), d)
    block = triton.next_power_of_2(d)
    bits = w if copy is None else copy.view(torch.int16)
    tensors = grad, m, v, w, bits, dots if rows else rates, rates, skip.view(torch.uint8)
    constants = {"UNIT_ROWS": rows, "COPY": copy is not None, "BLOCK": block, "TINY": torch.finfo(w.dtype).tiny}
    constants["num_warps"] = _warps(block)
    launch(_adam, (grid,), *tensors, w.numel(), d, **constants)


def compile_for(shape: StepShape) -> None:
    """Compile each kernel as a step of this shape launches it."""
    W, row = shape.meta(shape.d_sae, shape.d_in), shape.meta(shape.d_sae)
    skip, out = shape.meta(dtype=torch.bool), shape.meta(4, N_RATES, dtype=torch.float64)
    moves, steps = shape.meta(4, dtype=torch.uint8), shape.meta(4, dtype=torch.float32)
    rates(1e-3, shape.meta(3, dtype=torch.float64), shape.meta(), skip, moves, steps, out)
    for bias in (row, W[0]):
        square_sums(bias, shape.meta(n_parts(bias, False)))
        adam(bias, bias, bias, bias, out[0], skip)
    rounded = shape.meta(shape.d_sae, shape.d_in, dtype=shape.products)
    in_products = shape.products != shape.dtype
    for grad in (W, rounded) if in_products else (W,):  # from sums over pairs, and from a product
        square_sums(grad, shape.meta(n_parts(grad, False)))
        if shape.d_in <= LONGEST:
            square_sums(grad, row, W, row)
        for copy in (None, rounded) if in_products else (None,):
            adam(grad, W, W, W, out[0], skip, None, copy)
            if shape.d_in <= LONGEST:
                adam(grad, W, W, W, out[0], skip, row, copy)


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 16)


@triton.jit(do_not_specialize_on_alignment=["part_ptr"])
def _square_sums(
    grad_ptr, W_ptr, dot_ptr, part_ptr, n, d, UNIT_ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    at = row * d + column
    valid = (column < d) & (at < n)
    grad = tl.load(grad_ptr + at, mask=valid, other=0.0).to(part_ptr.dtype.element_ty)
    if UNIT_ROWS:
        w = tl.load(W_ptr + at, mask=valid, other=0.0)
        dot = tl.sum(grad * w, 0)
        tl.store(dot_ptr + row, dot)
        grad -= dot * w
    tl.store(part_ptr + row, tl.sum(grad * grad, 0))


@triton.jit(do_not_specialize=["lr_bits"])
def _rates(
    constant_ptr, divisor_ptr, skip_ptr, moves_ptr, step_ptr, out_ptr, lr_bits: tl.int64, n,
    N: tl.constexpr, N_RATES: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, N)
    moves = (tl.load(moves_ptr + i, mask=i < n, other=0) > 0) & (tl.load(skip_ptr) == 0)
    step = tl.load(step_ptr + i, mask=i < n, other=0.0) + moves.to(tl.float32)
    tl.store(step_ptr + i, step, mask=moves)
    beta1, beta2, eps = tl.load(constant_ptr), tl.load(constant_ptr + 1), tl.load(constant_ptr + 2)
    # beta^n by squaring
    left = tl.maximum(step, 1.0).to(tl.int32)  # of one that never moved nothing is used
    power1, power2 = tl.full([N], 1.0, tl.float64), tl.full([N], 1.0, tl.float64)
    square1, square2 = beta1, beta2
    for _ in range(24):
        odd = (left & 1) == 1
        power1, power2 = tl.where(odd, power1 * square1, power1), tl.where(odd, power2 * square2, power2)
        square1, square2, left = square1 * square1, square2 * square2, left >> 1
    lr = lr_bits.to(tl.int64).to(tl.float64, bitcast=True)
    out = out_ptr + i * N_RATES
    tl.store(out, 1.0 / tl.load(divisor_ptr).to(tl.float64), mask=i < n)
    tl.store(out + 1, 1.0 - beta1, mask=i < n)
    tl.store(out + 2, beta2, mask=i < n)
    tl.store(out + 3, 1.0 - beta2, mask=i < n)
    tl.store(out + 4, lr / (1.0 - power1), mask=i < n)
    tl.store(out + 5, 1.0 / tl.sqrt(1.0 - power2), mask=i < n)
    tl.store(out + 6, eps, mask=i < n)


@triton.jit
def _bfloat16(w):
    """Bits of the nearest bfloat16, ties to even, as torch rounds; the interpreter's conversion cuts them off."""
    bits = w.to(tl.uint32, bitcast=True)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(w != w, 0x7FC0, nearest).to(tl.int16)


@triton.jit
def _adam(
    grad_ptr, m_ptr, v_ptr, w_ptr, copy_ptr, dot_ptr, rate_ptr, skip_ptr, n, d,
    UNIT_ROWS: tl.constexpr, COPY: tl.constexpr, BLOCK: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    if tl.load(skip_ptr) == 0:
        dtype: tl.constexpr = w_ptr.dtype.element_ty
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        at = row * d + column
        valid = (column < d) & (at < n)
        g = tl.load(grad_ptr + at, mask=valid, other=0.0).to(dtype)
        w = tl.load(w_ptr + at, mask=valid, other=0.0)
        m = tl.load(m_ptr + at, mask=valid, other=0.0)
        v = tl.load(v_ptr + at, mask=valid, other=0.0)
        if UNIT_ROWS:
            g -= tl.load(dot_ptr + row) * w
        g *= tl.load(rate_ptr).to(dtype)
        m += tl.load(rate_ptr + 1).to(dtype) * (g - m)
        v = tl.load(rate_ptr + 2).to(dtype) * v + tl.load(rate_ptr + 3).to(dtype) * g * g
        root = tl.sqrt(v) * tl.load(rate_ptr + 5).to(dtype) + tl.load(rate_ptr + 6).to(dtype)
        w -= tl.load(rate_ptr + 4).to(dtype) * m / root
        if UNIT_ROWS:
            w = tl.where(valid, w, 0.0)
            w *= 1.0 / tl.maximum(tl.sqrt(tl.sum(w * w, 0)), TINY)
        tl.store(m_ptr + at, m, mask=valid)
        tl.store(v_ptr + at, v, mask=valid)
        tl.store(w_ptr + at, w, mask=valid)
        if COPY:
            tl.store(copy_ptr + at, _bfloat16(w), mask=valid)
