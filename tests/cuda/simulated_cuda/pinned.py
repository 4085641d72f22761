"""Which memory of the CPU is pinned: that of `pin_memory`, and every view of it."""

from __future__ import annotations

import weakref

from torch import Tensor

_pinned: set[int] = set()


def pin(tensor: Tensor) -> Tensor:
    storage = tensor.untyped_storage()
    if storage._cdata not in _pinned:
        _pinned.add(storage._cdata)
        weakref.finalize(storage, _pinned.discard, storage._cdata)
    return tensor


def is_pinned(tensor: Tensor) -> bool:
    return tensor.untyped_storage()._cdata in _pinned
