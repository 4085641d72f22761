"""Tokens whose activation is many times as long as the others': their share of the variance, and a store without them.

A few positions of a language model can have norms a hundred times the median (massive activations, arXiv:2402.17762).
The limit is one number for each layer of a text, so that every way to keep activations, and every evaluation, leaves
out the same tokens.
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from sae_sweeps.activations.store import ActivationStore, Index, IndexedRows, Rows
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.errors import DataError

N_TOKENS = 16_384
"""Tokens at the beginning of the training text that the median norm and the share of the variance are taken from."""
AT_ONCE = 1024


@dataclass(frozen=True)
class NormStats:
    """Norms of a layer's activations, from the first N_TOKENS training tokens."""

    median: float
    limit: float | None
    """`data.max_norm` medians; None where every token is kept."""
    left_out: float
    """Share of the tokens whose norm is above the limit."""
    top_variance: float | None
    """Share of the kept tokens' variance that the thousandth of them with the most holds; None below 1,000 tokens."""


def norm_stats(store: ActivationStore, max_norm: float | None, read: int = 0) -> NormStats:
    """Of N_TOKENS tokens, AT_ONCE at a time.

    `read`: how many tokens of a stream are read, if more; where a run begins with the same ones, they are read once.
    """
    rows = store.rows(0, min(max(read, N_TOKENS), store.n_tokens))
    n = min(N_TOKENS, len(rows))

    def parts() -> Iterator[Batch]:
        return (rows.take(np.arange(first, min(first + AT_ONCE, n))) for first in range(0, n, AT_ONCE))

    norm_N = torch.cat([part.norm for part in parts()])
    median = float(np.median(norm_N.numpy()))
    limit = None if max_norm is None else max_norm * median
    within = torch.inf if limit is None else limit

    def kept() -> Iterator[torch.Tensor]:
        return (part.x[part.norm <= within].double() for part in parts())

    n_kept = int((norm_N <= within).sum())
    mean_D = torch.stack([x_nD.sum(0) for x_nD in kept()]).sum(0) / n_kept
    variance_N = torch.cat([(x_nD - mean_D).square().sum(1) for x_nD in kept()])
    total = float(variance_N.sum())
    top = float(variance_N.topk(n_kept // 1000).values.sum()) / total if n_kept >= 1000 and total else None
    return NormStats(median, limit, 1 - n_kept / n, top)


class StoreWithin:
    """A store without the tokens whose norm is above `limit`: they are never drawn, nor are spans or pairs with one.

    Its parts are those of the whole store, so a part's draws repeat as many tokens as it leaves out.
    """

    def __init__(self, store: ActivationStore, limit: float):
        self.mode, self.d_in, self.dtype, self.buffer_tokens = store.mode, store.d_in, store.dtype, store.buffer_tokens
        self._store, self._limit = store, limit
        self._of: weakref.ref[Rows] | None = None
        self._within: RowsWithin | None = None

    @property
    def n_tokens(self) -> int:
        return self._store.n_tokens

    def rows(self, start: int, stop: int) -> Rows:
        rows = self._store.rows(start, stop)
        if self._within is None or self._of is None or self._of() is not rows:
            # Weakly: a stream frees a part before it reads the next.
            self._of, self._within = weakref.ref(rows), RowsWithin(weakref.proxy(rows), self._limit)
        return self._within


class RowsWithin(IndexedRows):
    """The rows whose norm is at most `limit`, numbered anew in their order."""

    def __init__(self, rows: Rows, limit: float):
        self._rows, self._out = rows, rows.beyond(limit)
        self._kept = Skipping(len(rows), self._out)
        if not len(self._kept):
            raise DataError("data.max_norm leaves out every token of a part of the text; give a larger number.")
        self._starts: dict[int, Index] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, index_B: np.ndarray) -> Batch:
        return self._rows.take(self._kept[index_B])

    def starts(self, span: int) -> Index:
        if span not in self._starts:
            self._starts[span] = StartsWithin(np.asarray(self._rows.starts(span)), self._out, span)
        return self._starts[span]

    def beyond(self, limit: float) -> np.ndarray:
        return renumbered(np.setdiff1d(self._rows.beyond(limit), self._out), self._out)

    @cached_property
    def roles(self) -> np.ndarray:
        return np.delete(self._rows.roles, self._out)

    @cached_property
    def text_pairs(self) -> np.ndarray:
        pairs = self._rows.text_pairs
        return renumbered(pairs[~np.isin(pairs, self._out).any(1)], self._out)


class Skipping:
    """The numbers 0 .. n-1 without those of `out` (sorted), as an array would have them; memory is that of `out`."""

    def __init__(self, n: int, out: np.ndarray):
        self._n = n - len(out)
        self._before = out - np.arange(len(out))  # how many kept ones come before each

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return index + np.searchsorted(self._before, index, side="right")


class StartsWithin:
    """The starts of spans that hold no row of `out`, in the numbers of the kept rows."""

    def __init__(self, starts: np.ndarray, out: np.ndarray, span: int):
        self._starts, self._out = starts, out
        first, last = np.searchsorted(starts, out - span + 1), np.searchsorted(starts, out, side="right")
        broken = [np.empty(0, np.int64), *map(np.arange, first, last)]
        self._kept = Skipping(len(starts), np.unique(np.concatenate(broken)))

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return renumbered(self._starts[self._kept[index]], self._out)


def renumbered(rows: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The numbers that kept rows have once those of `out` are left out."""
    return rows - np.searchsorted(out, rows)
