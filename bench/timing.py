"""How long something takes: by events on a GPU, with its second-level cache emptied before, else by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

CACHE_BYTES = 256 * 2**20
"""More than any GPU's second-level cache."""


def seconds(work: Callable[[], Any], device: str, times: int = 15, warm: int = 3, cold: bool = True) -> float:
    """Median time of `work`, which may be called `warm` times before; `cold`: its inputs are not in a GPU's cache."""
    for _ in range(warm):
        work()
    if device == "cpu":
        return statistics.median(_by_clock(work) for _ in range(times))
    flushed = torch.empty(CACHE_BYTES // 4 if cold else 0, device=device)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(times)]
    for start, end in events:
        flushed.zero_()
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) / 1e3 for start, end in events)


def _by_clock(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def synchronized(device: str) -> float:
    """The clock once all work of the device is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()
