"""Batches for training: a pure function of (`data_seed`, step)."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np
import torch

from sae_sweeps.activations.permutation import permute
from sae_sweeps.activations.side_stream import SideStream
from sae_sweeps.activations.store import ActivationStore, Rows
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.errors import ConfigError, DataError

KINDS = ("tokens", "adjacent_pairs", "contiguous_windows", "role_pairs", "text_pairs")
PAIRS = ("adjacent_pairs", "role_pairs", "text_pairs")
"""Kinds whose batches hold anchors in rows 0 .. B/2-1 and their partners, in the same order, in rows B/2 .. B-1."""
POLL_S = 0.2
"""Seconds between calls of `go_on` while a batch is not ready."""

Drawn = TypeVar("Drawn")


class Sampler:
    """Draws batches of B tokens from a store.

    A batch is made of spans, runs of consecutive tokens of one context: 1 token each for `tokens`, 2 for
    `adjacent_pairs`, `window` for `contiguous_windows`. All spans that the store holds are used once, in random order,
    then all again in another: with `tokens`, every token once per epoch. From a stream, spans are drawn in the same way
    within one buffer after the other, `buffer_tokens // B` batches from each.

    `role_pairs` draws B/2 tokens as `tokens` does, and for each a partner: another token of the same role, drawn in the
    same way among the tokens of that role. `text_pairs` draws tokens of the first texts of a data set of pairs; the
    partner is the token at the same position of the second text.

    Layout of a batch: `contiguous_windows` has the B/window windows one after the other, each in token order; the
    others in PAIRS have the anchors in rows 0 .. B/2-1 and their partners, in the same order, in rows B/2 .. B-1.
    """

    def __init__(
        self,
        store: ActivationStore,
        batch_size: int,
        data_seed: int = 0,
        kind: str = "tokens",
        window: int = 32,
        device: torch.device | str = "cpu",
    ):
        if kind not in KINDS:
            raise ConfigError(f"train.sampling={kind} is not known; choose one of {', '.join(KINDS)}.")
        self.store, self.batch_size, self.data_seed, self.kind = store, batch_size, data_seed, kind
        self.device = torch.device(device)
        self.span = window if kind == "contiguous_windows" else 2 if kind in PAIRS else 1
        if self.span < 1:
            raise ConfigError(f"train.window={window} is below 1; choose 32, for example.")
        if batch_size < 1 or batch_size % self.span:
            raise ConfigError(
                f"batch_size={batch_size} must be a multiple of {self.span} under train.sampling={kind}; choose one."
            )

    def batch(self, step: int) -> Batch:
        """The batch of a step, float32, on the sampler's device."""
        rows, part, local_step = self._part(step)
        per_batch = self.batch_size // self.span
        number_B = local_step * per_batch + np.arange(per_batch)
        if self.kind == "text_pairs":
            pairs = rows.text_pairs
            if not len(pairs):
                raise DataError("train.sampling=text_pairs: no text of the data has a partner; give data.pair_field.")
            index = pairs[self._drawn(number_B, len(pairs), part)].T
        elif self.kind == "role_pairs":
            first_B = self._drawn(number_B, len(rows), part)
            index = np.stack([first_B, self._partners(rows, first_B, number_B, part)])
        else:
            starts = rows.starts(self.span) if self.span > 1 else None
            n_spans = len(rows) if starts is None else len(starts)
            if not n_spans:
                raise DataError(
                    f"train.sampling={self.kind}: no context has {self.span} consecutive tokens; raise "
                    "data.context or lower train.window."
                )
            picked_B = self._drawn(number_B, n_spans, part)
            first_B = picked_B if starts is None else starts[picked_B]
            index = first_B[:, None] + np.arange(self.span)
            if self.kind == "adjacent_pairs":
                index = index.T
        batch = rows.take(index.reshape(-1)).to(self.device)
        batch.x = batch.x.float()
        return batch

    def _drawn(self, number_B: np.ndarray, n: int, part: tuple[int, ...], stream: tuple[int, ...] = ()) -> np.ndarray:
        """The draws of these numbers from 0 .. n-1: all of them once, in random order, then all again in another."""
        epoch_B, within_B = np.divmod(number_B, n)
        drawn_B = np.empty(len(number_B), np.int64)
        for epoch in np.unique(epoch_B):
            here = epoch_B == epoch
            drawn_B[here] = permute(within_B[here], n, self.data_seed, *part, int(epoch), *stream)
        return drawn_B

    def _partners(self, rows: Rows, first_B: np.ndarray, number_B: np.ndarray, part: tuple[int, ...]) -> np.ndarray:
        """For each token another one of its role; where a role has only one token, that one."""
        role_B = rows.roles[first_B]
        partner_B = np.empty_like(first_B)
        for role in np.unique(role_B):
            here, same = role_B == role, rows.by_role[int(role)]
            drawn = self._drawn(number_B[here], len(same), part, (1 + int(role),))
            clash = same[drawn] == first_B[here]
            partner_B[here] = same[(drawn + clash) % len(same)]
        return partner_B

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps `start` to `stop`, each prepared by a thread while the caller works on the one before."""
        return (batch for _, batch in prepared(self.batch, range(start, stop), device=self.device))

    def _part(self, step: int) -> tuple[Rows, tuple[int, ...], int]:
        """The rows that a step draws from, which part of the stream they are, and the step's number in that part."""
        store, size = self.store, self.batch_size
        if store.buffer_tokens is None:
            return store.rows(0, store.n_tokens), (), step
        steps_per_part = max(1, store.buffer_tokens // size)
        while True:
            n_tokens = store.n_tokens
            epoch, in_epoch = divmod(step, max(1, n_tokens // size))
            part, local_step = divmod(in_epoch, steps_per_part)
            first = part * steps_per_part * size
            rows = store.rows(first, min(first + steps_per_part * size, n_tokens))
            if store.n_tokens == n_tokens:  # else the text has turned out to end here
                return rows, (epoch, part), local_step


def prepared(
    draw: Callable[[int], Drawn],
    steps: range,
    go_on: Callable[[int], bool] = lambda step: True,
    device: torch.device | None = None,
) -> Iterator[tuple[int, Drawn]]:
    """Each step with `draw(step)`, which a thread makes while the caller works on the one before.

    On a GPU it makes them on a stream of its own, so that copies do not wait for the training, nor it for them.
    `go_on(step)` is called while a step is not ready (a stream harvests its next part, for example); False ends them.
    """
    side = SideStream(device or torch.device("cpu"))
    with ThreadPoolExecutor(1, thread_name_prefix="sampler") as thread:
        ahead = thread.submit(side.make, draw, steps.start) if steps else None
        for step in steps:
            assert ahead is not None
            while not ahead.done():
                if not wait([ahead], POLL_S).done and not go_on(step):
                    return
            drawn = side.take(*ahead.result())
            ahead = thread.submit(side.make, draw, step + 1) if step + 1 < steps.stop else None
            yield step, drawn
