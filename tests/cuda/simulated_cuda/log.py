"""What the host did to the device: synchronisations, launches and copies, each with the line of ours that caused it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
OURS = tuple(f"{ROOT / part}/" for part in ("sae_sweeps", "bench", "scripts", "examples", "tests"))


class DeviceError(RuntimeError):
    """What CUDA would refuse: tensors of two devices in one operation, a kernel on another device than its tensors."""


@dataclass
class Log:
    synchronisations: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(operation, place) -> times that the host waited for the device."""
    launches: Counter[str] = field(default_factory=Counter)
    """Operation -> times that it started at least one kernel or copy."""
    live: int = 0
    """Bytes of device memory that tensors hold."""
    peak: int = 0

    def clear(self) -> None:
        """Forget what was counted; memory goes on."""
        self.synchronisations.clear()
        self.launches.clear()
        self.peak = self.live

    def synchronised(self, operation: str, times: int = 1) -> None:
        self.synchronisations[operation, place()] += times

    def by_place(self) -> dict[str, int]:
        """Place -> synchronisations there."""
        found: Counter[str] = Counter()
        for (_, where), times in self.synchronisations.items():
            found[where] += times
        return dict(sorted(found.items()))


def place() -> str:
    """file:line, from the checkout, of the innermost line of ours that is running; else of the outermost line."""
    frame = sys._getframe(1)
    name = "?"
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(str(HERE)):
            name = f"{file}:{frame.f_lineno}"
            if file.startswith(OURS):
                return name.removeprefix(f"{ROOT}/")
        frame = frame.f_back  # type: ignore[assignment]
    return name


LOG = Log()
