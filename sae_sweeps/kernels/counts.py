"""How often numbers occur, without reading any of them: `torch.bincount` would wait for a GPU."""

import torch
from torch import Tensor


def counts(numbers: Tensor, n: int, among: Tensor | None = None) -> Tensor:
    """How often each of 0 .. n - 1 occurs in `numbers`, at the places that are true in `among` if given [n], int64."""
    ones = torch.ones_like(numbers) if among is None else among.long()
    return numbers.new_zeros(n).scatter_add_(0, numbers, ones)
