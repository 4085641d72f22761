"""Harvested activations: in memory, as checked shards on disk, or a window that rolls over the stream.

An artifact lives in `folder/<hash of its key>/`: `activations-00000.safetensors` ... with x [n, d_in], token_ids,
sequence, position and role, and `meta.json`, written last, with the key and each shard's size and checksum. It gets
its name once it is complete, so a folder is either complete or absent.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.activations.harvest import Source, SyntheticSource, TextSource, regroup
from sae_sweeps.activations.language_model import DTYPES, LanguageModel, load_language_model
from sae_sweeps.activations.synthetic import SyntheticWorld
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.config.schema import ActivationsConfig, DataConfig, LayerConfig, ModelConfig, SyntheticConfig
from sae_sweeps.config.typed import check_values
from sae_sweeps.errors import ConfigError, DamagedFile, DataError
from sae_sweeps.storage.files import DiskFull, fsync_folder, naming_full_disk, write_bytes, write_json

FORMAT_VERSION = 1
SHARD_BYTES = 128 * 2**20
"""Size of a shard's activations, and so the memory needed to harvest to disk."""

Progress = Callable[[int], None]
"""Called with the number of tokens harvested so far; an exception that it raises ends the harvest cleanly."""

log = logging.getLogger(__name__)


class Rows(Protocol):
    """Tokens that a sampler can pick from, in stream order."""

    def __len__(self) -> int: ...

    def take(self, index_B: np.ndarray) -> Batch:
        """The tokens at `index_B` [B], in that order, on the CPU in the stored dtype."""
        ...

    def starts(self, span: int) -> np.ndarray:
        """Every row from which `span` consecutive tokens of one context follow [n_starts], int64; `span` > 1."""
        ...

    def roles(self) -> np.ndarray:
        """The role of every row [n], int8."""
        ...

    def by_role(self) -> dict[int, np.ndarray]:
        """The rows of each role that occurs, in stream order, int64."""
        ...

    def text_pairs(self) -> np.ndarray:
        """Rows at the same position of the two texts of a pair, contexts 2n and 2n + 1 [n_pairs, 2], int64."""
        ...


class ActivationStore(Protocol):
    """Activations as `open_activations` returns them.

    Attributes:
        mode: memory, disk or stream.
        n_tokens: tokens available, at most the number requested. In a stream it is the number requested until the end
            of the text has been reached.
        buffer_tokens: None, or in a stream the most tokens that `rows` returns at once.
    """

    mode: str
    d_in: int
    dtype: torch.dtype
    n_tokens: int
    buffer_tokens: int | None

    def rows(self, start: int, stop: int) -> Rows:
        """Tokens `start` to `stop` of a stream; from memory and disk always all tokens."""
        ...


def open_activations(
    model: ModelConfig,
    layer: LayerConfig,
    data: DataConfig,
    activations: ActivationsConfig,
    num_tokens: int,
    folder: Path,
    device: torch.device | str,
    *,
    split: str = "train",
    key: dict[str, Any],
    lm: LanguageModel | None = None,
    progress: Progress | None = None,
) -> ActivationStore:
    """The first `num_tokens` tokens that train the SAE, in stream order, harvested unless that was done before.

    Args:
        folder: where artifacts live, one sub-folder each.
        key: everything that determines the content, JSON-able; `split` and the format's version are added.
        lm: the language model; loaded if it is needed and not given.

    Raises:
        ConfigError, DataError, NoNetwork: a setting is wrong, or the model or the text cannot be read.
        DiskFull: the partly written artifact was removed.
        DamagedFile: an artifact on disk is not what was written.
    """
    if num_tokens < 1:
        raise ConfigError(f"num_tokens={num_tokens} gives nothing to train on; choose at least 1.")
    check_values(activations, "activations")
    if activations.mode == "auto":  # RunConfig decides, so that a run is the same on every machine
        raise ConfigError("activations.mode=auto: is for a launch to decide; give memory, disk or stream.")
    key = {**key, "split": split, "format_version": FORMAT_VERSION}
    place = Path(folder) / _short_hash(key)
    shared = _in_memory.get(place)
    if shared is not None and activations.mode == "memory":
        _in_memory.move_to_end(place)
        return shared

    stored = None if activations.mode == "stream" else _open_disk(place, key)
    source: Source
    source = stored if stored is not None else _source(model, layer, data, activations, split, device, lm)
    n_tokens = stored.n_tokens if stored is not None else num_tokens
    if activations.mode == "stream":
        return StreamStore(source, num_tokens, activations.buffer_tokens, data)
    if activations.mode == "memory":
        batches = _counted(source.stream(0, n_tokens), progress)
        store = MemoryStore(_collect(batches, n_tokens, source.d_in, source.dtype), data)
        _in_memory[place] = store
        while len(_in_memory) > 2:
            _in_memory.popitem(last=False)
        return store
    if stored is None:
        _refuse_full_disk(_size_of(source, num_tokens), Path(folder))
        _write(place, key, source, _counted(source.stream(0, num_tokens), progress), data)
        stored = _open_disk(place, key)
    if stored is None:
        raise DataError(f"{place} vanished right after it was written; run again.")
    return stored


class IndexedRows:
    """The lists of `Rows` that follow from the tokens' columns, each made once."""

    def _column(self, name: str) -> np.ndarray:
        """sequence, position or role of every token, in memory [n_tokens]."""
        raise NotImplementedError

    def roles(self) -> np.ndarray:
        return self._roles

    def by_role(self) -> dict[int, np.ndarray]:
        return self._by_role

    def text_pairs(self) -> np.ndarray:
        return self._text_pairs

    @cached_property
    def _roles(self) -> np.ndarray:
        return self._column("role")

    @cached_property
    def _by_role(self) -> dict[int, np.ndarray]:
        return {int(role): np.flatnonzero(self._roles == role) for role in np.unique(self._roles)}

    @cached_property
    def _text_pairs(self) -> np.ndarray:
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

    def _column(self, name: str) -> np.ndarray:
        return getattr(self.batch, name).numpy()


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
        self._starts: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.n_tokens

    def rows(self, start: int, stop: int) -> Rows:
        return self

    def take(self, index_B: np.ndarray) -> Batch:
        index = torch.from_numpy(index_B)
        shard_B = index_B // self._per_shard
        out: Batch | None = None
        for number in np.unique(shard_B):
            shard = self._shard(int(number))
            if out is None:
                out = Batch(*(t.new_empty((len(index), *t.shape[1:])) for t in shard.fields()))
            here = torch.from_numpy(np.flatnonzero(shard_B == number))
            row = index[here] - int(number) * self._per_shard
            for whole, part in zip(out.fields(), shard.fields(), strict=True):
                whole[here] = part[row]
        assert out is not None
        return out

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

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(self._shard(n), name).numpy() for n in range(len(self._shards_meta))])

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
            tensors = load_file(path)
            self._shards[number] = Batch(**tensors)
            if self._shards[number].x.shape != (meta["n_tokens"], self.d_in):
                raise _damaged(path, "holds another number of tokens than meta.json records")
        return self._shards[number]


class StreamStore:
    """A window that moves along the stream; moving it back harvests the text again from the start."""

    mode: str = "stream"

    def __init__(self, source: Source, num_tokens: int, buffer_tokens: int, data: DataConfig):
        self.d_in, self.dtype = source.d_in, source.dtype
        self.n_tokens = num_tokens
        self.buffer_tokens: int | None = buffer_tokens
        self._source, self._data = source, data
        self._window, self._rows = (0, 0), ResidentRows(Batch(*(torch.empty(0) for _ in range(5))))
        self._batches: Iterator[Batch] = iter(())
        self._left: list[Batch] = []
        self._next = -1

    def rows(self, start: int, stop: int) -> Rows:
        if self._window != (start, stop):
            # The old window is freed first: memory holds one at a time.
            self._window, self._rows = (0, 0), ResidentRows(Batch(*(torch.empty(0) for _ in range(5))))
            self._rows = ResidentRows(self._read(start, stop))
            self._window = (start, stop)
        return self._rows

    def _read(self, start: int, stop: int) -> Batch:
        if start != self._next:
            self._batches, self._left = self._source.stream(start, self.n_tokens), []
        left, self._left = self._left, []
        window = _collect(chain(left, self._batches), stop - start, self.d_in, self.dtype, self._left)
        self._next = start + len(window)
        if self._next < stop:
            # Without any token the text ends before `start`, and its length has to be counted.
            self.n_tokens, self._next = self._next if len(window) else self._source.count(start), -1
            if not self.n_tokens:
                raise _no_tokens(self._data)
            log.warning("The text of data=%s ends after %d tokens: it is read again.", self._data.name, self.n_tokens)
        return window


_in_memory: OrderedDict[Path, MemoryStore] = OrderedDict()
"""The latest two artifacts held in memory: the runs of a sweep in one process harvest once."""

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


def _size_of(source: Source, n_tokens: int) -> int:
    """Bytes of the tokens with their token id, sequence, position (4 each) and role (1)."""
    return n_tokens * (source.d_in * source.dtype.itemsize + 13)


def _counted(batches: Iterator[Batch], progress: Progress | None) -> Iterator[Batch]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        if progress is not None:
            progress(done)


def _collect(batches: Iterable[Batch], n: int, d_in: int, dtype: torch.dtype, left: list[Batch] | None = None) -> Batch:
    """The first `n` tokens in one block, filled in place; the rest of the last batch is appended to `left`."""
    try:
        x = torch.empty(n, d_in, dtype=dtype)
    except RuntimeError as error:
        needed = n * d_in * dtype.itemsize / 1e9
        raise ConfigError(
            f"{n} tokens of {d_in} numbers need {needed:.1f} GB of memory, more than there is; use "
            "activations.mode=disk or stream, or a smaller activations.buffer_tokens."
        ) from error
    whole = Batch(x, *(torch.empty(n, dtype=t) for t in (torch.int32, torch.int32, torch.int32, torch.int8)))
    done = 0
    for batch in batches:
        used = min(len(batch), n - done)
        for block, part in zip(whole.fields(), batch.fields(), strict=True):
            block[done : done + used] = part[:used]
        done += used
        if left is not None and used < len(batch):
            left.append(batch[used:])
        if done == n:
            break
    return whole[:done]


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


def _write(place: Path, key: dict[str, Any], source: Source, batches: Iterator[Batch], data: DataConfig) -> None:
    """Harvest into a temporary folder and rename it once complete; where another process was first, keep its folder."""
    per_shard = max(1, SHARD_BYTES // (source.d_in * source.dtype.itemsize))
    temporary = place.parent / f".{place.name}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        with naming_full_disk(temporary):
            temporary.mkdir(parents=True)
        _remove_abandoned(place)
        shards: list[dict[str, Any]] = []
        for batch in regroup(batches, per_shard):
            shards.append(_write_shard(temporary, len(shards), batch))
        if not shards:
            raise _no_tokens(data)
        meta = {
            "format_version": FORMAT_VERSION,
            "key": key,
            "n_tokens": sum(shard["n_tokens"] for shard in shards),
            "d_in": source.d_in,
            "dtype": str(source.dtype).removeprefix("torch."),
            "shards": shards,
        }
        write_json(temporary / "meta.json", meta)
        try:
            temporary.rename(place)
        except OSError:
            if not place.exists():  # else another process was first
                raise
        fsync_folder(place.parent)
    except DiskFull as error:
        size = _size_of(source, 1)
        raise DiskFull(
            f"the disk of {place.parent} is full: activations take {size:,} bytes per token there; free some space, or "
            "use activations.mode=stream."
        ) from error
    except PermissionError as error:
        raise DataError(f"{place.parent} cannot be written ({error.strerror}); choose another place.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
