"""The batches of a group: one pass over its text, one batch for all runs with the same layer and stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from sae_sweeps.activations.on_device import StoreOnDevice
from sae_sweeps.activations.outliers import NormStats, StoreWithin, norm_stats
from sae_sweeps.activations.sampler import Sampler
from sae_sweeps.activations.store import ActivationStore, DiskStore, MemoryStore, bytes_per_token
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.config.hooks import hook_name
from sae_sweeps.config.run import RunConfig
from sae_sweeps.errors import out_of_memory
from sae_sweeps.evaluation.held_out import HeldOut, sample
from sae_sweeps.runs.evaluate import held_out_activations
from sae_sweeps.runs.session import RunSession, open_split
from sae_sweeps.sweeps.groups import fits_on_device, one_of_each_layer
from sae_sweeps.training.loop import Member
from sae_sweeps.training.start import activation_scale, decoder_bias, n_start_steps

Stream = tuple[str, float | None, int, int, str, int]
"""What decides a run's batches within a group: layer, largest norm, batch size, data seed, sampling and window."""


def stream_of(run: RunConfig) -> Stream:
    train = run.train
    return hook_name(run.layer), run.data.max_norm, run.batch_size, run.data_seed, train.sampling, train.window


def free_gb(device: torch.device) -> float:
    """Free memory of a GPU, and what torch keeps of it without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) / 1e9


class Batches:
    """The batches of runs that differ in nothing that decides their text. Raises what opening it does."""

    def __init__(self, runs: Sequence[RunConfig], session: RunSession, cache: Path):
        self.session = session
        run, layers = runs[0], [run.layer for run in one_of_each_layer(runs)]
        stores = open_split(run, layers, session, cache, "train", run.total_steps * run.batch_size)
        self._layers = dict(zip(map(hook_name, layers), layers, strict=True))
        self._stores = dict(zip(map(hook_name, layers), stores, strict=True))
        self._n_first: dict[Stream, int] = {}
        """First steps that runs which start at step 0 take their scale and decoder bias from."""
        self._first: dict[Stream, torch.Tensor | Exception] = {}
        self._start: dict[tuple[Stream, bool, str], tuple[float, torch.Tensor]] = {}
        self._pool: dict[str, torch.Tensor] = {}
        self._held_out: dict[tuple[str, float | None, int], HeldOut] = {}
        self._samplers: dict[Stream, Sampler] = {}
        self._norms: dict[tuple[str, float | None], NormStats] = {}
        self._on_device: dict[str, StoreOnDevice] = {}
        self._keep_on_device = session.device.type == "cuda" and self._fit(runs)

    def store(self, run: RunConfig) -> ActivationStore:
        """The activations of the run's layer. Raises why there are none of this layer."""
        store = self._stores[hook_name(run.layer)]
        if isinstance(store, Exception):
            raise store
        return store

    def norms(self, run: RunConfig, fresh: bool = False) -> NormStats:
        """Norms of the training activations of the run's layer, with the limit of its `data.max_norm`."""
        key = hook_name(run.layer), run.data.max_norm
        if key not in self._norms:
            part = run.activations.buffer_tokens // run.batch_size * run.batch_size if fresh else 0
            self._norms[key] = norm_stats(self.store(run), run.data.max_norm, part)
        return self._norms[key]

    def held_out(self, run: RunConfig) -> HeldOut | None:
        """`train.held_out_tokens` held-out activations of the run's layer, the same for all runs; None where 0."""
        return self._held_out.get(self._held_out_key(run))

    def _held_out_key(self, run: RunConfig) -> tuple[str, float | None, int]:
        return hook_name(run.layer), run.data.max_norm, run.train.held_out_tokens

    def _draw_held_out(self, run: RunConfig) -> None:
        key = name, _, n_tokens = self._held_out_key(run)
        if n_tokens == 0 or key in self._held_out:
            return
        if not self._pool:
            names = [name for name, store in self._stores.items() if not isinstance(store, Exception)]
            layers = [self._layers[name] for name in names]
            self._pool = dict(zip(names, held_out_activations(run, layers, self.session), strict=True))
        self._held_out[key] = sample(self._pool[name], n_tokens, self.session.device, self.norms(run).limit)

    def prepare(self, run: RunConfig, fresh: bool) -> None:
        """Open what the run shares with others of its stream; `fresh` where it starts at step 0 and needs `first`."""
        stream, store, limit = stream_of(run), self.store(run), self.norms(run, fresh).limit
        _, _, size, seed, kind, window = stream
        self._draw_held_out(run)
        if stream not in self._samplers:
            store = self._kept(stream[0], store)
            store = store if limit is None else StoreWithin(store, limit)
            self._samplers[stream] = Sampler(store, size, seed, kind=kind, window=window, device=self.session.device)
        if fresh:
            self._n_first[stream] = n_start_steps(run.batch_size, run.total_steps)

    def _fit(self, runs: Sequence[RunConfig]) -> bool:
        """Whether the activations of all layers have room on the device."""
        stores = [store for store in self._stores.values() if isinstance(store, MemoryStore | DiskStore)]
        size = sum(store.n_tokens * bytes_per_token(store) for store in stores) / 1e9
        return bool(stores) and fits_on_device(list(runs), size, free_gb(self.session.device))

    def _kept(self, name: str, store: ActivationStore) -> ActivationStore:
        """The store, on the device where it has room there. It stays where it is if there is less than was counted."""
        if not self._keep_on_device or not isinstance(store, MemoryStore | DiskStore):
            return store
        try:
            if name not in self._on_device:
                self._on_device[name] = StoreOnDevice(store, self.session.device, self.session.raise_if_stopped)
            return self._on_device[name]
        except Exception as error:
            if not out_of_memory(error):
                raise
        self._keep_on_device = False
        torch.cuda.empty_cache()
        return store

    def draw_first(self) -> None:
        """Draw what `first` gives, step by step for all at once, so that a stream is read once."""
        drawn: dict[Stream, list[torch.Tensor]] = {stream: [] for stream in self._n_first}
        for step in range(max(self._n_first.values(), default=0)):
            for stream, n_steps in self._n_first.items():
                if step < n_steps and stream not in self._first:
                    try:
                        drawn[stream].append(self._samplers[stream].batch(step).x)
                    except Exception as error:
                        self._first[stream] = error
        for stream in self._n_first.keys() - self._first.keys():
            self._first[stream] = torch.cat(drawn.pop(stream))

    def first(self, run: RunConfig) -> torch.Tensor:
        """Activations [n, d_in] of the run's first steps. Raises the error that prevented them."""
        first = self._first[stream_of(run)]
        if isinstance(first, Exception):
            raise first
        return first

    def start(self, run: RunConfig) -> tuple[float, torch.Tensor]:
        """Scale of the activations and decoder bias [d_in] that the run begins with, computed once for equal runs.

        Raises the error that prevented its first batches.
        """
        x, train = self.first(run), run.train
        key = stream_of(run), train.normalize_activations, train.b_dec_init
        if key not in self._start:
            self._start[key] = activation_scale(x, train), decoder_bias(x, train)
        return self._start[key]

    def forget_first(self) -> None:
        """Free what runs only begin with."""
        self._first.clear()
        self._start.clear()
        self._pool.clear()

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
