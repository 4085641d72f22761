"""Weights in bfloat16, for dense products: kept beside the weights themselves, written by the optimizer's own visit.

A copy is used only while its weight is the one that was rounded: at the same memory, and written as often as then.
Torch counts the writes of a tensor, through any view of it, as `Tensor._version`; `written` counts those of our own
kernels. What is written through `.data` is counted nowhere: weights that code from outside may change have no copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass
class _Kept:
    copy: Tensor | None = None
    memory: int = 0
    """Of the weight when it was rounded."""
    version: int = 0
    used: bool = False
    """Since the optimizer last wrote the weight."""

    def holds(self, weight: Tensor) -> bool:
        return (self.memory, self.version) == (weight.data_ptr(), weight._version)


_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def keep(weight: Tensor) -> None:
    """Keep a rounded copy of this weight from now on; the kernel that writes the weight must be given `to_write`."""
    _kept[weight] = _Kept()


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in this dtype, without a gradient: its copy where one is kept. Do not write it."""
    kept = _kept.get(weight)
    if kept is None or dtype != torch.bfloat16:
        return weight.detach().to(dtype)
    if kept.copy is None or not kept.holds(weight):
        kept.copy = weight.detach().to(dtype)
        kept.memory, kept.version = weight.data_ptr(), weight._version
    kept.used = True
    return kept.copy


def at_hand(weight: Tensor, dtype: torch.dtype | None = torch.bfloat16) -> Tensor:
    """The weight's copy where there is one of this dtype that holds, else the weight itself."""
    kept = _kept.get(weight) if dtype == torch.bfloat16 else None
    return kept.copy if kept is not None and kept.copy is not None and kept.holds(weight) else weight


def to_write(weight: Tensor) -> Tensor | None:
    """The copy that a kernel must write with the weight; None where none holds or none was used since the last time."""
    kept = _kept.get(weight)
    if kept is None:
        return None
    if not kept.used or not kept.holds(weight):
        kept.copy = None
    kept.used = False
    return kept.copy


def written(weight: Tensor) -> None:
    """Count a write of the weight, and of what `to_write` gave, by a kernel of our own."""
    torch.autograd.graph.increment_version(weight)
    kept = _kept.get(weight)
    if kept is not None and kept.copy is not None:
        kept.version = weight._version
