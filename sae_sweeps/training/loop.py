"""The training loop: batches in, steps, rows of metrics and checkpoints out, for one run or several side by side.

Runs that share their batches take every step one after the other; nothing of one reaches another. A batch is a
function of the step, so a member that goes on from step 250 waits until the others come by.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sae_sweeps.activations.sampler import prepared
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.errors import Interrupted
from sae_sweeps.training.checkpoint import save_checkpoint
from sae_sweeps.training.step import Training
from sae_sweeps.training.stopwatch import Stopwatch

QUARTERS = (25, 50, 75, 100)


class TrainingCallbacks:
    """Who is told what while a run trains. Whatever a method raises ends this run's part, and no other's."""

    def log(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl, every `log_every` and `monitor_every` steps and at the last one."""

    def note(self, record: dict[str, Any]) -> None:
        """A record of the monitors: competition, group membership, group events, ..."""

    def look(self, training: Training) -> dict[str, float]:
        """Numbers taken from the SAE as it stands after a monitored step, for that step's row."""
        return {}

    def quarter(self, training: Training, percent: int) -> None:
        """A quarter of the training is done."""

    def check(self) -> None:
        """Asked before each step and each checkpoint; raises where this run must not go on here."""

    def saved(self, step: int) -> None:
        """A checkpoint of the state before `step` is written."""

    def done(self, member: Member) -> None:
        """All steps are taken and the last checkpoint is written."""

    def left(self, error: Exception) -> None:
        """The run's part is over before its end: Diverged, Interrupted, or whatever went wrong."""
        raise error


class Member:
    """One run on its way from step `start` to its last.

    Attributes:
        stream: names the batches that it takes among those of a step.
        seconds: time spent on it, its share of what was done for several included.
        shared_seconds: that share alone: harvesting and drawing batches.
        stopwatch: time that its steps take, without the first: that one compiles, and is no measure of the others.
    """

    def __init__(
        self, training: Training, start: int, checkpoint_folder: Path, callbacks: TrainingCallbacks, stream: Any = None
    ):
        self.training, self.start, self.folder, self.callbacks, self.stream = (
            training, start, checkpoint_folder, callbacks, stream,
        )  # fmt: skip
        self.total = training.total_steps
        self.quarters = {max(1, round(percent / 100 * self.total)): percent for percent in QUARTERS}
        self.seconds = self.shared_seconds = 0.0
        self.stopwatch = Stopwatch(training.device)
        self._last_row = (start + 1, 0.0)  # the step after it, and what the stopwatch said

    def shared(self, seconds: float) -> None:
        """Count its share of something that was done for several."""
        self.seconds += seconds
        self.shared_seconds += seconds

    def takes(self, step: int) -> bool:
        return self.start <= step < self.total

    def take(self, batch: Batch, step: int) -> None:
        """One step, and what is due before and after it. Diverged leaves the last checkpoint as it is."""
        run, callbacks = self.training.run, self.callbacks
        callbacks.check()
        if step % run.train.checkpoint_every == 0 and step > self.start:
            self.save(step)
        last = step == self.total - 1
        monitored = step % run.train.monitor_every == 0 or last
        logged = monitored or step % run.train.log_every == 0
        with self.stopwatch.running() if step > self.start else nullcontext():
            report = self.training.step(batch, step, logged, monitored)
        for record in report.monitors:
            callbacks.note({"step": step, **record})
        if logged:
            (since, before), seconds = self._last_row, self.stopwatch.seconds()
            self._last_row = step + 1, seconds
            row: dict[str, Any] = {"step": step, "tokens": (step + 1) * run.batch_size, **report.numbers}
            row["tokens_per_s"] = self.speed(step + 1 - since, seconds - before)
            callbacks.log(row | (callbacks.look(self.training) if monitored else {}))
        if step + 1 in self.quarters:
            callbacks.quarter(self.training, self.quarters[step + 1])

    def speed(self, steps: int, seconds: float) -> int | None:
        """Tokens per second of some timed steps; None of none."""
        return round(steps * self.training.run.batch_size / max(seconds, 1e-9)) if steps > 0 else None

    def save(self, step: int) -> None:
        """Write the state before `step`."""
        self.callbacks.check()
        save_checkpoint(self.training, step, self.folder)
        self.callbacks.saved(step)


def train(
    members: list[Member],
    draw: Callable[[int], Mapping[Any, Batch | Exception]],
    stop: Callable[[], bool] = lambda: False,
    flush: Callable[[], bool] = lambda: False,
    tick: Callable[[int], None] = lambda step: None,
) -> None:
    """Take all members through their steps side by side. Whoever finishes or leaves is taken out of `members`.

    Args:
        draw: the batch of a step for each stream that a member takes then, or the error that kept it from being drawn;
            called in a thread, one step ahead.
        stop: once it says so, all members write a checkpoint and leave with Interrupted.
        flush: when it says so, all write a checkpoint and go on.
        tick: told the steps that are behind.
    """

    @contextmanager
    def apart(member: Member) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        except Exception as error:
            members.remove(member)
            member.callbacks.left(error)
        member.seconds += time.monotonic() - began

    def go_on(step: int) -> bool:
        """Write the checkpoints that are asked for while everybody stands before `step`; False where nobody is left."""
        stopped = stop()
        if stopped or flush():
            for member in tuple(members):
                with apart(member):
                    if member.start <= step:
                        member.save(step)
                    if stopped:
                        raise Interrupted(f"stopped at step {max(step, member.start)} of {member.total}")
        return bool(members)

    def finish(member: Member) -> None:
        with apart(member):
            member.save(member.total)
            member.callbacks.done(member)
            members.remove(member)

    for member in tuple(members):
        if member.start >= member.total:
            finish(member)
    if not members:
        return
    steps = range(min(member.start for member in members), max(member.total for member in members))
    clock = time.monotonic()
    for step, batches in prepared(draw, steps, go_on):
        if not go_on(step):
            return
        present = [member for member in members if member.takes(step)]
        share = (time.monotonic() - clock) / max(len(present), 1)
        while present:
            member = present.pop(0)  # no list holds on to what a member leaves behind, least of all its memory
            member.shared(share)
            with apart(member):
                batch = batches[member.stream]
                if isinstance(batch, Exception):
                    raise batch
                member.take(batch, step)
            if step + 1 == member.total and member in members:
                finish(member)
            del member
        tick(step + 1)
        clock = time.monotonic()
