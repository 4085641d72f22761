"""The training loop: batches in, steps, rows of metrics and checkpoints out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sae_sweeps.activations.batch import Batch
from sae_sweeps.errors import Interrupted
from sae_sweeps.training.checkpoint import save_checkpoint
from sae_sweeps.training.step import Training

Log = Callable[[dict[str, Any]], None]


def train(
    training: Training,
    batches: Callable[[int, int], Iterable[Batch]],
    start: int,
    checkpoint_folder: Path,
    log: Log,
    stop: Callable[[], bool] = lambda: False,
    tick: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Run steps `start` .. T-1 and return the last step's row.

    `batches(start, stop)` gives the batches of those steps; `log` gets a row every `log_every` steps and at the last
    one; `tick` hears of every finished step; once `stop` says so, a checkpoint is written and Interrupted raised.
    Diverged leaves the last checkpoint as it is.
    """
    run, total = training.run, training.total_steps
    clock, tokens_since, row = time.monotonic(), 0, {}
    for step, batch in enumerate(batches(start, total), start):
        if stop():
            save_checkpoint(training, step, checkpoint_folder)
            raise Interrupted(f"stopped at step {step} of {total}")
        if step % run.train.checkpoint_every == 0 and step > start:
            save_checkpoint(training, step, checkpoint_folder)
        logged = step % run.train.log_every == 0 or step == total - 1
        numbers = training.step(batch, step, detailed=logged)
        tokens_since += run.batch_size
        tick(step)
        if logged:
            now = time.monotonic()
            row = {"step": step, "tokens": (step + 1) * run.batch_size, **numbers}
            row["tokens_per_s"] = round(tokens_since / max(now - clock, 1e-9))
            clock, tokens_since = now, 0
            log(row)
    save_checkpoint(training, total, checkpoint_folder)
    return row
