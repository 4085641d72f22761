"""The state that resumes a run exactly, in one safetensors file: written whole or not at all, no pickle.

Batches and random draws are functions of the step, so there is no random state to store. A thread writes the file from
a copy of the state, so that a step waits for the copy alone.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sae_sweeps.errors import DamagedFile, out_of_memory
from sae_sweeps.storage.files import written_whole
from sae_sweeps.training.step import WATCHED_PAIRS, Training

FILE = "state.safetensors"
ADAM, CHECKSUM = "adam.", "checksum"
ROWS_AT_ONCE = 256
"""Rows of a tensor stored by column that are brought into the file's order together."""
ALIGNED = 64
"""Bytes: each tensor of a copy begins at a multiple."""
DTYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""safetensors' names of dtypes, in the order in which its files hold them."""


class Stored(NamedTuple):
    """A tensor with its axes in their order in memory, so that it is contiguous, and the axes' order in the file."""

    tensor: Tensor
    axes: list[int]

    @classmethod
    def of(cls, tensor: Tensor) -> Stored:
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        by_memory = tensor.detach().permute(order)
        if not by_memory.is_contiguous():
            return cls(tensor.detach().contiguous(), list(range(tensor.dim())))
        return cls(by_memory, [order.index(axis) for axis in range(tensor.dim())])

    def in_file(self) -> Tensor:
        return self.tensor.permute(self.axes)

    def bytes(self) -> Iterator[Any]:
        """Its content in the file's order, in parts."""
        whole = self.in_file()
        return map(_bytes, [whole] if whole.is_contiguous() else whole.split(ROWS_AT_ONCE))


class Write:
    """A checkpoint on its way to the disk, written by a thread.

    Args:
        step: steps 0 .. step-1 are done.
        beside: the training goes on beside it, so a copy is written. On a GPU all of it is queued before the next
            step. On a CPU buffers are copied at once, and parameters and their moments while the next step computes
            its gradients: its update must wait for `wait_for_copy`. Otherwise nothing may change before `finish`.
        allowed: raises where the file must not be written any more; called in the thread.
        logs: digests of the logs of the steps before, recorded in the file.
        memory: bytes of an earlier copy, used again where they suffice.
    """

    def __init__(
        self,
        training: Training,
        step: int,
        folder: Path,
        beside: bool,
        allowed: Callable[[], None] = lambda: None,
        logs: Mapping[str, str] = MappingProxyType({}),
        memory: Tensor | None = None,
    ):
        self.step, self.path, self.memory, self._allowed = step, folder / FILE, memory, allowed
        self._logs = dict(logs)
        self._error: BaseException | None = None
        self._written, self._copied = False, threading.Event()
        self._flag: tuple[Tensor, torch.cuda.Event] | None = None
        self._later: list[tuple[str, Tensor, Tensor]] = []
        live = {name: Stored.of(tensor) for name, tensor in _tensors(training).items()}
        if training.device.type == "cuda":
            live = self._copy(live, pinned=True)
            bad = torch.empty((), dtype=torch.bool, pin_memory=True)
            bad.copy_(training.nonfinite_guard.bad, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(training.device))
            self._flag = bad, event
        elif beside:
            updated = {name for name, _ in training.named_parameters()}
            live = self._copy(live, later=lambda name: name in updated or name.startswith(ADAM))
        scalars = {"step": torch.tensor(step), "scale": torch.tensor(training.scale, dtype=torch.float64)}
        self._state = live | {name: Stored.of(scalar) for name, scalar in scalars.items()}
        self._thread = threading.Thread(target=self._run, name=f"checkpoint-{folder.parent.name}", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait_for_copy(self) -> None:
        """Return once parameters and their moments may change again."""
        self._copied.wait()

    def wait(self) -> None:
        """Return once the thread has ended."""
        self._thread.join()

    def finish(self) -> bool:
        """Wait for the thread; whether the file is on the disk: not where a step before was not finite.

        Raises the error that prevented it; the file before is unchanged then.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        return self._written

    def _copy(
        self, live: dict[str, Stored], pinned: bool = False, later: Callable[[str], bool] = lambda name: False
    ) -> dict[str, Stored]:
        """Copies of all tensors in `memory`; those that `later` names are left to the thread."""
        sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor, _ in live.values()]
        *starts, total = accumulate(sizes, initial=0)
        if self.memory is None or len(self.memory) < total:
            self.memory = None  # freed before the larger one is made
            self.memory = torch.empty(total, dtype=torch.uint8, pin_memory=pinned)
        copies = {}
        for (name, (tensor, axes)), start in zip(live.items(), starts, strict=True):
            place = self.memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            copies[name] = Stored(place, axes)
            if later(name):
                self._later.append((name, place, tensor))
            else:
                place.copy_(tensor, non_blocking=pinned)
        return copies

    def _run(self) -> None:
        try:
            for name, place, tensor in self._later:
                version = tensor._version
                np.copyto(_bytes(place), _bytes(tensor))  # in one thread, without the GIL
                if tensor._version != version:
                    raise RuntimeError(f"{name} was changed before the update of a step; there only buffers may be")
            self._copied.set()
            if self._flag is not None:
                bad, event = self._flag
                event.synchronize()
                if bool(bad):
                    return  # the training finds it too
            self._allowed()
            self._write()
            self._written = True
        except BaseException as error:
            self._error = error
        finally:
            self._copied.set()
            self._state.clear()
            self._later.clear()

    def _write(self) -> None:
        """The same file as safetensors' own; the checksum is known last, and its place is among the first."""
        state = self._state | {CHECKSUM: Stored.of(torch.tensor(0))}
        header: dict[str, Any] = {"__metadata__": self._logs} if self._logs else {}
        starts, start = {}, 0
        for name in sorted(state, key=lambda name: (list(DTYPES).index(state[name].tensor.dtype), name.encode())):
            tensor = state[name].in_file()
            stop = start + tensor.nbytes
            header[name] = {"dtype": DTYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [start, stop]}
            starts[name], start = start, stop
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with written_whole(self.path) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            before, crc = file.tell(), 0
            for name in sorted(self._state):
                file.seek(before + starts[name])
                crc = zlib.crc32(name.encode(), crc)
                for part in state[name].bytes():
                    crc = zlib.crc32(part, crc)
                    file.write(part)
            file.seek(before + starts[CHECKSUM])
            file.write(crc.to_bytes(8, "little"))
            self._allowed()


class Writer:
    """Writes the checkpoints of runs that train side by side. The memory of a copy is used again for the next."""

    def __init__(self) -> None:
        self._writes: list[Write] = []

    @property
    def busy(self) -> bool:
        return not all(write.done for write in self._writes)

    def wait(self) -> None:
        """Return once nothing is being written; an error is raised where its own write is finished."""
        for write in self._writes:
            write.wait()

    def start(
        self, training: Training, step: int, folder: Path, beside: bool, allowed: Callable[[], None] = lambda: None,
        logs: Mapping[str, str] = MappingProxyType({}),
    ) -> Write:  # fmt: skip
        """As `Write`."""
        done = [write for write in self._writes if write.done]
        self._writes = [write for write in self._writes if write not in done]
        kept = max((write.memory for write in done if write.memory is not None), key=len, default=None)
        for write in done:
            write.memory = None
        self._writes.append(Write(training, step, folder, beside, allowed, logs, kept))
        return self._writes[-1]


def has_checkpoint(folder: Path) -> bool:
    return (folder / FILE).exists()


def check_logs(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise DamagedFile where the logs of the steps before a checkpoint are not those that it was written with."""
    with safe_open(folder / FILE, "pt") as file:
        recorded = file.metadata() or {}
    for name, digest in recorded.items():  # none in checkpoints of earlier versions
        if digests.get(name, digest) != digest:
            raise DamagedFile(
                f"{folder.parent / name}: its rows up to the checkpoint are not those that were written; restore "
                f"it, or delete {folder} to train this run from the start."
            )


def load_checkpoint(training: Training, folder: Path) -> int:
    """Load a checkpoint's state into `training`; return the next step.

    Raises DamagedFile, naming the file, when it is damaged or does not fit the run.
    """
    path = folder / FILE
    mend = f"delete {folder} to train this run from the start"
    try:
        tensors = load_file(path)
        checksum = int(tensors.pop(CHECKSUM))
    except (SafetensorError, OSError, KeyError) as error:
        if out_of_memory(error):
            raise
        raise DamagedFile(f"{path}: the checkpoint is damaged ({error}); {mend}.") from None
    if checksum != _checksum(tensors):
        raise DamagedFile(f"{path}: the checkpoint is damaged (its checksum does not match); {mend}.")
    step, scale = int(tensors.pop("step")), float(tensors.pop("scale"))
    live = _tensors(training)
    # checkpoints of earlier versions: pairs are chosen anew
    tensors = {name: tensor for name, tensor in tensors.items() if name in live or not name.endswith(".watched")}
    tensors |= {name: tensor for name, tensor in live.items() if name.startswith(WATCHED_PAIRS) and name not in tensors}
    if live.keys() != tensors.keys() or any(live[name].shape != tensors[name].shape for name in live):
        raise DamagedFile(f"{path}: the checkpoint does not fit this run's config; {mend}.")
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(tensors[name])
    training.scale = scale
    return step


def _tensors(training: Training) -> dict[str, Tensor]:
    """Live tensors of the state by name: weights, buffers, Adam's moments."""
    state = {
        f"{prefix}.{name}": tensor
        for prefix, module in training.modules().items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    for name, parameter in training.named_parameters():
        for key, tensor in training.optimizer.state[parameter].items():
            state[f"{ADAM}{name}.{key}"] = tensor
    return state


def _checksum(tensors: dict[str, Tensor]) -> int:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(_bytes(tensors[name]), zlib.crc32(name.encode(), crc))
    return crc


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
