"""The k largest numbers of each row on a GPU: a row is read once, in chunks, and no program holds more of it.

The columns form groups, column modulo the number of groups, of which the largest number is kept. The k-th largest of
these is a bound that at least k numbers of the row reach, and these are in few more than k groups: all numbers of these
groups are the candidates. Bisection of the candidates, as integers in the order of the numbers, finds the k-th
largest; of equal numbers those with the smallest columns are taken. Where so many groups reach the bound, because of
ties, that the candidates are too many, the row itself takes their place, read anew for each step of the bisection.
"""

# mypy: ignore-errors
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_sweeps.kernels import sparse_reference
from sae_sweeps.kernels.launching import StepShape, launch

MOST = 1280
"""Largest k of the kernel; for a larger one torch's own selection is taken."""


def largest(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if z.dtype not in (torch.float32, torch.bfloat16) or not 0 < k <= MOST:
        return sparse_reference.largest(z, k)
    z = z.contiguous()
    B, n = z.shape
    groups, kept = _sizes(n, k)
    values, indices = z.new_empty(B, k), torch.empty(B, k, dtype=torch.int64, device=z.device)
    list_ = torch.empty(B, groups, dtype=torch.int32, device=z.device)
    shift = 16 if z.dtype == torch.bfloat16 else 0
    constants = {
        "GROUPS": groups,
        "KEPT": kept,
        "CHUNK": 1024,
        "SHIFT": shift,
        "LOWEST": -(2**31) >> shift,
    }
    warps = min(groups // 256, 16)
    if warps == 16:
        constants["maxnreg"] = 128  # without it ptxas keeps to 64, so that two programs fit, and spills for it
    launch(_largest, (B,), z, values, indices, list_, n, k, **constants, num_warps=warps)
    return values, indices


def _sizes(n: int, k: int) -> tuple[int, int]:
    """Number of groups of the n columns, and of candidates, so that both are few; powers of 2."""
    reach = k + k // 8
    groups = triton.next_power_of_2(max(1024, 4 * k, math.isqrt(reach * n)))
    return groups, max(1024, triton.next_power_of_2(reach * triton.cdiv(n, groups)))


def compile_for(shape: StepShape) -> None:
    """Compile the kernel as a step of this shape launches it."""
    largest(shape.meta(shape.batch, shape.d_sae, dtype=shape.products), shape.k)


@triton.jit
def _keys(z_ptr, column, valid, SHIFT: tl.constexpr, LOWEST: tl.constexpr):
    """Integers in the order of the numbers, NaN above infinity; of 32 - SHIFT bits. LOWEST where not valid."""
    z = tl.load(z_ptr + column, mask=valid, other=0.0).to(tl.float32)
    bits = z.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = tl.where(z == 0, 0, key)
    key = tl.where(z != z, 0x7FFFFFFF, key)
    return tl.where(valid, key >> SHIFT, LOWEST)


@triton.jit
def _halved(low, high, reach, n_sure, middle, n, k):
    """low, high, and how many reach them, after n were found to reach the middle."""
    enough = n >= k
    return (
        tl.where(enough, middle, low),
        tl.where(enough, high, middle),
        tl.where(enough, n, reach),
        tl.where(enough, n_sure, n),
    )


@triton.jit
def _pack(z_ptr, value_ptr, index_ptr, key, column, low, high, k, done, rank):
    """Write those that reach high, and those that reach low until there are k. How many were written, and reach low."""
    sure = key > (high - 1).to(tl.int32)
    tie = (key >= low.to(tl.int32)) & ~sure
    chosen = sure | (tie & (rank + tl.cumsum(tie.to(tl.int32), 0) <= k))
    place = done + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(value_ptr + place, tl.load(z_ptr + column, mask=chosen, other=0.0), mask=chosen)
    tl.store(index_ptr + place, column.to(tl.int64), mask=chosen)
    return done + tl.sum(chosen.to(tl.int32), 0), rank + tl.sum(tie.to(tl.int32), 0)


@triton.jit(do_not_specialize=["k"])
def _largest(
    z_ptr, value_ptr, index_ptr, list_ptr, n, k,
    GROUPS: tl.constexpr, KEPT: tl.constexpr, CHUNK: tl.constexpr, SHIFT: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * n
    value_ptr += row * k
    index_ptr += row * k
    list_ptr += row * GROUPS
    group = tl.arange(0, GROUPS)

    best = tl.full([GROUPS], LOWEST, tl.int32)
    for first in range(0, n, GROUPS):
        best = tl.maximum(best, _keys(z_ptr, first + group, first + group < n, SHIFT, LOWEST))
    top = tl.max(best, 0).to(tl.int64) + 1
    # at least k groups reach low, fewer reach high; in int64, as their distance may have 33 bits
    low = tl.maximum(tl.min(best, 0), LOWEST + 1).to(tl.int64)
    high = top
    reach = tl.minimum(n, GROUPS)
    n_sure = 0
    while (high - low > 1) & (reach > k + k // 8):
        middle = low + (high - low) // 2
        n_groups = tl.sum((best >= middle.to(tl.int32)).to(tl.int32), 0)
        low, high, reach, n_sure = _halved(low, high, reach, n_sure, middle, n_groups, k)

    reaches = best >= low.to(tl.int32)
    n_groups = tl.sum(reaches.to(tl.int32), 0)
    n_candidates = n_groups * tl.cdiv(n, GROUPS)
    high = top  # as fewer than k groups reached it, but maybe more numbers
    n_sure = 0
    reach = n
    if n_candidates <= KEPT:
        tl.store(list_ptr + tl.cumsum(reaches.to(tl.int32), 0) - 1, group, mask=reaches)
        tl.debug_barrier()  # it is read by other threads than those that wrote it
        candidate = tl.arange(0, KEPT)
        valid = candidate < n_candidates
        member = candidate // n_groups  # so that the candidates are in the order of their columns
        column = member * GROUPS + tl.load(list_ptr + candidate - member * n_groups, mask=valid, other=0)
        key = _keys(z_ptr, column, valid & (column < n), SHIFT, LOWEST)
        while (high - low > 1) & (reach > k):
            middle = low + (high - low) // 2
            n_numbers = tl.sum((key >= middle.to(tl.int32)).to(tl.int32), 0)
            low, high, reach, n_sure = _halved(low, high, reach, n_sure, middle, n_numbers, k)
        _pack(z_ptr, value_ptr, index_ptr, key, column, low, high, k, 0, n_sure)
    else:
        lane = tl.arange(0, CHUNK)
        while (high - low > 1) & (reach > k):
            middle = low + (high - low) // 2
            count = tl.zeros([CHUNK], tl.int32)
            for first in range(0, n, CHUNK):
                key = _keys(z_ptr, first + lane, first + lane < n, SHIFT, LOWEST)
                count += (key >= middle.to(tl.int32)).to(tl.int32)
            low, high, reach, n_sure = _halved(low, high, reach, n_sure, middle, tl.sum(count, 0), k)
        done = 0
        rank = n_sure
        for first in range(0, n, CHUNK):
            key = _keys(z_ptr, first + lane, first + lane < n, SHIFT, LOWEST)
            done, rank = _pack(z_ptr, value_ptr, index_ptr, key, first + lane, low, high, k, done, rank)
