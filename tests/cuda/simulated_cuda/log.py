"""What the host did to the device: synchronisations, launches and copies, each with the line of ours that caused it."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
OURS = tuple(f"{ROOT / part}/" for part in ("sae_sweeps", "bench", "scripts", "examples", "tests"))


class DeviceError(RuntimeError):
    """What CUDA would refuse: tensors of two devices in one operation, a kernel on another device than its tensors."""


@dataclass(frozen=True)
class Place:
    """A line of ours."""

    file: str
    """From the checkout."""
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass
class Log:
    synchronisations: Counter[tuple[str, Place]] = field(default_factory=Counter)
    """(operation, place) -> times that the host waited for the device."""
    launches: Counter[str] = field(default_factory=Counter)
    """Operation -> times that it started at least one kernel or copy."""
    live: int = 0
    """Bytes of device memory that tensors hold."""
    peak: int = 0
    sync_debug_mode: str = "default"
    """As torch.cuda.set_sync_debug_mode has it: default, warn or error."""

    def clear(self) -> None:
        """Forget what was counted; memory goes on."""
        self.synchronisations.clear()
        self.launches.clear()
        self.peak = self.live

    def synchronised(self, operation: str, times: int = 1) -> None:
        self.synchronisations[operation, place()] += times
        if self.sync_debug_mode == "error":
            raise DeviceError(f"called a synchronizing CUDA operation: {operation}")
        for _ in range(times if self.sync_debug_mode == "warn" else 0):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)

    def by_place(self) -> dict[str, int]:
        """file:line -> synchronisations there."""
        found: Counter[str] = Counter()
        for (_, where), times in self.synchronisations.items():
            found[str(where)] += times
        return dict(sorted(found.items()))

    def by_function(self) -> dict[str, int]:
        """ "file function" -> synchronisations there, which holds as lines move."""
        found: Counter[str] = Counter()
        for (_, where), times in self.synchronisations.items():
            found[f"{where.file} {where.function}"] += times
        return dict(sorted(found.items()))


def place() -> Place:
    """The innermost line of ours that is running; else the innermost outside the simulation."""
    frame, first = sys._getframe(1), None
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(str(HERE)):
            here = Place(file.removeprefix(f"{ROOT}/"), frame.f_lineno, frame.f_code.co_qualname)
            if file.startswith(OURS):
                return here
            first = first or here
        frame = frame.f_back  # type: ignore[assignment]
    return first or Place("?", 0, "?")


LOG = Log()
