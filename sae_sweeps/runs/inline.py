"""Trains the runs of a plan in this process, group after group."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sae_sweeps.config.schema import ClusterConfig
from sae_sweeps.errors import UserError
from sae_sweeps.runs.console import Console
from sae_sweeps.runs.execute import execute
from sae_sweeps.runs.results import final_status
from sae_sweeps.runs.session import RunSession
from sae_sweeps.runs.signals import Stop, caught_signals
from sae_sweeps.runs.task import TAKEN_OVER, Launch, RunTask
from sae_sweeps.storage.files import DENIED, denied
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.storage.sweep_folder import run_path
from sae_sweeps.sweeps.groups import plan_groups, ranges
from sae_sweeps.sweeps.plan import Plan, PlannedRun

POLL_S = 1.0


@dataclass
class States:
    """How each run of the plan ended, by run id."""

    ended: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


def run_all(
    plan: Plan,
    outputs: Path,
    sweep: Path,
    device: torch.device,
    *,
    cluster: ClusterConfig | None = None,
    stop: Stop | None = None,
    flush: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> States:
    """Every run of the plan to its end in this process, group by group; the failure of one stops no other.

    Runs that another process works on come last, when it has finished or died.

    Args:
        cluster: limits of a group, `group_size` and `memory_gb`.
        stop: ends the launch once it returns True; without one, STOP_SIGNALS do.
        flush: when it returns True, every run in training writes a checkpoint and goes on.
        console: where progress is printed; `Console(quiet=True)` prints nothing.
    """
    own_signals, stop, console = stop is None, stop or Stop(), console or Console()
    numbers = {planned.run_id: number for number, planned in enumerate(plan.runs, 1)}
    n_runs = len(numbers)
    labels = {p.run_id: f"[{numbers[p.run_id]}/{n_runs}] {p.run_id}  {p.title}" for p in plan.runs}
    session = RunSession(device, stop, console.progress, flush)
    launch = Launch(session, console, outputs, sweep.name, stop, labels)
    announced: set[str] = set()
    with caught_signals(stop) if own_signals else nullcontext():
        for planned in plan.runs:
            with suppress(UserError, OSError):
                enqueue(planned, outputs)
        waiting = plan.runs
        while waiting and not stop():
            elsewhere: list[PlannedRun] = []
            for group in plan_groups(Plan(waiting, [], []), cluster):
                if stop():
                    break
                of = ranges([numbers[planned.run_id] for planned in group.runs])
                title = f"[{of}/{n_runs}] {len(group.runs)} runs side by side: {group.key}"
                elsewhere += run_group(group.runs, title, launch)
            waiting = elsewhere
            if waiting and not stop():
                announce(waiting, outputs, announced, console)
                time.sleep(POLL_S)
    console.close()
    return States(launch.ended, interrupted=stop())


def enqueue(planned: PlannedRun, outputs: Path, before: dict[str, Any] | None = None) -> None:
    """Mark a run queued, unless a process works on it or its status is no longer `before`: then it has begun."""
    folder = RunFolder(run_path(outputs, planned.run_id))
    if folder.status() != before or (lease := Lease.acquire(folder)) is None:
        return
    with lease:
        if folder.status() == before:
            folder.set_status(state="queued", total_steps=planned.run.total_steps, error=None)


def run_group(runs: list[PlannedRun], title: str, launch: Launch) -> list[PlannedRun]:
    """Bring the runs of a group to their ends. Returns those that another process works on."""
    elsewhere: list[PlannedRun] = []
    tasks: list[RunTask] = []
    with ExitStack() as leases:
        for planned in runs:
            folder = RunFolder(run_path(launch.outputs, planned.run_id))
            try:
                if ended_before(planned, folder, launch):  # in a folder that need not be ours
                    continue
                lease = Lease.acquire(folder)
                if lease is None:
                    elsewhere.append(planned)
                    continue
                leases.enter_context(lease)
                if not ended_before(planned, folder, launch):
                    tasks.append(RunTask(planned, folder, lease, launch))
            except (UserError, OSError) as problem:  # a lease or status that does not read back, a folder not ours
                why = denied(problem) if isinstance(problem, OSError) and problem.errno in DENIED else problem
                launch.console.print(f"{launch.labels[planned.run_id]}\n  failed: {why}")
                launch.ended[planned.run_id] = "failed"
        if not tasks:
            return elsewhere
        launch.console.print(title if len(tasks) > 1 else tasks[0].label)
        for task in tasks:
            leases.callback(task.close)
            task.label_printed = len(tasks) == 1
            task.begin()
        try:
            execute([task for task in tasks if not task.ended], launch.session)
        except KeyboardInterrupt:
            for task in tasks:
                if not task.ended:
                    with suppress(UserError, OSError):
                        task.folder.set_status(state="interrupted", error="stopped at once, by a second Ctrl-C")
            raise
        except Exception as bug:  # in what the runs share
            for task in tasks:
                if not task.ended:
                    task.end(bug)
        launch.console.close()
    return elsewhere + [task.planned for task in tasks if task.state == TAKEN_OVER]


def ended_before(planned: PlannedRun, folder: RunFolder, launch: Launch) -> bool:
    """Whether there is nothing to do, which is printed with the reason."""
    status = final_status(planned.run, folder)
    if status is None:
        return False
    diverged = f"diverged before ({status['error']}); not tried again"
    launch.console.print(
        f"{launch.labels[planned.run_id]}: {diverged if status['state'] == 'diverged' else 'complete, skipped'}"
    )
    launch.ended[planned.run_id] = status["state"]
    return True


def announce(waiting: list[PlannedRun], outputs: Path, announced: set[str], console: Console) -> None:
    """Print once per run which process works on it."""
    for planned in waiting:
        with suppress(UserError, OSError):
            holder = Lease.holder(run_path(outputs, planned.run_id))
            if holder and planned.run_id not in announced:
                announced.add(planned.run_id)
                console.print(f"{planned.run_id}  {planned.title}: {holder} is working on it; waiting")
