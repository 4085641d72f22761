"""What a launch prints: a line per run, a progress bar on a terminal, nothing twice."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from sae_sweeps.runs.bench import Progress
from sae_sweeps.sweeps.say import say


class Console:
    """One run after the other: on a terminal a bar with rate and time left, in a log file one line at its end."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.progress = Progress(stage=self.stage, tick=self.tick)

    def say(self, text: str) -> None:
        self.close()
        say(text)

    def stage(self, name: str, total: int, unit: str, done: int = 0) -> None:
        self.close()
        self.bar = tqdm(
            total=total,
            initial=done,
            unit=unit,
            unit_scale=True,
            desc=f"  {name}",
            leave=False,
            disable=not sys.stderr.isatty(),
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
