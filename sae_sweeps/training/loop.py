"""The training loop: batches in, steps, rows of metrics and checkpoints out, for one run or several side by side.

Runs that share their batches take every step one after the other, and none can change another. A batch is a function
of the step: a member that resumes at step 250 joins when the others reach it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from sae_sweeps.activations.sampler import prepared
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.errors import Interrupted, as_exception
from sae_sweeps.training.checkpoint import save_checkpoint
from sae_sweeps.training.step import Training
from sae_sweeps.training.stopwatch import Stopwatch

QUARTERS = (25, 50, 75, 100)


class TrainingCallbacks:
    """What a run does at the events of its training. An exception in one ends this run's part, and no other's."""

    def before_step(self) -> None:
        """Called before each step and each checkpoint; raises where this run must not go on here."""

    def on_row(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl, every `log_every` and `monitor_every` steps and at the last one."""

    def on_monitor(self, record: dict[str, Any]) -> None:
        """A record of the monitors: competition, group membership, group events, ..."""

    def measure(self, training: Training) -> dict[str, float]:
        """Numbers computed from the SAE after a monitored step, for that step's row."""
        return {}

    def on_quarter(self, training: Training, percent: int) -> None:
        """A quarter of the training is done."""

    def on_checkpoint(self, step: int) -> None:
        """A checkpoint of the state before `step` is written."""

    def on_complete(self, member: Member) -> None:
        """All steps are taken and the last checkpoint is written."""

    def on_failure(self, error: Exception) -> None:
        """The run's part ended early: Diverged, Interrupted, or any other error."""
        raise error


class Member:
    """One run in training, from step `start` to its last.

    Attributes:
        training: the SAE and its optimizer; None once the member's part is over, so that their memory is free.
        stream: names the batches that it takes among those of a step.
        seconds: time spent on it, with its share of what was done for several.
        shared_seconds: that share alone: harvesting and drawing batches.
        stopwatch: time of its steps but the first, which compiles.
    """

    training: Training | None

    def __init__(
        self, training: Training, start: int, checkpoint_folder: Path, callbacks: TrainingCallbacks, stream: Any = None
    ):
        self.training, self.start, self.folder, self.callbacks = training, start, checkpoint_folder, callbacks
        self.run, self.total, self.stream = training.run, training.total_steps, stream
        self.quarters = {max(1, round(percent / 100 * self.total)): percent for percent in QUARTERS}
        self.seconds = self.shared_seconds = 0.0
        self.stopwatch = Stopwatch(training.device)
        self._last_row = (start + 1, 0.0)  # the step after it, and the stopwatch's seconds then

    @property
    def active(self) -> bool:
        """Neither complete nor failed."""
        return self.training is not None

    def takes(self, step: int) -> bool:
        return self.active and self.start <= step < self.total

    def add_shared_seconds(self, seconds: float) -> None:
        """Count its share of something that was done for several."""
        self.seconds += seconds
        self.shared_seconds += seconds

    def take_step(self, batch: Batch | Exception, step: int) -> None:
        """One step, and what is due before and after it. Diverged leaves the last checkpoint as it is."""
        if isinstance(batch, Exception):
            raise batch
        assert self.training is not None
        run, callbacks = self.run, self.callbacks
        callbacks.before_step()
        if step % run.train.checkpoint_every == 0 and step > self.start:
            self.save(step)
        last, every = step == self.total - 1, run.train.monitor_every
        monitored = every > 0 and (last or step % every == 0)
        logged = monitored or last or step % run.train.log_every == 0
        with self.stopwatch.running() if step > self.start else nullcontext():
            report = self.training.step(batch, step, logged, monitored)
        for record in report.monitors:
            callbacks.on_monitor({"step": step, **record})
        if logged:
            (since, before), seconds = self._last_row, self.stopwatch.seconds()
            self._last_row = step + 1, seconds
            row: dict[str, Any] = {"step": step, "tokens": (step + 1) * run.batch_size, **report.numbers}
            row["tokens_per_s"] = self.speed(step + 1 - since, seconds - before)
            callbacks.on_row(row | (callbacks.measure(self.training) if monitored else {}))
        if step + 1 in self.quarters:
            callbacks.on_quarter(self.training, self.quarters[step + 1])

    def speed(self, steps: int, seconds: float) -> int | None:
        """Tokens per second of some timed steps; None where there are none."""
        return round(steps * self.run.batch_size / max(seconds, 1e-9)) if steps > 0 else None

    def save(self, step: int) -> None:
        """Write a checkpoint of the state before `step`."""
        assert self.training is not None
        self.callbacks.before_step()
        save_checkpoint(self.training, step, self.folder)
        self.callbacks.on_checkpoint(step)

    def complete(self) -> None:
        """Write the last checkpoint and end the member's part."""
        with self.isolate_failure():
            self.save(self.total)
            self.callbacks.on_complete(self)
            self.training = None

    @contextmanager
    def isolate_failure(self) -> Iterator[None]:
        """Count the block's time as this member's; an exception in it ends this member's part alone."""
        began = time.monotonic()
        try:
            yield
        except (Exception, SystemExit) as error:
            self.training = None
            self.callbacks.on_failure(as_exception(error))
        self.seconds += time.monotonic() - began


def train(
    members: list[Member],
    draw: Callable[[int], Mapping[Any, Batch | Exception]],
    stop: Callable[[], bool] = lambda: False,
    flush: Callable[[], bool] = lambda: False,
    on_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Take all members through their steps side by side, until each is complete or has failed.

    Args:
        draw: the batch of a step for each stream that a member takes then, or the error that prevented it; called in a
            thread, one step ahead.
        stop: once it returns True, all members write a checkpoint and end with Interrupted.
        flush: when it returns True, all members write a checkpoint and go on.
        on_step: called with the number of steps done, after each.
    """
    for member in members:
        if member.start >= member.total:
            member.complete()
    remaining = [member for member in members if member.active]
    if not remaining:
        return
    steps = range(min(member.start for member in remaining), max(member.total for member in remaining))
    may_continue = partial(save_if_requested, members, stop, flush)
    began = time.monotonic()
    for step, batches in prepared(draw, steps, may_continue):
        if not may_continue(step):
            return
        present = [member for member in members if member.takes(step)]
        share = (time.monotonic() - began) / max(len(present), 1)
        for member in present:
            member.add_shared_seconds(share)
            with member.isolate_failure():
                member.take_step(batches[member.stream], step)
            if member.active and step + 1 == member.total:
                member.complete()
        on_step(step + 1)
        began = time.monotonic()


def save_if_requested(members: list[Member], stop: Callable[[], bool], flush: Callable[[], bool], step: int) -> bool:
    """Write the checkpoints before `step` that `stop` or `flush` request; False where no member is left to train."""
    stopped = stop()
    if stopped or flush():
        for member in members:
            if not member.active:
                continue
            with member.isolate_failure():
                if member.start <= step:
                    member.save(step)
                if stopped:
                    raise Interrupted(f"stopped at step {max(step, member.start)} of {member.total}")
    return any(member.active for member in members)
