"""Memory that two queues use at once is an error: a stream reads what another has yet to write, the host reads a copy
that has not landed, freed memory is given away while a stream still reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from simulated_cuda.log import DeviceError, place
from simulated_cuda.streams import HOST, Clock, Stream, learn

Key = int
"""Of a storage."""


@dataclass
class Use:
    """Who uses a storage: the last piece of work of each stream that reads it, and the last that writes it."""

    home: Stream | None = None
    """The stream that it was allocated on; None for pinned memory."""
    reads: Clock = field(default_factory=dict)
    writes: Clock = field(default_factory=dict)
    kept: bool = False
    """`record_stream` keeps the memory until the stream has used it."""


_uses: dict[Key, Use] = {}
_pinned: set[Key] = set()
"""Of the CPU, used by a stream."""
_freed: list[Use] = []


def key_of(real: Tensor) -> Key:
    """Of a tensor of the CPU, or of the one that a tensor of the device holds."""
    return getattr(real, "held", real).untyped_storage()._cdata


def allocated(key: Key, stream: Stream) -> None:
    """Raises DeviceError where the allocator may give away what another stream still uses."""
    learn(stream.clock, HOST)
    for use in list(_freed):
        if use.home is stream:
            if not _done(stream.clock, use.reads) or not _done(stream.clock, use.writes):
                raise DeviceError(
                    f"memory of a stream is freed and given away while another stream may still use it, at {place()}: "
                    "let the stream wait, or call record_stream"
                )
            _freed.remove(use)
    _uses[key] = Use(stream)


def freed(key: Key) -> None:
    use = _uses.pop(key, None)
    _pinned.discard(key)
    if use and use.home and not use.kept and {*use.reads, *use.writes} - {use.home}:
        _freed.append(use)


def record_stream(key: Key) -> None:
    if key in _uses:
        _uses[key].kept = True


def works(stream: Stream, read: set[Key], changed: set[Key], what: Any) -> None:
    """One piece of work of a stream. Raises DeviceError where it does not come after what it needs."""
    learn(stream.clock, HOST)  # it begins after what the host has seen
    for key in read | changed:
        if key not in _uses:
            _uses[key] = Use()
            _pinned.add(key)
        use = _uses[key]
        if not (_done(stream.clock, use.writes) and (key not in changed or _done(stream.clock, use.reads))):
            raise DeviceError(f"{what}: uses memory that another stream has yet to finish with, at {place()}")
    time = stream.enqueue()
    for key in read:
        _uses[key].reads[stream] = time
    for key in changed:
        _uses[key].writes = {stream: time}


def made(key: Key, stream: Stream) -> None:
    """The last piece of work of a stream made what is in this memory."""
    _uses[key].writes = {stream: stream.time}


def host_uses(tensors: list[Tensor], changed: list[Tensor], what: Any) -> None:
    """The host computes with tensors of the CPU. Raises DeviceError where a copy from or to them may be on its way."""
    for tensor in tensors:
        use = _uses.get(key_of(tensor)) if tensor.layout is torch.strided else None
        writes = any(tensor is one for one in changed)
        if use and not (_done(HOST, use.writes) and (not writes or _done(HOST, use.reads))):
            raise DeviceError(f"{what}: the host uses pinned memory before a copy has landed, at {place()}")


def pinned_in_use() -> bool:
    return bool(_pinned)


def _done(clock: Clock, needed: Clock) -> bool:
    return all(clock.get(stream, 0) >= time for stream, time in needed.items())
