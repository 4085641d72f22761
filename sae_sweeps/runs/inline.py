"""Trains the runs of a plan in this process, group after group."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sae_sweeps.runs.console import Console
from sae_sweeps.runs.session import RunSession
from sae_sweeps.runs.signals import Stop, caught_signals
from sae_sweeps.runs.supervise import Launch, Numbered, try_to, work_on
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.storage.sweep_folder import run_path
from sae_sweeps.sweeps.groups import Limits, plan_groups, ranges
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
    cluster: Limits | None = None,
    stop: Stop | None = None,
    flush: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> States:
    """Every run of the plan to its end in this process, group by group; nothing that happens to one stops another.

    Runs that another process works on come last, when it has finished or died.

    Args:
        cluster: limits of a group, `group_size` and `memory_gb`.
        stop: ends the launch once it says so; without one, STOP_SIGNALS do.
        flush: when it says so, every run in training writes a checkpoint and goes on.
        console: says how it goes; `Console(quiet=True)` says nothing.
    """
    from sae_sweeps.runs.console import Console
    from sae_sweeps.storage.run_folder import RunFolder

    ours, stop, console = stop is None, stop or Stop(), console or Console()
    carried = Launch(
        RunSession(device, stop, console.progress, flush), console, outputs, sweep.name, lambda: stop.state
    )
    place = {planned.run_id: number for number, planned in enumerate(plan.runs, 1)}
    announced: set[str] = set()
    with caught_signals(stop) if ours else nullcontext():
        for planned in plan.runs:
            try_to(enqueue, RunFolder(run_path(outputs, planned.run_id)), planned)
        waiting = plan.runs
        while waiting and not stop():
            held: list[PlannedRun] = []
            for group in plan_groups(Plan(waiting, [], []), cluster):
                if stop():
                    break
                numbers = [place[planned.run_id] for planned in group.runs]
                title = f"[{ranges(numbers)}/{len(place)}] {len(numbers)} runs side by side: {group.key}"
                heads = [f"[{n}/{len(place)}] {p.run_id}  {p.title}" for n, p in zip(numbers, group.runs, strict=True)]
                numbered = [Numbered(planned, head) for planned, head in zip(group.runs, heads, strict=True)]
                held += [one.planned for one in work_on(numbered, title, carried)]
            waiting = held
            if waiting and not stop():
                announce(waiting, outputs, announced, console)
                time.sleep(POLL_S)
    console.close()
    return States(carried.ended, interrupted=stop())


def enqueue(folder: RunFolder, planned: PlannedRun) -> None:
    if folder.status() is None:
        folder.set_status(state="queued", total_steps=planned.run.total_steps)


def announce(waiting: list[PlannedRun], outputs: Path, announced: set[str], console: Console) -> None:
    """Say once per run who is working on it."""

    for planned in waiting:
        holder = Lease.holder(run_path(outputs, planned.run_id))
        if holder and planned.run_id not in announced:
            announced.add(planned.run_id)
            console.print(f"{planned.run_id}  {planned.title}: {holder} is working on it; waiting")
