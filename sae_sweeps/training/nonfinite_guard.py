"""Whether each step was finite, found out without waiting for a GPU.

A GPU works behind the program that feeds it, and asking it for a number at every step would stop both. So the answer is
copied when it is there and read some steps later. From a step that was not finite on, nothing is updated: the flag
stays up on the device, and the optimizer obeys it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from sae_sweeps.architectures.batch import Batch


class NonFiniteGuard:
    """Args:
    explain: makes the error of a step that was not finite.
    at_once: the device has no backlog, so a step can be judged before it updates anything.
    """

    def __init__(self, device: torch.device, explain: Callable[[int, Batch], Exception], at_once: bool | None = None):
        self.explain, self.cuda = explain, device.type == "cuda"
        self.at_once = not self.cuda if at_once is None else at_once
        self.bad = torch.zeros((), dtype=torch.bool, device=device)
        self.waiting: deque[tuple[int, Batch, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, batch: Batch, finite: Tensor) -> Tensor:
        """Note a step's verdict; the flag, scalar bool, says whether this step or one before was not finite."""
        self.bad = self.bad | ~finite
        answer, event = self.bad, None
        if self.cuda:
            answer = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(self.bad, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.waiting.append((step, batch, answer, event))
        return self.bad

    def check(self, wait: bool = False) -> None:
        """Raise for the first step known not to be finite; `wait` for all of them."""
        while self.waiting:
            step, batch, answer, event = self.waiting[0]
            if event is None:
                if not wait and len(self.waiting) < 2:
                    return
            elif wait:
                event.synchronize()
            elif not event.query():
                return
            self.waiting.popleft()
            if bool(answer):
                raise self.explain(step, batch)
