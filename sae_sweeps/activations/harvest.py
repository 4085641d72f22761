"""The stream of tokens that train the SAE, with their activations, in the same order wherever reading starts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from sae_sweeps.activations.contexts import check_context, rows_of
from sae_sweeps.activations.language_model import LanguageModel
from sae_sweeps.activations.synthetic import SyntheticWorld
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.config.schema import DataConfig, LayerConfig
from sae_sweeps.config.typed import check_values
from sae_sweeps.errors import ConfigError


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
        check_values(self.data, "data")
        if self.contexts_per_forward < 1:
            raise ConfigError(
                f"activations.harvest_batch={self.contexts_per_forward} is below 1; choose 32, for example."
            )
        check_context(self.lm, self.data)
        self.d_in = self.lm.width(self.layer)

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """Contexts before `start` are tokenised but not run. They are batched in the same way whatever `start` and
        `stop`, so that an activation always has the same bits."""
        done = sequences = 0
        for tokens_SL, role_SL, keep_SL in self._groups():
            n_kept = int(keep_SL.sum())
            wanted = slice(max(start - done, 0), min(stop - done, n_kept))
            if wanted.start < wanted.stop:
                acts_SLD = self.lm.activations(torch.from_numpy(tokens_SL).long(), self.layer)
                sequence, position = (torch.from_numpy(i[wanted]) for i in np.nonzero(keep_SL))
                yield Batch(
                    x=acts_SLD[sequence.to(acts_SLD.device), position.to(acts_SLD.device)].to(self.dtype).cpu(),
                    token_ids=torch.from_numpy(tokens_SL)[sequence, position],
                    sequence=(sequence + sequences).to(torch.int32),
                    position=position.to(torch.int32),
                    role=torch.from_numpy(role_SL)[sequence, position],
                )
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


def regroup(batches: Iterable[Batch], n: int) -> Iterator[Batch]:
    """The same tokens in batches of exactly `n`, but for the last."""
    held: list[Batch] = []
    n_held = 0
    for batch in batches:
        held.append(batch)
        n_held += len(batch)
        while n_held >= n:
            joined = Batch.concatenate(held)
            yield joined[:n]
            held, n_held = [joined[n:]], n_held - n
    if n_held:
        yield Batch.concatenate(held)
