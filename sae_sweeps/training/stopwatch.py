"""Time that a device works on something, also on a GPU, which works asynchronously."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Runs inside `with stopwatch.running()`. On a GPU work queued before does not count, and idleness does."""

    def __init__(self, device: torch.device):
        self._device = device
        self._seconds = 0.0
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event, int]] = []

    @contextmanager
    def running(self, share: int = 1) -> Iterator[None]:
        """Count the block's time, divided by `share`."""
        if self._device.type == "cuda":
            start = self._event()
            yield
            self._pending.append((start, self._event(), share))
        else:
            began = time.monotonic()
            yield
            self._seconds += (time.monotonic() - began) / share

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self) -> float:
        """Seconds so far; waits for a GPU to finish."""
        for start, stop, share in self._pending:
            stop.synchronize()
            self._seconds += start.elapsed_time(stop) / 1e3 / share
        self._pending.clear()
        return self._seconds
