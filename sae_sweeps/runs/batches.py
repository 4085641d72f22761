"""The batches of a group: one pass over one store of activations, one batch for all runs with the same stream."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from sae_sweeps.activations.sampler import Sampler
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.config.run import RunConfig
from sae_sweeps.runs.evaluate import held_out_activations
from sae_sweeps.runs.session import RunSession, open_split
from sae_sweeps.training.loop import Member
from sae_sweeps.training.start import first_tokens

Stream = tuple[int, int, str, int]
"""What decides a run's batches within one store: batch size, data seed, sampling and window."""


def stream_of(run: RunConfig) -> Stream:
    return run.batch_size, run.data_seed, run.train.sampling, run.train.window


class Batches:
    """The batches of runs that share a store; `run` is any of them. Raises what opening the store does."""

    def __init__(self, run: RunConfig, session: RunSession, cache: Path):
        self.session, self.cache = session, cache
        self.store = open_split(run, session, cache, "train", run.total_steps * run.batch_size)
        self.first: dict[Stream, torch.Tensor] = {}
        """Activations [n, d_in] for the scale and decoder bias of runs that start at step 0, by stream."""
        self.held_out: dict[int, torch.Tensor | None] = {}
        """Held-out activations by `train.held_out_tokens`."""
        self._samplers: dict[Stream, Sampler] = {}

    def prepare(self, run: RunConfig, fresh: bool) -> None:
        """Open what the run shares with others of its stream; `fresh` where it starts at step 0."""
        stream, n_tokens = stream_of(run), run.train.held_out_tokens
        if n_tokens not in self.held_out:
            self.held_out[n_tokens] = held_out_activations(run, self.session, self.cache)
        if stream not in self._samplers:
            size, seed, kind, window = stream
            self._samplers[stream] = Sampler(
                self.store, size, seed, kind=kind, window=window, device=self.session.device
            )
        if fresh and stream not in self.first:
            self.first[stream] = first_tokens(self._samplers[stream], run.batch_size, run.total_steps)

    def draw(self, members: Iterable[Member], step: int) -> dict[Stream, Batch | Exception]:
        """A step's batch for each stream that a member takes, or the error that prevented it."""
        drawn: dict[Stream, Batch | Exception] = {}
        for stream, sampler in self._samplers.items():
            if any(member.stream == stream and member.takes(step) for member in members):
                try:
                    drawn[stream] = sampler.batch(step)
                except Exception as error:
                    drawn[stream] = error
        return drawn
