"""What is kept of each feature while text is read once: its strongest and some drawn examples, and its histogram.

Everything is bounded by the number of features, whatever the length of the text, and does not depend on how the text is
divided into batches. Loops run over batches, never over features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BINS = 64
"""Of a histogram; between half of them and all are below the largest value."""
MULTIPLIERS = (0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
"""Of the generator splitmix64 (Steele, Lea and Flood 2014), as int64."""


class Largest:
    """Per feature the `n` entries of largest key, largest first; of equal keys the ones that were added first."""

    def __init__(self, n: int, d_sae: int, width: int, device: torch.device):
        self.key = torch.full((n, d_sae), -torch.inf, dtype=torch.float64, device=device)
        """-inf where there are fewer."""
        self.place = torch.full((n, d_sae), -1, dtype=torch.int64, device=device)
        self.around = torch.zeros(n, d_sae, width, dtype=torch.float32, device=device)
        """Activations around the place."""

    def add(self, feature: Tensor, key: Tensor, place: Tensor, around: Callable[[Tensor], Tensor]) -> None:
        """Add entries [n] in the order of their places. around: of the entries with these numbers [m] -> [m, width]."""
        n = len(self.key)
        kept = (key > self.key[-1, feature]).nonzero()[:, 0]
        if not len(kept):
            return
        order = kept[key[kept].argsort(descending=True, stable=True)]
        order = order[feature[order].argsort(stable=True)]
        columns, count = feature[order].unique_consecutive(return_counts=True)
        column = torch.arange(len(columns), device=key.device).repeat_interleave(count)
        rank = torch.arange(len(order), device=key.device) - (count.cumsum(0) - count)[column]
        order, column, rank = (one[rank < n] for one in (order, column, rank))
        height = int(rank.max()) + 1
        new_key = self.key.new_full((height, len(columns)), -torch.inf)
        new_place = self.place.new_full(new_key.shape, -1)
        new_around = self.around.new_zeros(*new_key.shape, self.around.shape[2])
        new_key[rank, column], new_place[rank, column] = key[order].double(), place[order]
        new_around[rank, column] = around(order).float()
        both = torch.cat([self.key[:, columns], new_key])
        chosen = both.argsort(dim=0, descending=True, stable=True)[:n]
        self.key[:, columns] = both.gather(0, chosen)
        self.place[:, columns] = torch.cat([self.place[:, columns], new_place]).gather(0, chosen)
        whole = chosen[..., None].expand(*chosen.shape, self.around.shape[2])
        self.around[:, columns] = torch.cat([self.around[:, columns], new_around]).gather(0, whole)


class Histogram:
    """Per feature the counts of its positive activations in BINS equal bins from 0 to `end`, a power of two.

    `end` doubles as larger values come, and two bins become one: nothing is counted anew, and the result is that of the
    final `end`.
    """

    def __init__(self, d_sae: int, device: torch.device):
        self.counts = torch.zeros(d_sae, BINS, dtype=torch.int64, device=device)
        self.end = torch.zeros(d_sae, dtype=torch.float64, device=device)
        """Above the largest value; 0 before the first one."""

    def add(self, feature: Tensor, value: Tensor) -> None:
        """Count values > 0 [n] of the features with these numbers [n]."""
        value = value.double()
        largest = torch.zeros_like(self.end).scatter_reduce(0, feature, value, "amax")
        needed = torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), torch.frexp(largest)[1]), 0.0)
        self.end = torch.where(self.end > 0, self.end, needed)
        while (wide := self.end < needed).any():
            pairs = self.counts[wide].view(-1, BINS // 2, 2).sum(2)
            self.counts[wide] = torch.cat([pairs, torch.zeros_like(pairs)], 1)
            self.end[wide] *= 2
        bins = (value / self.end[feature] * BINS).long()
        self.counts += torch.bincount(feature * BINS + bins, minlength=self.counts.numel()).view_as(self.counts)


def draws(place: Tensor, feature: Tensor, d_sae: int, seed: int) -> Tensor:
    """A number from 0 to 1 [n], float64, that a place and a feature have in every run: as if drawn at random."""
    z = (place * d_sae + feature + seed) * MULTIPLIERS[0]
    for shift, factor in ((30, MULTIPLIERS[1]), (27, MULTIPLIERS[2])):
        z = (z ^ _shifted(z, shift)) * factor
    return _shifted(z ^ _shifted(z, 31), 11).double() * 2.0**-53


def _shifted(z: Tensor, n: int) -> Tensor:
    """The 64 bits of z shifted to the right, zeros coming in."""
    return (z >> n) & (2 ** (64 - n) - 1)
