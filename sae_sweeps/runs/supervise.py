"""The runs of a group under their leases: taken together, told apart by how they end, and given back."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_sweeps.errors import OUT_OF_MEMORY, Diverged, Interrupted, UserError
from sae_sweeps.runs.console import Console
from sae_sweeps.runs.execute import (
    EvaluationsFailed,
    LeaseLost,
    Work,
    execute,
    is_complete,
    out_of_memory,
    write_config,
)
from sae_sweeps.runs.session import RunSession
from sae_sweeps.storage.files import one_line, read_json, write_text
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.storage.sweep_folder import run_path
from sae_sweeps.sweeps.plan import PlannedRun


@dataclass
class Numbered:
    """A planned run and how the launch counts it."""

    planned: PlannedRun
    head: str
    """`[2/3] RUN_ID  TITLE`"""


@dataclass
class Launch:
    """What the groups of a launch are worked on with, and what came of their runs."""

    session: RunSession
    console: Console
    outputs: Path
    sweep: str
    stopped_as: Callable[[], str]
    """The state of a run that was stopped: interrupted or preempted."""
    ended: dict[str, str] = field(default_factory=dict)
    """State by run id; `completed in part` where an evaluation failed."""


def work_on(group: list[Numbered], title: str, launch: Launch) -> list[Numbered]:
    """Bring the runs of a group as far as they go. Returns those that a live process elsewhere holds."""
    held: list[Numbered] = []
    with ExitStack() as leases:
        supervised: list[Supervised] = []
        for one in group:
            folder = RunFolder(run_path(launch.outputs, one.planned.run_id))
            try:
                lease = Lease.acquire(folder)
                if lease is None:
                    held.append(one)
                    continue
                leases.enter_context(lease)
                if not ended_before(one, folder, launch):
                    supervised.append(Supervised(one, folder, lease, launch, held))
            except (UserError, OSError) as problem:  # a lease or a status that does not read back, a folder not ours
                launch.console.print(f"{one.head}\n  failed: {problem}")
                launch.ended[one.planned.run_id] = "failed"
        if not supervised:
            return held
        launch.console.print(title if len(supervised) > 1 else supervised[0].one.head)
        for each in supervised:
            leases.callback(each.close)
            each.head = [each.one.head] if len(supervised) > 1 else []
            each.begin()
        try:
            execute([each.work for each in supervised if not each.work.ended], launch.session)
        except KeyboardInterrupt:
            for each in supervised:
                if not each.work.ended:
                    each.status(state="interrupted", error="stopped at once, by a second Ctrl-C")
            raise
        except Exception as bug:  # in what the runs share
            for each in supervised:
                if not each.work.ended:
                    each.work.finish(bug)
        launch.console.close()
    return held


def ended_before(one: Numbered, folder: RunFolder, launch: Launch) -> bool:
    """Whether there is nothing to do; says why."""
    status = folder.status()
    if status and status["state"] == "diverged":
        launch.console.print(f"{one.head}: diverged before ({status['error']}); not tried again")
    elif status and status["state"] == "completed" and is_complete(one.planned.run, folder):
        launch.console.print(f"{one.head}: complete, skipped")
    else:
        return False
    launch.ended[one.planned.run_id] = status["state"]
    return True


class Supervised:
    """One run of a group in work: turns whatever happens to it into its state and one line of error."""

    def __init__(self, one: Numbered, folder: RunFolder, lease: Lease, launch: Launch, held: list[Numbered]):
        self.one, self.folder, self.lease, self.launch, self.held = one, folder, lease, launch, held
        self.head: list[str] = []
        """What stands before the run's end on the console, where that is not said yet."""
        planned = one.planned
        self.sink = open_sink(planned, folder, launch.sweep)
        self.exit_code = 1
        self.summary: dict[str, Any] = {}
        self.work = Work(
            planned.run, planned.run_id, planned.title, folder, lease, self.sink.log, launch.console.note, self.end
        )

    def begin(self) -> None:
        with self.work.apart():
            write_config(self.one.planned.run, self.folder)
            self.folder.set_status(state="running", total_steps=self.one.planned.run.total_steps)

    def end(self, error: Exception | None) -> None:
        """Record how the run ended and say so at once; its siblings may have a long way to go."""
        self.folder.close()
        if isinstance(error, LeaseLost):
            self.held.append(self.one)  # somebody else's now; looked after again when they are done
            self.launch.console.note(f"{self.one.head}\n  {error}")
            return
        state, why = self.state_after(error)
        if not self.lease.lost:  # somebody else's status otherwise
            self.status(state=state, error=why)
        lines = list(self.head)
        if state == "completed":
            self.exit_code, self.summary = 0, read_json(self.folder.results_path).get("metrics", {})
            lines.append(f"  {state}: {in_brief(self.folder)}")
        if why:
            lines.append(f"  {why}" if state == "completed" else f"  {state}: {why}")
        self.launch.ended[self.one.planned.run_id] = "completed in part" if state == "completed" and why else state
        self.launch.console.note("\n".join(lines))

    def state_after(self, error: Exception | None) -> tuple[str, str | None]:
        if error is None:
            return "completed", None
        if isinstance(error, EvaluationsFailed):  # trained, and recorded but for that
            return "completed", str(error)
        if isinstance(error, Diverged):
            return "diverged", str(error)
        if isinstance(error, Interrupted):
            return self.launch.stopped_as(), str(error)
        if isinstance(error, UserError):
            return "failed", str(error)
        log = self.folder.path / "error.log"
        try_to(write_text, log, "".join(traceback.format_exception(error)))
        if out_of_memory(error):
            what = f"{OUT_OF_MEMORY}: {one_line(error)}; a smaller d_sae, batch_size or cluster.group_size takes less"
        else:
            what = f"{type(error).__name__}: {one_line(error)}"
        return "failed", f"{what} (traceback in {log})"

    def status(self, **changes: Any) -> None:
        try_to(self.folder.set_status, **changes)

    def close(self) -> None:
        notes = None if isinstance(self.sink, NoSink) else notes_of(self.folder)
        if warning := self.sink.finish(self.exit_code, self.summary, notes=notes):
            self.launch.console.note(f"{self.one.head}\n  warning: {warning}")


def notes_of(folder: RunFolder) -> str | None:
    """What W&B shows as the run's notes; None where the files do not tell."""
    from analysis.reading.run_folders import read_run
    from analysis.wandb import publish

    try:
        return publish.notes_of(read_run(folder.path))
    except UserError:
        return None


def try_to(action: Any, *args: Any, **kwargs: Any) -> None:
    """Write a last word if that is still possible; on a full disk the error on screen has to do."""
    try:
        action(*args, **kwargs)
    except (UserError, OSError):
        pass


def in_brief(folder: RunFolder) -> str:
    """One line on a run that has just completed."""
    results = read_json(folder.results_path)
    metrics, made = results["metrics"], results["provenance"]
    shown = [f"{name} {metrics[name]:.4g}" for name in ("fvu", "ce_loss_score", "l0") if metrics.get(name) is not None]
    speed = [f"{made['tokens_per_s']:,} tokens/s"] if made["tokens_per_s"] else []
    return ", ".join([*shown, f"{made['wall_time_s']:.1f} s", *speed])


class NoSink:
    """logger=none: metrics.jsonl is enough."""

    def log(self, row: dict[str, Any]) -> None:
        pass

    def finish(self, exit_code: int, summary: dict[str, Any], notes: str | None = None) -> str | None:
        return None


def open_sink(planned: PlannedRun, folder: RunFolder, sweep: str) -> Any:
    run = planned.run
    if run.logger.name == "none":
        return NoSink()
    from sae_sweeps.tracking.wandb_sink import WandbSink

    return WandbSink(
        run.logger,
        run_id=planned.run_id,
        group=sweep,
        tags=run.logger.tags,
        config=run.to_dict(),
        folder=folder.path,
        title=planned.title,
    )
