"""The training loop: batches in, steps, rows of metrics and checkpoints out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweeps.activations.batch import Batch
from sae_sweeps.errors import Interrupted
from sae_sweeps.training.checkpoint import save_checkpoint
from sae_sweeps.training.step import Training

Log = Callable[[dict[str, Any]], None]
QUARTERS = (25, 50, 75, 100)


@dataclass
class Watch:
    """Who is told what while a run trains, beside the rows of metrics.jsonl."""

    note: Log = lambda record: None
    """Records of the monitors: competition, group membership, group events, ..."""
    look: Callable[[Training], dict[str, float]] = lambda training: {}
    """Numbers taken from the SAE as it stands after a monitored step, for that step's row."""
    quarter: Callable[[Training, int], None] = lambda training, percent: None
    """A quarter of the training is done."""
    tick: Callable[[int], None] = lambda step: None
    """A step is done."""


def train(
    training: Training,
    batches: Callable[[int, int], Iterable[Batch]],
    start: int,
    checkpoint_folder: Path,
    log: Log,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
    flush: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run steps `start` .. T-1 and return the last step's row.

    `batches(start, stop)` gives the batches of those steps; `log` gets a row every `log_every` and `monitor_every`
    steps and at the last one; once `stop` says so, a checkpoint is written and Interrupted raised. Diverged leaves the
    last checkpoint as it is.
    """
    run, total, watch = training.run, training.total_steps, watch or Watch()
    quarters = {max(1, round(percent / 100 * total)): percent for percent in QUARTERS}
    clock, tokens_since, row = time.monotonic(), 0, {}
    for step, batch in enumerate(batches(start, total), start):
        if stop():
            save_checkpoint(training, step, checkpoint_folder)
            raise Interrupted(f"stopped at step {step} of {total}")
        if flush() or (step % run.train.checkpoint_every == 0 and step > start):
            save_checkpoint(training, step, checkpoint_folder)
        last = step == total - 1
        monitored = step % run.train.monitor_every == 0 or last
        logged = monitored or step % run.train.log_every == 0
        report = training.step(batch, step, logged, monitored)
        tokens_since += run.batch_size
        watch.tick(step)
        for record in report.monitors:
            watch.note({"step": step, **record})
        if logged:
            now = time.monotonic()
            row = {"step": step, "tokens": (step + 1) * run.batch_size, **report.numbers}
            row["tokens_per_s"] = round(tokens_since / max(now - clock, 1e-9))
            if monitored:
                row |= watch.look(training)
            clock, tokens_since = time.monotonic(), 0  # looking is not training
            log(row)
        if step + 1 in quarters:
            watch.quarter(training, quarters[step + 1])
    save_checkpoint(training, total, checkpoint_folder)
    return row
