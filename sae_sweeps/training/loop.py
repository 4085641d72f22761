"""The training loop: batches in, steps, rows of metrics and checkpoints out, for one run or several side by side.

Runs that share their batches take every step one after the other, and none can change another. A batch is a function
of the step: a member that resumes at step 250 joins when the others reach it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from sae_sweeps.activations.sampler import prepared
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.errors import Interrupted, as_exception
from sae_sweeps.training.checkpoint import Write, Writer
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

    def log_digests(self) -> dict[str, str]:
        """Digests of the logs of the steps so far, which a checkpoint records."""
        return {}

    def on_checkpoint(self, step: int) -> None:
        """A checkpoint of the state before `step` is on the disk."""

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
        waiting: time that the steps of all waited for their batches, each run's share.
        writer: writes its checkpoints; `train` gives the members one for all.
    """

    training: Training | None
    _write: Write | None

    def __init__(
        self, training: Training, start: int, checkpoint_folder: Path, callbacks: TrainingCallbacks, stream: Any = None
    ):
        self.training, self.start, self.folder, self.callbacks = training, start, checkpoint_folder, callbacks
        self.run, self.total, self.stream, self.device = training.run, training.total_steps, stream, training.device
        self.quarters = {max(1, round(percent / 100 * self.total)): percent for percent in QUARTERS}
        self.seconds = self.shared_seconds = 0.0
        self.stopwatch = Stopwatch(training.device)
        self.waiting, self._waited_before = Stopwatch(training.device), 0.0
        self._last_row = (start + 1, 0.0)  # the step after it, and the seconds of steps and waiting then
        self.writer, self._write, self._saved_at = Writer(), None, time.monotonic()

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
        if self._write is not None and self._write.done:
            self.finish_write()
        if self._checkpoint_due(step):
            self.save(step, beside=True)
        if step == self.start:
            self._waited_before = self.waiting.seconds()
        last, every = step == self.total - 1, run.train.monitor_every
        monitored = every > 0 and (last or step % every == 0)
        logged = monitored or last or step % run.train.log_every == 0
        with self.stopwatch.running() if step > self.start else nullcontext():
            report = self.training.step(batch, step, logged, monitored)
        for record in report.monitors:
            callbacks.on_monitor({"step": step, **record})
        if logged:
            (since, before), seconds = self._last_row, self.seconds_of_steps()
            self._last_row = step + 1, seconds
            row: dict[str, Any] = {"step": step, "tokens": (step + 1) * run.batch_size, **report.numbers}
            row["tokens_per_s"] = self.speed(step + 1 - since, seconds - before)
            callbacks.on_row(row | (callbacks.measure(self.training) if monitored else {}))
        if step + 1 in self.quarters:
            callbacks.on_quarter(self.training, self.quarters[step + 1])

    def speed(self, steps: int, seconds: float) -> int | None:
        """Tokens per second of some timed steps; None where there are none."""
        return round(steps * self.run.batch_size / max(seconds, 1e-9)) if steps > 0 else None

    def seconds_of_steps(self) -> float:
        """Time of its steps but the first, and of its share of waiting for their batches."""
        return self.stopwatch.seconds() + self.waiting.seconds() - self._waited_before

    def _checkpoint_due(self, step: int) -> bool:
        """By the number of steps; or by time, as soon as no other is being written."""
        if step == self.start:
            return False
        every, seconds = self.run.train.checkpoint_every, 60 * self.run.train.checkpoint_minutes
        by_time = time.monotonic() - self._saved_at >= seconds and not self.writer.busy
        return by_time or (every is not None and step % every == 0)

    def save(self, step: int, beside: bool = False) -> None:
        """Begin to write a checkpoint of the state before `step`, once the one before it is written.

        `beside` the training, which may go on; otherwise `finish_write` must be called before that.
        """
        training = self.training
        assert training is not None
        self.callbacks.before_step()
        self.finish_write()
        if not beside:
            if self.device.type == "cuda":
                self.writer.wait()  # so that the copy takes the memory of the one before
            training.nonfinite_guard.check(wait=True)
        allowed, logs = self.callbacks.before_step, self.callbacks.log_digests()
        self._write = self.writer.start(training, step, self.folder, beside=beside, allowed=allowed, logs=logs)
        training.before_update = self._write.wait_for_copy
        self._saved_at = time.monotonic()

    def finish_write(self) -> None:
        """Wait until the checkpoint that is being written is on the disk. Raises the error that prevented it."""
        write, self._write = self._write, None
        if write is not None and write.finish():
            self.callbacks.on_checkpoint(write.step)

    def complete(self) -> None:
        """Write the last checkpoint and end the member's part."""
        with self.isolate_failure():
            self.save(self.total)
            self.finish_write()
            self.callbacks.on_complete(self)
            self.training = None

    @contextmanager
    def isolate_failure(self) -> Iterator[None]:
        """Count the block's time as this member's; an exception in it ends this member's part alone."""
        began = time.monotonic()
        try:
            yield
        except (Exception, SystemExit) as error:
            with suppress(Exception):  # `error` came first
                self.finish_write()
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
    writer = Writer()
    for member in members:
        member.writer, member.waiting = writer, members[0].waiting
        if member.start >= member.total:
            member.complete()
    remaining = [member for member in members if member.active]
    if not remaining:
        return
    steps = range(min(member.start for member in remaining), max(member.total for member in remaining))
    may_continue = partial(save_if_requested, members, stop, flush)
    ready = prepared(draw, steps, may_continue, remaining[0].device)
    try:
        for step in steps:
            began = time.monotonic()
            with members[0].waiting.running(max(1, sum(member.takes(step) for member in members))):
                batches = next(ready, None)
            if batches is None or not may_continue(step):
                return
            present = [member for member in members if member.takes(step)]
            share = (time.monotonic() - began) / max(len(present), 1)
            for member in present:
                member.add_shared_seconds(share)
                with member.isolate_failure():
                    member.take_step(batches[1][member.stream], step)
                if member.active and step + 1 == member.total:
                    member.complete()
            on_step(step + 1)
    finally:
        for member in members:  # the second Ctrl-C: no write goes on once the lease is released
            with suppress(Exception):
                member.finish_write()


def save_if_requested(members: list[Member], stop: Callable[[], bool], flush: Callable[[], bool], step: int) -> bool:
    """Write the checkpoints before `step` that `stop` or `flush` request; False where no member is left to train."""
    stopped = stop()
    if stopped or flush():
        for member in members:
            if member.active and member.start <= step:
                with member.isolate_failure():
                    member.save(step)
        for member in members:
            if member.active:
                with member.isolate_failure():
                    member.finish_write()
                    if stopped:
                        raise Interrupted(f"stopped at step {max(step, member.start)} of {member.total}")
    return any(member.active for member in members)
