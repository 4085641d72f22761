"""Memory handed from step to step: a system's fresh pages cost as much as filling them."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

MOST = 2
"""Tensors that wait to be used again: W_enc's and W_dec's gradients have one shape."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers (malloc.h)."""

_waiting: list[Tensor] = []


@cache
def retain_freed_memory() -> None:
    """Let glibc's malloc keep up to 2 GB for the next step, not hand it back to the system; elsewhere nothing is done.

    Tensors of more than 32 MB, which is the most that may be asked for, come from the system as before.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 2**25)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def take(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor on the CPU with anything in it."""
    for i, tensor in enumerate(_waiting):
        if tensor.shape == shape and tensor.dtype == dtype:
            return _waiting.pop(i)
    return torch.empty(shape, dtype=dtype)


def give_back(tensor: Tensor) -> None:
    """What nobody looks at any more."""
    if tensor.is_contiguous():
        _waiting.append(tensor)
        del _waiting[:-MOST]
