"""The output of a launch: lines about its runs, and on a terminal a progress bar."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from sae_sweeps.runs.session import Progress
from sae_sweeps.storage.printing import print_line


class Console:
    """Prints lines, and shows one stage at a time as a bar with rate and remaining time; `quiet` prints nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.bar: Any = None
        self.progress = Progress(stage=self.stage, tick=self.tick)

    def print(self, text: str) -> None:
        self.close()
        if not self.quiet:
            print_line(text)

    def note(self, text: str) -> None:
        """Print a line without ending the stage."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.clear()
        print_line(text)
        if self.bar is not None:
            self.bar.refresh()

    def stage(self, name: str, total: int, unit: str, done: int = 0) -> None:
        self.close()
        self.bar = tqdm(
            total=total,
            initial=done,
            unit=unit,
            unit_scale=True,
            desc=f"  {name}",
            leave=False,
            disable=self.quiet or not sys.stderr.isatty(),
            dynamic_ncols=True,
            mininterval=0.2,
        )

    def tick(self, done: int) -> None:
        if self.bar is not None:
            self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
