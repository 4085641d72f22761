"""Activations kept on the GPU that trains: batches are picked there, and only the numbers of rows cross the bus."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from sae_sweeps.activations.store import DiskStore, Index, MemoryStore, Rows
from sae_sweeps.architectures.batch import Batch, to_device


class StoreOnDevice:
    """A store of memory or disk, copied to the device; its batches have the same bits.

    `check` is called between the parts that are copied; an exception that it raises ends that.
    """

    buffer_tokens: int | None = None

    def __init__(self, store: MemoryStore | DiskStore, device: torch.device, check: Callable[[], None]):
        self.mode, self.d_in, self.dtype, self.n_tokens = store.mode, store.d_in, store.dtype, store.n_tokens
        batch, done = None, 0
        for part in store.stream(0, store.n_tokens):
            if batch is None:
                batch = Batch(*(t.new_empty((store.n_tokens, *t.shape[1:]), device=device) for t in part.fields()))
            for whole, piece in zip(batch.fields(), part.fields(), strict=True):
                whole[done : done + len(part)].copy_(piece)
            done += len(part)
            check()
        assert batch is not None
        self._rows = RowsOnDevice(store, batch)

    def rows(self, start: int, stop: int) -> Rows:
        return self._rows


class RowsOnDevice:
    """The rows of a store, taken from `batch` on the device."""

    def __init__(self, rows: Rows, batch: Batch):
        self._on_host, self.batch = rows, batch

    def __len__(self) -> int:
        return len(self.batch)

    def take(self, index_B: np.ndarray) -> Batch:
        return self.batch[to_device(torch.from_numpy(index_B), self.batch.x.device)]

    def starts(self, span: int) -> Index:
        return self._on_host.starts(span)

    @property
    def roles(self) -> np.ndarray:
        return self._on_host.roles

    @property
    def by_role(self) -> dict[int, np.ndarray]:
        return self._on_host.by_role

    @property
    def text_pairs(self) -> np.ndarray:
        return self._on_host.text_pairs

    def beyond(self, limit: float) -> np.ndarray:
        return self._on_host.beyond(limit)
