"""Memory of the weights' gradients, handed from step to step: a system's fresh pages cost as much as filling them."""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 2
"""Tensors that wait to be used again: W_enc's and W_dec's gradients have one shape."""

_waiting: list[Tensor] = []


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
