"""Time that a device works on something, also on a GPU, which works asynchronously."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Runs inside `with stopwatch.running()`. On a GPU work queued before does not count."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        if self._cuda:
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            stop.record()
            self._pending.append((start, stop))
        else:
            began = time.monotonic()
            yield
            self._seconds += time.monotonic() - began

    def seconds(self) -> float:
        """Seconds so far; waits for a GPU to finish."""
        for start, stop in self._pending:
            stop.synchronize()
            self._seconds += start.elapsed_time(stop) / 1e3
        self._pending.clear()
        return self._seconds
