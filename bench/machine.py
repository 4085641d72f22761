"""What the machine can do at best: matrix products and memory, measured."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Machine:
    name: str
    gflops: float
    """Of a square float32 product (bfloat16 on a GPU)."""
    gb_per_s: float
    """Bytes read and written per second, copying."""

    def text(self) -> str:
        return (
            f"{self.name}; torch {torch.__version__}, {torch.get_num_threads()} threads; measured just before: "
            f"{self.gflops:,.0f} GFLOP/s in a square matrix product, {self.gb_per_s:.1f} GB/s copying."
        )


def limits(device: str) -> Machine:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    n = 8192 if device == "cuda" else 2048
    a, out = torch.randn(n, n, device=device).to(dtype), torch.empty(n, n, device=device, dtype=dtype)
    product = _seconds(lambda: torch.mm(a, a, out=out), device)
    source = torch.randn((64 if device == "cpu" else 1024) * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    copy = _seconds(lambda: target.copy_(source), device)
    return Machine(_name(device), 2 * n**3 / product / 1e9, 2 * source.nbytes / copy / 1e9)


def _seconds(work: Callable[[], Any], device: str, times: int = 7) -> float:
    found = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def _name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as lines:
            model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"
