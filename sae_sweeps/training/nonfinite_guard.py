"""Detection of steps that are not finite, without waiting for a GPU.

A GPU works asynchronously, and reading a number from it at every step would stop it. So each step's flag is copied when
it is computed and read some steps later. The flag stays set on the device, and from the first step that was not finite
on neither the optimizer nor a component changes anything: parameters are kept by the optimizer, buffers by `Snapshot`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from sae_sweeps.architectures.batch import Batch


class Snapshot:
    """Copies of tensors, to which they return where a step was not finite."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.copies = {name: tensor.clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], where: Tensor) -> None:
        """Give the tensors, which may be other ones under the same names, the copied values where `where` is true."""
        for name, tensor in tensors.items():
            copy = self.copies.get(name)
            if copy is not None and copy.shape == tensor.shape:
                torch.where(where, copy, tensor, out=tensor)


class NonFiniteGuard:
    """Args:
    explain: returns the error of a step that was not finite.
    at_once: the device is not asynchronous, so a step is checked before it updates anything.
    """

    def __init__(self, device: torch.device, explain: Callable[[int, Batch], Exception], at_once: bool | None = None):
        self.explain, self.cuda = explain, device.type == "cuda"
        self.at_once = not self.cuda if at_once is None else at_once
        self.bad = torch.zeros((), dtype=torch.bool, device=device)
        self.waiting: deque[tuple[int, Batch, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, batch: Batch, finite: Tensor) -> Tensor:
        """Queue a step's result [scalar bool]; returns the flag: this step or an earlier one was not finite."""
        self.bad = self.bad | ~finite
        flag, event = self.bad, None
        if self.cuda:
            flag = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(self.bad, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.waiting.append((step, batch, flag, event))
        return self.bad

    def check(self, wait: bool = False) -> None:
        """Raise the error of the first step known not to be finite; with `wait` after reading all steps."""
        while self.waiting:
            step, batch, flag, event = self.waiting[0]
            if event is None:
                if not wait and len(self.waiting) < 2:
                    return
            elif wait:
                event.synchronize()
            elif not event.query():
                return
            self.waiting.popleft()
            if bool(flag):
                raise self.explain(step, batch)
