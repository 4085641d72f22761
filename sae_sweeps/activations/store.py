"""Harvested activations: in memory, as checked shards on disk, or a window that rolls over the stream.

An artifact is kept in `folder/<hash of its key>/`: `activations-00000.safetensors` ... with x [n, d_in], token_ids,
sequence, position, role and norm (older ones have no norm), and `meta.json`, written last, with the key and each
shard's size and checksum. It gets its name once it is complete, so a folder is either complete or absent.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.activations.harvest import Regrouped, Source, SyntheticSource, TextSource, streams
from sae_sweeps.activations.language_model import DTYPES, LanguageModel, load_language_model
from sae_sweeps.activations.synthetic import SyntheticWorld
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.config.schema import ActivationsConfig, DataConfig, LayerConfig, ModelConfig, SyntheticConfig
from sae_sweeps.errors import ConfigError, DamagedFile, DataError
from sae_sweeps.storage.files import DiskFull, fsync_folder, naming_full_disk, write_bytes, write_json

FORMAT_VERSION = 1
AHEAD = 4
"""Forward passes whose activations wait for the thread that writes them."""
SHARD_BYTES = 128 * 2**20
"""Size of a shard's activations, and so the memory needed to harvest to disk."""

Progress = Callable[[int], None]
"""Called with the number of tokens harvested so far; an exception that it raises ends the harvest cleanly."""

log = logging.getLogger(__name__)


class Index(Protocol):
    """Rows that are picked from by their place, as of an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: np.ndarray, /) -> np.ndarray: ...


class Rows(Protocol):
    """Tokens that a sampler can pick from, in stream order."""

    def __len__(self) -> int: ...

    def take(self, index_B: np.ndarray) -> Batch:
        """The tokens at `index_B` [B], in that order, in the stored dtype, on the CPU or the GPU that keeps them."""
        ...

    def starts(self, span: int) -> Index:
        """Every row from which `span` consecutive tokens of one context follow [n_starts], int64; `span` > 1."""
        ...

    @property
    def roles(self) -> np.ndarray:
        """The role of every row [n], int8."""
        ...

    @property
    def by_role(self) -> dict[int, np.ndarray]:
        """The rows of each role that occurs, in stream order, int64."""
        ...

    @property
    def text_pairs(self) -> np.ndarray:
        """Rows at the same position of the two texts of a pair, contexts 2n and 2n + 1 [n_pairs, 2], int64."""
        ...

    def beyond(self, limit: float) -> np.ndarray:
        """The rows whose norm is above `limit`, in stream order, int64."""
        ...


class ActivationStore(Protocol):
    """Activations as `open_layers` returns them.

    Attributes:
        mode: memory, disk or stream.
        n_tokens: tokens available, at most the number requested. In a stream it is the number requested until the end
            of the text has been reached.
        buffer_tokens: None, or in a stream the most tokens that `rows` returns at once.
    """

    mode: str
    d_in: int
    dtype: torch.dtype
    buffer_tokens: int | None

    @property
    def n_tokens(self) -> int: ...

    def rows(self, start: int, stop: int) -> Rows:
        """Tokens `start` to `stop` of a stream; from memory and disk always all tokens."""
        ...


def open_layers(
    model: ModelConfig,
    layers: Sequence[tuple[LayerConfig, dict[str, Any]]],
    data: DataConfig,
    activations: ActivationsConfig,
    num_tokens: int,
    folder: Path,
    device: torch.device | str,
    *,
    split: str = "train",
    lm: LanguageModel | None = None,
    progress: Progress | None = None,
) -> list[ActivationStore | Exception]:
    """For each layer the first `num_tokens` tokens that train the SAE, in stream order, or the error that concerns it
    alone.

    Layers that were not harvested before are harvested in one pass of the language model, and each is the artifact that
    it is alone. Their streams share one window.

    Args:
        layers: each with its key, everything that determines the content, JSON-able; `split` and the format's version
            are added.
        folder: where artifacts are kept, one sub-folder each.
        activations: as `RunConfig` has it; its mode is no longer `auto`.
        lm: the language model; loaded if it is needed and not given.

    Raises:
        ConfigError, DataError, NoNetwork: a setting is wrong, or the model or the text cannot be read.
        DiskFull: the partly written artifact was removed.
        DamagedFile: an artifact on disk is not what was written.
    """
    folder = Path(folder)

    def found(layer: LayerConfig, key: dict[str, Any]) -> ActivationStore | _Harvest | Exception:
        key = {**key, "split": split, "format_version": FORMAT_VERSION}
        place = folder / _short_hash(key)
        shared = _in_memory.get(place)
        if shared is not None and activations.mode == "memory":
            _in_memory.move_to_end(place)
            return shared
        try:
            stored = None if activations.mode == "stream" else _open_disk(place, key)
            if stored is None:
                return _Harvest(place, key, _source(model, layer, data, activations, split, device, lm))
        except Exception as error:
            return error
        return stored if activations.mode == "disk" else _Harvest(place, key, stored)

    opened = [found(layer, key) for layer, key in layers]
    made: dict[Path, ActivationStore | Exception] = {}
    for harvests in _passes([one for one in opened if isinstance(one, _Harvest)]):
        try:
            stores = _read_once(harvests, num_tokens, activations, data, progress, most_in_memory=2 * len(layers))
            made |= {harvest.place: store for harvest, store in zip(harvests, stores, strict=True)}
        except Exception as error:
            if len(harvests) > 1:
                raise
            made[harvests[0].place] = error
    return [made[one.place] if isinstance(one, _Harvest) else one for one in opened]


@dataclass
class _Harvest:
    """Activations that are to be read from `source` and kept at `place`, in memory or on disk, or as a stream."""

    place: Path
    key: dict[str, Any]
    source: Source


def _passes(harvests: list[_Harvest]) -> Iterable[list[_Harvest]]:
    """Those that are read in one pass of the language model; what is on disk is read by itself."""
    passes: dict[str, list[_Harvest]] = {}
    for harvest in harvests:
        on_disk = isinstance(harvest.source, DiskStore)
        passes.setdefault(harvest.place.name if on_disk else "", []).append(harvest)
    return passes.values()


def _read_once(
    harvests: list[_Harvest],
    num_tokens: int,
    activations: ActivationsConfig,
    data: DataConfig,
    progress: Progress | None,
    most_in_memory: int,
) -> Sequence[ActivationStore]:
    """The stores of one pass; none of them has been read before."""
    sources = [harvest.source for harvest in harvests]
    if activations.mode == "stream":
        window = Window(sources, num_tokens, activations.buffer_tokens, data)
        return [StreamStore(window, number) for number in range(len(sources))]
    if activations.mode == "memory":
        while _in_memory and len(_in_memory) + len(harvests) > most_in_memory:
            _in_memory.popitem(last=False)
        n_tokens = sources[0].count(num_tokens) if isinstance(sources[0], DiskStore) else num_tokens
        collected = _collect(_counted(streams(sources, 0, n_tokens), progress), n_tokens, sources)
        kept = {h.place: MemoryStore(batch, data) for h, batch in zip(harvests, collected, strict=True)}
        _in_memory.update(kept)
        return list(kept.values())
    _refuse_full_disk(num_tokens * sum(map(bytes_per_token, sources)), harvests[0].place.parent)
    _write(harvests, _counted(streams(sources, 0, num_tokens), progress), data)
    stores = [_open_disk(harvest.place, harvest.key) for harvest in harvests]
    for harvest, store in zip(harvests, stores, strict=True):
        if store is None:
            raise DataError(f"{harvest.place} vanished right after it was written; run again.")
    return [store for store in stores if store is not None]


class IndexedRows:
    """The lists of `Rows` that follow from the tokens' columns, each made once."""

    def _columns(self, name: str) -> Iterator[np.ndarray]:
        """sequence, position, role or norm of every token, part by part."""
        raise NotImplementedError

    def _column(self, name: str) -> np.ndarray:
        """The whole column in memory [n_tokens]."""
        return np.concatenate(list(self._columns(name)))

    def beyond(self, limit: float) -> np.ndarray:
        found, first = [np.empty(0, np.int64)], 0
        for norm in self._columns("norm"):
            found.append(np.flatnonzero(norm > limit) + first)
            first += len(norm)
        return np.concatenate(found)

    @cached_property
    def roles(self) -> np.ndarray:
        return self._column("role")

    @cached_property
    def by_role(self) -> dict[int, np.ndarray]:
        return {int(role): np.flatnonzero(self.roles == role) for role in np.unique(self.roles)}

    @cached_property
    def text_pairs(self) -> np.ndarray:
        return _find_text_pairs(self._column("sequence"), self._column("position"))


class ResidentRows(IndexedRows):
    """Tokens in memory."""

    def __init__(self, batch: Batch):
        self.batch = batch
        self._starts: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.batch)

    def take(self, index_B: np.ndarray) -> Batch:
        return self.batch[torch.from_numpy(index_B)]

    def starts(self, span: int) -> np.ndarray:
        if span not in self._starts:
            self._starts[span] = _find_starts(self.batch.sequence, self.batch.position, span)
        return self._starts[span]

    def _columns(self, name: str) -> Iterator[np.ndarray]:
        yield getattr(self.batch, name).numpy()


class MemoryStore(ResidentRows):
    """All tokens in memory."""

    mode: str = "memory"
    buffer_tokens: int | None = None

    def __init__(self, batch: Batch, data: DataConfig):
        super().__init__(batch)
        if not len(batch):
            raise _no_tokens(data)
        self.n_tokens, self.d_in = batch.x.shape
        self.dtype = batch.x.dtype

    def rows(self, start: int, stop: int) -> Rows:
        return self

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """Tokens `start` to `stop` in order."""
        yield self.batch[start:stop]


class DiskStore(IndexedRows):
    """All tokens in safetensors shards, mapped into memory and read by the page as they are picked.

    Each shard's checksum is verified once per process, when the shard is first touched.
    """

    mode: str = "disk"
    buffer_tokens: int | None = None

    def __init__(self, place: Path, meta: dict[str, Any]):
        self.place = place
        self.n_tokens: int = meta["n_tokens"]
        self.d_in: int = meta["d_in"]
        self.dtype = DTYPES[meta["dtype"]]
        self._shards_meta: list[dict[str, Any]] = meta["shards"]
        self._per_shard: int = self._shards_meta[0]["n_tokens"]
        self._shards: dict[int, Batch] = {}
        self._unopened = len(self._shards_meta)
        self._addresses = np.zeros((len(fields(Batch)), self._unopened), np.int64)
        """Where each field of each opened shard begins in memory [fields, shards]."""
        self._starts: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.n_tokens

    def rows(self, start: int, stop: int) -> Rows:
        return self

    def take(self, index_B: np.ndarray) -> Batch:
        from sae_sweeps.kernels.rows_numba import gather

        if index_B.min() < 0 or index_B.max() >= self.n_tokens:
            raise IndexError(f"rows {index_B.min()} to {index_B.max()} of {self.n_tokens}")
        for number in np.unique(index_B // self._per_shard) if self._unopened else ():
            self._shard(int(number))
        some = next(iter(self._shards.values()))
        taken = Batch(*(t.new_empty((len(index_B), *t.shape[1:])) for t in some.fields()))
        for field, address in zip(taken.fields(), self._addresses, strict=True):
            gather(address, self._per_shard, index_B, field.data_ptr(), field[:1].nbytes)
        return taken

    def starts(self, span: int) -> np.ndarray:
        """As in `Rows`; kept in an unnamed file beside the shards, so that memory does not grow with the tokens."""
        if span not in self._starts:
            with tempfile.TemporaryFile(dir=self.place) as file:
                for number in range(len(self._shards_meta)):
                    first = number * self._per_shard
                    last = min(first + self._per_shard + span - 1, self.n_tokens)  # a span may end in the next shard
                    parts = [self._shard(n) for n in range(number, (last - 1) // self._per_shard + 1)]
                    sequence = torch.cat([shard.sequence for shard in parts])[: last - first]
                    position = torch.cat([shard.position for shard in parts])[: last - first]
                    (_find_starts(sequence, position, span) + first).tofile(file)
                file.flush()
                empty = file.tell() == 0
                self._starts[span] = np.empty(0, np.int64) if empty else np.memmap(file, np.int64, "r")
        return self._starts[span]

    def _columns(self, name: str) -> Iterator[np.ndarray]:
        for number in range(len(self._shards_meta)):
            yield getattr(self._shard(number), name).numpy()

    def count(self, stop: int) -> int:
        return min(stop, self.n_tokens)

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """Tokens `start` to `stop` in order, shard by shard."""
        for number in range(start // self._per_shard, -(-stop // self._per_shard)):
            first = number * self._per_shard
            yield self._shard(number)[max(start - first, 0) : stop - first]

    def _shard(self, number: int) -> Batch:
        if number not in self._shards:
            from safetensors.torch import load_file

            meta = self._shards_meta[number]
            path = self.place / meta["file"]
            _verify(path, meta["sha256"])
            shard = Batch(**load_file(path))
            if shard.x.shape != (meta["n_tokens"], self.d_in):
                raise _damaged(path, "holds another number of tokens than meta.json records")
            self._addresses[:, number] = [field.data_ptr() for field in shard.fields()]
            self._shards[number] = shard
            self._unopened = len(self._shards_meta) - len(self._shards)
        return self._shards[number]


class Window:
    """A part of the streams of sources of one text; moving it back harvests the text again from the start."""

    def __init__(self, sources: Sequence[Source], num_tokens: int, buffer_tokens: int, data: DataConfig):
        self.sources, self.n_tokens, self.buffer_tokens = sources, num_tokens, buffer_tokens
        self._data = data
        self._part: tuple[int, int] | None = None
        self._rows: list[ResidentRows] = []
        self._batches: Iterator[list[Batch]] = iter(())
        self._left: list[list[Batch]] = []
        self._next = -1

    def rows(self, start: int, stop: int) -> list[ResidentRows]:
        """Tokens `start` to `stop` of each source."""
        if self._part != (start, stop):
            # The old part is freed first: memory holds one at a time.
            self._part, self._rows = None, []
            self._rows = [ResidentRows(batch) for batch in self._read(start, stop)]
            self._part = (start, stop)
        return self._rows

    def _read(self, start: int, stop: int) -> list[Batch]:
        if start != self._next:
            self._batches, self._left = streams(self.sources, start, self.n_tokens), []
        left, self._left = self._left, []
        part = _collect(chain(left, self._batches), stop - start, self.sources, self._left)
        n_read = len(part[0])
        self._next = start + n_read
        if self._next < stop:
            # Without any token the text ends before `start`, and its length has to be counted.
            self.n_tokens, self._next = self._next if n_read else self.sources[0].count(start), -1
            if not self.n_tokens:
                raise _no_tokens(self._data)
            log.warning("The text of data=%s ends after %d tokens: it is read again.", self._data.name, self.n_tokens)
        return part


class StreamStore:
    """One source's rows in a window that moves along the stream, for all sources at once."""

    mode: str = "stream"

    def __init__(self, window: Window, number: int = 0):
        source = window.sources[number]
        self.d_in, self.dtype = source.d_in, source.dtype
        self.buffer_tokens: int | None = window.buffer_tokens
        self._window, self._number = window, number

    @property
    def n_tokens(self) -> int:
        return self._window.n_tokens

    def rows(self, start: int, stop: int) -> Rows:
        return self._window.rows(start, stop)[self._number]


_in_memory: OrderedDict[Path, MemoryStore] = OrderedDict()
"""The latest artifacts held in memory, two of each layer: the runs of a sweep in one process harvest once."""

_verified: dict[Path, tuple[int, int]] = {}
"""Shards whose checksum held in this process, with the size and time that they had."""


def _source(
    model: ModelConfig,
    layer: LayerConfig,
    data: DataConfig,
    activations: ActivationsConfig,
    split: str,
    device: torch.device | str,
    lm: LanguageModel | None,
) -> Source:
    if isinstance(model, SyntheticConfig):
        dtype = torch.float32 if activations.dtype == "auto" else DTYPES[activations.dtype]
        return SyntheticSource(SyntheticWorld(model), data.context, split, dtype)
    lm = lm or load_language_model(model, device)
    dtype = lm.dtype if activations.dtype == "auto" else DTYPES[activations.dtype]
    return TextSource(lm, layer, data, split, dtype, activations.harvest_batch)


def _refuse_full_disk(size: int, folder: Path) -> None:
    """Raise DiskFull where the disk cannot hold `size` bytes, before hours of harvest."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise DiskFull(
            f"activations.mode=disk: {folder} needs {size / 1e9:.1f} GB and has {free / 1e9:.1f} free; free some "
            "space, give outputs=FOLDER on another disk, fewer num_tokens, or activations.mode=stream (another run)."
        )


def bytes_per_token(source: Source | ActivationStore) -> int:
    """Of its activation, token id, sequence, position and norm (4 each) and role (1)."""
    return source.d_in * source.dtype.itemsize + 17


def _counted(batches: Iterator[list[Batch]], progress: Progress | None) -> Iterator[list[Batch]]:
    done = 0
    for together in batches:
        yield together
        done += len(together[0])
        if progress is not None:
            progress(done)


def _collect(
    batches: Iterable[list[Batch]], n: int, sources: Sequence[Source], left: list[list[Batch]] | None = None
) -> list[Batch]:
    """The first `n` tokens of each source in one block, filled in place; the rest of the last batches is appended to
    `left`."""
    wholes = [_empty(n, source) for source in sources]
    done = 0
    for together in batches:
        used = min(len(together[0]), n - done)
        for whole, batch in zip(wholes, together, strict=True):
            for block, part in zip(whole.fields(), batch.fields(), strict=True):
                block[done : done + used] = part[:used]
        if left is not None and used < len(together[0]):
            left.append([batch[used:] for batch in together])
        done += used
        if done == n:
            break
    return [whole[:done] for whole in wholes]


def _empty(n: int, source: Source) -> Batch:
    try:
        x = torch.empty(n, source.d_in, dtype=source.dtype)
    except RuntimeError as error:
        needed = n * source.d_in * source.dtype.itemsize / 1e9
        raise ConfigError(
            f"{n} tokens of {source.d_in} numbers need {needed:.1f} GB of memory, more than there is; use "
            "activations.mode=disk or stream, or a smaller activations.buffer_tokens."
        ) from error
    columns = (torch.int32, torch.int32, torch.int32, torch.int8, torch.float32)
    return Batch(x, *(torch.empty(n, dtype=dtype) for dtype in columns))


def _find_starts(sequence: Tensor, position: Tensor, span: int) -> np.ndarray:
    """Rows i with rows i .. i + span - 1 in one sequence at consecutive positions (positions grow in a sequence)."""
    ahead = span - 1
    together = (sequence[ahead:] == sequence[: len(sequence) - ahead]) & (
        position[ahead:] - position[: len(position) - ahead] == ahead
    )
    return np.flatnonzero(together.numpy()) if len(sequence) > ahead else np.empty(0, np.int64)


def _find_text_pairs(sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
    place = (sequence.astype(np.int64) << 20) + position  # grows in stream order
    first = np.flatnonzero(sequence % 2 == 0)
    wanted = place[first] + (1 << 20)
    second = np.minimum(np.searchsorted(place, wanted), len(place) - 1)
    found = place[second] == wanted
    return np.stack([first[found], second[found]], axis=1)


def _no_tokens(data: DataConfig) -> DataError:
    return DataError(
        f"data={data.name}: its text does not fill one context of {data.context} tokens; give more text or lower "
        "data.context."
    )


def _write(harvests: list[_Harvest], batches: Iterator[list[Batch]], data: DataConfig) -> None:
    """Harvest into temporary folders, renamed once all is read; where another process was first, keep its folder."""
    parent = harvests[0].place.parent
    try:
        with ExitStack() as stack:
            written = [_WrittenArtifact(harvest, stack) for harvest in harvests]

            def add(together: list[Batch]) -> None:
                for artifact, batch in zip(written, together, strict=True):
                    artifact.add(artifact.regrouped.add(batch))

            beside(add, batches)
            for artifact in written:
                artifact.complete(data)
    except DiskFull as error:
        size = sum(bytes_per_token(harvest.source) for harvest in harvests)
        raise DiskFull(
            f"the disk of {parent} is full: activations take {size:,} bytes per token there; free some space, or "
            "use activations.mode=stream."
        ) from error
    except PermissionError as error:
        raise DataError(f"{parent} cannot be written ({error.strerror}); choose another place.") from error


def beside(work: Callable[[Any], None], things: Iterable[Any]) -> None:
    """work(thing) for each in turn, by a thread, while the next ones are made; AHEAD of them wait at most.

    The error of either ends both, and no work goes on after it.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="writer") as thread:
        waiting: deque[Future[None]] = deque()
        try:
            for thing in things:
                waiting.append(thread.submit(work, thing))
                while len(waiting) > AHEAD or (waiting and waiting[0].done()):
                    waiting.popleft().result()
            for one in waiting:
                one.result()
        except BaseException:
            thread.shutdown(cancel_futures=True)
            raise


class _WrittenArtifact:
    """An artifact in the making, in a temporary folder that `stack` removes."""

    def __init__(self, harvest: _Harvest, stack: ExitStack):
        self.harvest = harvest
        self.shards: list[dict[str, Any]] = []
        place, source = harvest.place, harvest.source
        self.regrouped = Regrouped(max(1, SHARD_BYTES // (source.d_in * source.dtype.itemsize)))
        self.temporary = place.parent / f".{place.name}.{os.getpid()}.{secrets.token_hex(4)}"
        stack.callback(shutil.rmtree, self.temporary, ignore_errors=True)
        with naming_full_disk(self.temporary):
            self.temporary.mkdir(parents=True)
        _remove_abandoned(place)

    def add(self, batches: Iterable[Batch]) -> None:
        """Write each batch as a shard."""
        for batch in batches:
            self.shards.append(_write_shard(self.temporary, len(self.shards), batch))

    def complete(self, data: DataConfig) -> None:
        """Write what is left and give the folder its name. Raises DataError where there was no token at all."""
        place, source = self.harvest.place, self.harvest.source
        self.add(self.regrouped.rest())
        if not self.shards:
            raise _no_tokens(data)
        meta = {
            "format_version": FORMAT_VERSION,
            "key": self.harvest.key,
            "n_tokens": sum(shard["n_tokens"] for shard in self.shards),
            "d_in": source.d_in,
            "dtype": str(source.dtype).removeprefix("torch."),
            "shards": self.shards,
        }
        write_json(self.temporary / "meta.json", meta)
        try:
            self.temporary.rename(place)
        except OSError:
            if not place.exists():  # else another process was first
                raise
        fsync_folder(place.parent)


def _write_shard(folder: Path, number: int, batch: Batch) -> dict[str, Any]:
    from safetensors.torch import save

    name = f"activations-{number:05d}.safetensors"
    tensors = {field: tensor.contiguous() for field, tensor in vars(batch).items()}
    content = save(tensors)
    write_bytes(folder / name, content)
    return {"file": name, "n_tokens": len(batch), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _remove_abandoned(place: Path, age: float = 86400.0) -> None:
    """Remove temporary folders of this artifact that were not written to for a day: their process was killed."""
    for folder in place.parent.glob(f".{place.name}.*"):
        try:
            if time.time() - folder.stat().st_mtime > age:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            continue


def _open_disk(place: Path, key: dict[str, Any]) -> DiskStore | None:
    """The artifact in this folder, or None. Raises DamagedFile."""
    if not place.exists():
        return None
    path = place / "meta.json"
    try:
        meta = json.loads(path.read_bytes())
        store = DiskStore(place, meta)
        intact = meta["key"] == json.loads(json.dumps(key))
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        intact = False
    if not intact:
        raise _damaged(path, "does not describe these activations")
    for shard in meta["shards"]:
        if not (place / shard["file"]).exists():
            raise _damaged(place / shard["file"], "is missing")
    return store


def _verify(path: Path, sha256: str) -> None:
    try:
        stat = path.stat()
        if _verified.get(path) == (stat.st_size, stat.st_mtime_ns):
            return
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
    if actual != sha256:
        raise _damaged(path, "is not what was written (its checksum differs)")
    _verified[path] = (stat.st_size, stat.st_mtime_ns)


def _damaged(path: Path, what: str) -> DamagedFile:
    return DamagedFile(f"{path} {what}; delete the folder {path.parent}, and the activations are harvested again.")


def _short_hash(key: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()
