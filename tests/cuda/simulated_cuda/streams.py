"""Streams, events and the host: what each of them knows to be done.

Work is done at once here, but a stream's work counts as done for another stream, or for the host, only once that has
waited for it. A clock holds how much of each stream's work its owner knows to be done.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from simulated_cuda.log import LOG

N_DEVICES = 2

Clock = dict["Stream", int]


def index_of(device: Any) -> int:
    """The number of a device: an int, a name, a torch.device, or None for the current one."""
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return torch.cuda.current_device() if index is None else index


def learn(clock: Clock, other: Clock) -> None:
    for stream, time in other.items():
        clock[stream] = max(clock.get(stream, 0), time)


class Stream:
    """A queue of work of one device."""

    every: list[Stream] = []

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any):
        self.device = torch.device("cuda", index_of(device))
        self.time = 0
        self.clock: Clock = {self: 0}
        self.polled = -1
        self.every.append(self)

    def enqueue(self) -> int:
        """The number of one more piece of work."""
        self.time += 1
        self.clock[self] = self.time
        return self.time

    def synchronize(self) -> None:
        LOG.synchronised("Stream.synchronize")
        learn(HOST, self.clock)

    def query(self) -> bool:
        """False at first: a device is behind its host."""
        done = HOST.get(self, 0) >= self.time or self.polled == self.time
        self.polled = self.time
        if done:
            learn(HOST, self.clock)
        return done

    def wait_stream(self, other: Stream) -> None:
        learn(self.clock, other.clock)

    def wait_event(self, event: Event) -> None:
        learn(self.clock, event.clock)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def __enter__(self) -> Stream:
        _queues.before.append((current_stream(self.device), torch.cuda.current_device()))
        _queues.of[self.device.index] = self
        torch.cuda.set_device(self.device)
        return self

    def __exit__(self, *error: Any) -> None:
        stream, device = _queues.before.pop()
        _queues.of[self.device.index] = stream
        torch.cuda.set_device(device)


class Event:
    """Args:
    enable_timing: without it `elapsed_time` is refused, as by CUDA.
    """

    def __init__(self, enable_timing: bool = False, **kwargs: Any):
        self.timed, self.recorded, self.polled = enable_timing, False, False
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        """Of the current stream of the current device, unless a stream is given."""
        self.clock = dict((stream or current_stream()).clock)
        self.recorded, self.polled = True, False

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def query(self) -> bool:
        """False at first: a device is behind its host."""
        done = self.polled or self.known()
        self.polled = True
        if done:
            learn(HOST, self.clock)
        return done

    def known(self) -> bool:
        """Whether the host knows that it has come."""
        return all(HOST.get(stream, 0) >= time for stream, time in self.clock.items())

    def synchronize(self) -> None:
        LOG.synchronised("Event.synchronize")
        learn(HOST, self.clock)

    def elapsed_time(self, end: Event) -> float:
        if not (self.timed and end.timed and self.recorded and end.recorded):
            raise ValueError("both events must be recorded, and made with enable_timing=True")
        if not (self.known() and end.known()):
            raise RuntimeError("CUDA error: device not ready")
        return 1.0


HOST: Clock = {}
"""What the host knows to be done."""
DEFAULT: dict[int, Stream] = {}
"""The default stream of each device."""


class _Queues(threading.local):
    """The current stream of each device, of each thread."""

    def __init__(self) -> None:
        self.of: dict[int, Stream] = {}
        self.before: list[tuple[Stream, int]] = []


_queues = _Queues()


def default_stream(device: Any = None) -> Stream:
    index = index_of(device)
    if index not in DEFAULT:
        DEFAULT[index] = Stream(index)
    return DEFAULT[index]


def current_stream(device: Any = None) -> Stream:
    index = index_of(device)
    return _queues.of.get(index) or default_stream(index)


def set_stream(stream: Stream) -> None:
    _queues.of[stream.device.index] = stream


def synchronize(device: Any = None) -> None:
    LOG.synchronised("torch.cuda.synchronize")
    for stream in Stream.every:
        if stream.device.index == index_of(device):
            learn(HOST, stream.clock)


def host_waits(device: torch.device) -> None:
    """The host has waited for the current stream of a device."""
    learn(HOST, current_stream(device).clock)
