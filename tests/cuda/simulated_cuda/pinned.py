"""Which memory of the CPU is pinned: that of `pin_memory`, and every view of it."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from simulated_cuda import order

_pinned: set[int] = set()


def pin(tensor: Tensor) -> Tensor:
    storage, key = tensor.untyped_storage(), order.key_of(tensor)
    if key not in _pinned:
        _pinned.add(key)
        weakref.finalize(storage, _unpin, key)
    return tensor


def _unpin(key: int) -> None:
    _pinned.discard(key)
    order.freed(key)


def is_pinned(tensor: Tensor) -> bool:
    return bool(_pinned) and tensor.layout is torch.strided and order.key_of(tensor) in _pinned
