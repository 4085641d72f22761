"""Buffers reused from step to step: fresh pages of the system cost as much as filling them."""

from __future__ import annotations

import ctypes
import math
from functools import cache

import torch
from torch import Tensor

MOST = 2
"""Released buffers that are kept: W_enc's and W_dec's gradients have one shape."""

CPU = torch.device("cpu")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers (malloc.h)."""

_released: list[Tensor] = []


@cache
def retain_freed_memory() -> None:
    """Let glibc's malloc keep up to 2 GB of freed memory for the next step; without glibc it does nothing.

    Tensors of more than 32 MB, the largest threshold that mallopt takes, come from the system as before.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 2**25)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def take(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor on the CPU, uninitialised; a released one of that shape and dtype where there is one."""
    for i, tensor in enumerate(_released):
        if tensor.shape == shape and tensor.dtype == dtype:
            return _released.pop(i)
    return torch.empty(shape, dtype=dtype)


def release(tensor: Tensor) -> None:
    """Allow `take` to return this tensor. Its content must not be read any more."""
    if tensor.is_contiguous():
        _released.append(tensor)
        del _released[:-MOST]


_kept: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}


def kept(use: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """An uninitialised tensor in memory that every call for this use, dtype and device returns."""
    key, size = (use, dtype, device), math.prod(shape)
    if key not in _kept or len(_kept[key]) < size:
        _kept[key] = torch.empty(size, dtype=dtype, device=device)
    return _kept[key][:size].view(shape)
