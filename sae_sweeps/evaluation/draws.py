"""Random draws that depend on the seed and on their purpose, never on earlier draws.

SAEBench draws from one global stream, so its numbers depend on which SAE came first and on whether a cache was warm.
Here every purpose has a stream of its own; within it the draws are SAEBench's, in its order.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor


def stream(seed: int, *purpose: str) -> torch.Generator:
    """A generator for one purpose, on the CPU."""
    return torch.Generator().manual_seed(stream_seed(seed, *purpose))


def stream_seed(seed: int, *purpose: str) -> int:
    """63-bit hash of the seed and the purpose."""
    content = "\0".join([str(seed), *purpose]).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def evenly(n: int, of: int) -> Tensor:
    """`n` numbers spread evenly over 0 .. of-1, all of them where there are no more [min(n, of)]."""
    n = min(n, of)
    return torch.arange(n) * of // max(n, 1)


def offsets(n_by_class: dict[str, int]) -> dict[str, int]:
    """First row of each class where the rows of all classes are concatenated."""
    starts, total = {}, 0
    for name, n in n_by_class.items():
        starts[name] = total
        total += n
    return starts


def against_the_rest(n_by_class: dict[str, int], name: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows [2N] of a binary task and their labels [2N]: all N of the class, and as many drawn from the other classes.

    Each other class gives its share, ceil(N / number of others), of which N are kept; the order is shuffled.
    """
    start, n = offsets(n_by_class), n_by_class[name]
    others = [other for other in n_by_class if other != name]
    share = math.ceil(n / len(others))
    negative = torch.cat(
        [start[other] + torch.randperm(n_by_class[other], generator=generator)[:share] for other in others]
    )
    return _shuffled(start[name] + torch.arange(n), negative, generator)


def against(n_by_class: dict[str, int], name: str, other: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same with one other class."""
    start = offsets(n_by_class)
    return _shuffled(
        start[name] + torch.arange(n_by_class[name]), start[other] + torch.arange(n_by_class[other]), generator
    )


def _shuffled(positive: Tensor, negative: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    n = min(len(positive), len(negative))  # fewer negatives only where an odd number of rows was halved
    negative = negative[torch.randperm(len(negative), generator=generator)[:n]]
    positive = positive[:n]
    order = torch.randperm(2 * n, generator=generator)
    labels = torch.cat([torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)])
    return torch.cat([positive, negative])[order], labels[order]
