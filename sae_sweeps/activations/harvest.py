"""The stream of tokens that train the SAE, with their activations, in the same order wherever reading starts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.activations.contexts import check_context, rows_of
from sae_sweeps.activations.language_model import LanguageModel
from sae_sweeps.activations.synthetic import SyntheticWorld
from sae_sweeps.architectures.batch import Batch, norms_of, to_device
from sae_sweeps.config.schema import DataConfig, LayerConfig


class Source(Protocol):
    """Something that activations are harvested from."""

    d_in: int
    dtype: torch.dtype

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """Tokens `start` to `stop` of the stream, in order, on the CPU; fewer if the text ends."""
        ...

    def count(self, stop: int) -> int:
        """How many tokens the stream has, counted up to `stop`; no activation is computed."""
        ...


@dataclass
class TextSource:
    """Activations of a language model at one layer on one split of the text."""

    lm: LanguageModel
    layer: LayerConfig
    data: DataConfig
    split: str
    dtype: torch.dtype
    contexts_per_forward: int

    def __post_init__(self) -> None:
        check_context(self.lm, self.data)
        self.d_in = self.lm.width(self.layer)

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        return (batch for (batch,) in self.streams([self], start, stop))

    @staticmethod
    def streams(sources: Sequence["TextSource"], start: int, stop: int) -> Iterator[list[Batch]]:
        """The streams of sources that differ in nothing but the layer, from one pass of the language model.

        Contexts before `start` are tokenised but not run. They are batched in the same way whatever `start`, `stop` and
        the layers, so that an activation always has the same bits.
        """
        return arrived(TextSource._computed(sources, start, stop), sources[0].lm.device)

    @staticmethod
    def _computed(sources: Sequence["TextSource"], start: int, stop: int) -> Iterator[list[Batch]]:
        done = sequences = 0
        lm, layers = sources[0].lm, [source.layer for source in sources]
        for tokens_SL, role_SL, keep_SL in sources[0]._groups():
            n_kept = int(keep_SL.sum())
            wanted = slice(max(start - done, 0), min(stop - done, n_kept))
            if wanted.start < wanted.stop:
                acts = lm.activations_at(to_device(torch.from_numpy(tokens_SL).long(), lm.device), layers)
                sequence, position = (torch.from_numpy(i[wanted]) for i in np.nonzero(keep_SL))
                at = to_device(sequence, lm.device), to_device(position, lm.device)
                token_ids, role = (torch.from_numpy(t_SL)[sequence, position] for t_SL in (tokens_SL, role_SL))
                place = (sequence + sequences).to(torch.int32), position.to(torch.int32)
                xs = [acts_SLD[at] for acts_SLD in acts]
                yield [
                    Batch(to_host(x.to(source.dtype)), token_ids, *place, role, to_host(norms_of(x)))
                    for source, x in zip(sources, xs, strict=True)
                ]
            done += n_kept
            sequences += len(tokens_SL)
            if done >= stop:
                return

    def count(self, stop: int) -> int:
        done = 0
        for _, _, keep_SL in self._groups():
            done += int(keep_SL.sum())
            if done >= stop:
                return stop
        return done

    def _groups(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Contexts that are run together: tokens, roles, and which of the tokens train the SAE, each [S, L]."""
        left_out = self.lm.special_ids if self.data.train_on == "non_special" else ()
        special = np.array(sorted(left_out), np.int32)
        rows = rows_of(self.data, self.split, self.lm)
        while group := list(islice(rows, self.contexts_per_forward)):
            tokens_SL = np.stack([context.tokens_L for context in group])
            text_SL = np.arange(tokens_SL.shape[1]) < np.array([[context.length] for context in group])
            yield tokens_SL, np.stack([context.role_L for context in group]), text_SL & ~np.isin(tokens_SL, special)


@dataclass
class SyntheticSource:
    """One split of a synthetic world, which needs no language model."""

    world: SyntheticWorld
    context: int
    split: str
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.d_in = self.world.d_in

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        for batch in self.world.stream(start, stop, self.context, self.split):
            batch.x = batch.x.to(self.dtype)
            yield batch

    def count(self, stop: int) -> int:
        return stop


def to_host(tensor: Tensor) -> Tensor:
    """The tensor on the CPU; from a GPU the copy is only queued."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def arrived(batches: Iterator[list[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """The batches with their copies from a GPU complete, each while the GPU computes the one after it."""
    if device.type != "cuda":
        yield from batches
        return
    before: tuple[list[Batch], torch.cuda.Event] | None = None
    for together in batches:
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(device))
        if before is not None:
            before[1].synchronize()
            yield before[0]
        before = together, copied
    if before is not None:
        before[1].synchronize()
        yield before[0]


def streams(sources: Sequence[Source], start: int, stop: int) -> Iterator[list[Batch]]:
    """A batch of each source at a time, for the same tokens: one source, or several of one text."""
    texts = [source for source in sources if isinstance(source, TextSource)]
    if len(texts) == len(sources):
        return TextSource.streams(texts, start, stop)
    return map(list, zip(*(source.stream(start, stop) for source in sources), strict=True))


class Regrouped:
    """Takes batches and gives the same tokens in batches of exactly `n`, but for the last."""

    def __init__(self, n: int):
        self.n = n
        self._held: list[Batch] = []

    def add(self, batch: Batch) -> Iterator[Batch]:
        """The batches that are full now."""
        self._held.append(batch)
        while sum(map(len, self._held)) >= self.n:
            joined = Batch.concatenate(self._held)
            yield joined[: self.n]
            self._held = [joined[self.n :]]

    def rest(self) -> Iterator[Batch]:
        """What is left, if anything."""
        if sum(map(len, self._held)):
            yield Batch.concatenate(self._held)
        self._held = []
