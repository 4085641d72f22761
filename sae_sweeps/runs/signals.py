"""Signals that end a launch: Ctrl-C, SIGTERM, a closed terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, kill, a closed terminal."""


@dataclass
class Stop:
    """Set by the first of STOP_SIGNALS; a second Ctrl-C ends the process at once."""

    signal: int | None = None
    state: str = "interrupted"
    """State of the runs that it stops: interrupted or preempted."""

    def __call__(self) -> bool:
        return self.signal is not None


@contextmanager
def caught_signals(stop: Stop) -> Iterator[None]:
    def note(number: int, frame: FrameType | None) -> None:
        if stop.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = number

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
