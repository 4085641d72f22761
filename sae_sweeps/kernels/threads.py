"""Compiled loops over rows, in as many threads as torch has.

A kernel computes each row by itself, so the numbers do not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

FEW = 64
"""Rows below which a second thread costs more than it saves."""
SUMS = {"fastmath": {"contract", "reassoc", "nsz"}}
"""Options of a kernel whose sums may be reordered into vector lanes; NaN and infinity keep their meaning."""


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """numba.njit without the GIL, cached on disk where the cache folder is writable."""
    import numba

    def compile_it(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # no writable folder
            return numba.njit(nogil=True, **options)(function)

    return compile_it


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernel")


def array(tensor: Tensor) -> np.ndarray:
    """The tensor's numbers, contiguous; its own memory where they are."""
    return tensor.detach().contiguous().numpy()


def equal_parts(start: Tensor) -> list[int]:
    """Bounds between features that give each thread about the same number of pairs."""
    threads = torch.get_num_threads()
    wanted = torch.arange(1, threads) * int(start[-1]) // threads
    return [0, *torch.searchsorted(start, wanted).tolist(), len(start) - 1]


def over_rows(kernel: Callable[..., Any], n_rows: int, *arguments: Any, bounds: list[int] | None = None) -> None:
    """Run kernel(*arguments, start, stop) over parts of 0 .. n_rows, one per thread: equal, or between `bounds`."""
    threads = torch.get_num_threads() if n_rows >= FEW else 1
    if threads == 1:
        kernel(*arguments, 0, n_rows)
        return
    bounds = bounds or [n_rows * part // threads for part in range(threads + 1)]
    pool = _pool(os.getpid(), threads - 1)  # by process, as a fork has none of its parent's threads
    ahead = [pool.submit(kernel, *arguments, *bounds[part : part + 2]) for part in range(1, threads)]
    kernel(*arguments, *bounds[:2])
    for part in ahead:
        part.result()


def over_blocks(work: Callable[[int, int], None], n_rows: int, block: int) -> None:
    """Run work(start, stop) over blocks of 0 .. n_rows, each in the next free thread: for rows of unequal cost."""
    starts = iter(range(0, n_rows, block))

    def take() -> None:
        for start in starts:  # next() of a range's iterator is one step under the GIL
            work(start, min(start + block, n_rows))

    threads = min(torch.get_num_threads(), -(-n_rows // block))
    if threads < 2:
        take()
        return
    pool = _pool(os.getpid(), threads - 1)
    others = [pool.submit(take) for _ in range(threads - 1)]
    take()
    for other in others:
        other.result()
