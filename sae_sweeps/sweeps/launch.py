"""Carry out a plan in this process: every run under its lease, one after the other, and one table at the end."""

from __future__ import annotations

import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from sae_sweeps.errors import ConfigError, Diverged, Interrupted, UserError
from sae_sweeps.files import one_line, read_json, write_text
from sae_sweeps.sweeps import outcome
from sae_sweeps.sweeps.plan import Plan, PlannedRun, Point, describe, make_plan
from sae_sweeps.sweeps.say import say
from sae_sweeps.sweeps.sweep import create_sweep, run_path

if TYPE_CHECKING:
    import torch

    from sae_sweeps.runs.bench import Bench
    from sae_sweeps.runs.folder import RunFolder
    from sae_sweeps.sweeps.console import Console

POLL_S = 1.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a polite kill, a closed terminal."""


def launch(points: list[Point]) -> None:
    """Plan, run, print the table and leave the exit status in `outcome`."""
    if not points:
        return
    plan = make_plan(points)
    cfg, cluster = points[0].cfg, the_cluster(points)
    if cfg.dry_run:
        from sae_sweeps.cluster.dispatch import describe_jobs

        say(describe(plan, describe_jobs(plan, cluster)))
        return
    for warning in plan.warnings:
        say(f"warning: {warning}")
    for planned in plan.runs:
        if planned.equals:
            say(f"equal runs: {len(planned.equals) + 1} points are the same run, `{planned.title}`; it is trained once")
    outputs = Path(cfg.outputs)
    if cluster.name == "inline":
        from sae_sweeps.runs.bench import device_for

        device = device_for(cfg.device)
        sweep = create_sweep(outputs, plan, cluster)
        states = run_all(plan, outputs, sweep, device, cluster=cluster)
    else:
        from sae_sweeps.cluster.dispatch import Left, dispatch

        sweep = create_sweep(outputs, plan, cluster)
        came = dispatch(plan, outputs, sweep, cluster)
        if isinstance(came, Left):
            outcome.status = came.status
            return
        states = came
    finish(plan, states, outputs, sweep)


def the_cluster(points: list[Point]) -> Any:
    """The cluster group, which is no part of a run and so the same for all points."""
    from sae_sweeps.config.cluster import cluster_config

    clusters = [cluster_config(point.cfg.cluster) for point in points]
    if any(cluster != clusters[0] for cluster in clusters):
        raise ConfigError("cluster: one for the whole command; its runs cannot be trained in several places.")
    return clusters[0]


@dataclass
class Stop:
    """Set by the first of STOP_SIGNALS; a second Ctrl-C ends the process at once."""

    signal: int | None = None
    state: str = "interrupted"

    def __call__(self) -> bool:
        return self.signal is not None


@contextmanager
def caught_signals(stop: Stop) -> Iterator[None]:
    def note(number: int, frame: FrameType | None) -> None:
        if stop.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = number

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    cluster: Any = None,
    stop: Stop | None = None,
    flush: Any = lambda: False,
) -> States:
    """Every run to its end; those that another process works on come last, when it has finished or died."""
    from sae_sweeps.runs.bench import Bench
    from sae_sweeps.runs.folder import RunFolder
    from sae_sweeps.sweeps.console import Console

    ours, stop, console, states = stop is None, stop or Stop(), Console(), States()
    bench = Bench(device, stop, console.progress)
    bench.flush = flush
    bench.stopped_as = stop.state
    waiting = list(enumerate(plan.runs, 1))
    announced: set[str] = set()
    with caught_signals(stop) if ours else nullcontext():
        for _, planned in waiting:
            folder = RunFolder(run_path(outputs, planned.run_id))
            if folder.status() is None:
                folder.set_status(state="queued", total_steps=planned.run.total_steps)
        while waiting and not stop():
            held = []
            for number, planned in waiting:
                if stop():
                    break
                head = f"[{number}/{len(plan.runs)}] {planned.run_id}  {planned.title}"
                state = attempt(planned, RunFolder(run_path(outputs, planned.run_id)), bench, console, head, sweep.name)
                if state is None:
                    held.append((number, planned))
                else:
                    states.ended[planned.run_id] = state
            waiting = held
            if waiting and not stop():
                announce(waiting, outputs, announced, console)
                time.sleep(POLL_S)
    console.close()
    states.interrupted = stop()
    return states


def announce(waiting: list[tuple[int, PlannedRun]], outputs: Path, announced: set[str], console: Console) -> None:
    """Say once per run who is working on it."""
    from sae_sweeps.runs.lease import Lease

    for _, planned in waiting:
        holder = Lease.holder(run_path(outputs, planned.run_id))
        if holder and planned.run_id not in announced:
            announced.add(planned.run_id)
            console.say(f"{planned.run_id}  {planned.title}: {holder} is working on it; waiting")


def attempt(
    planned: PlannedRun, folder: RunFolder, bench: Bench, console: Console, head: str, sweep: str
) -> str | None:
    """Bring one run as far as it goes. Returns its state, or None while a live process elsewhere holds it."""
    from sae_sweeps.runs.execute import is_complete
    from sae_sweeps.runs.lease import Lease

    lease = Lease.acquire(folder)
    if lease is None:
        return None
    with lease:
        status = folder.status()
        if status and status["state"] == "diverged":
            console.say(f"{head}: diverged before ({status['error']}); not tried again")
            return "diverged"
        if status and status["state"] == "completed" and is_complete(planned.run, folder):
            console.say(f"{head}: complete, skipped")
            return "completed"
        console.say(head)
        state, error = supervise(planned, folder, bench, console, sweep, lease)
        console.close()
        if state == "completed":
            console.say(f"  {state}: {in_brief(folder)}")
            if error:  # an evaluation failed: the run counts, and the launch says so by its exit status
                console.say(f"  {error}")
            return "completed in part" if error else state
        console.say(f"  {state}: {error}")
        return state


def in_brief(folder: RunFolder) -> str:
    """One line on a run that has just completed."""
    results = read_json(folder.results_path)
    metrics, made = results["metrics"], results["provenance"]
    shown = [f"{name} {metrics[name]:.4g}" for name in ("fvu", "ce_loss_score", "l0") if metrics.get(name) is not None]
    return ", ".join([*shown, f"{made['wall_time_s']:.1f} s, {made['tokens_per_s']:,} tokens/s"])


def supervise(
    planned: PlannedRun, folder: RunFolder, bench: Bench, console: Console, sweep: str, lease: Any
) -> tuple[str, str | None]:
    """Execute a run and turn whatever happens into its state and one line of error. A sibling never notices."""
    from sae_sweeps.runs.execute import EvaluationsFailed, execute, write_config

    run, state, error = planned.run, "completed", None
    sink = open_sink(planned, folder, sweep)
    results: dict[str, Any] = {}
    try:
        write_config(run, folder)
        folder.set_status(state="running", total_steps=run.total_steps)
        results = execute(run, planned.run_id, folder, planned.title, bench, sink.log, lease)
    except EvaluationsFailed as partly:  # trained, and recorded but for that
        error, results = str(partly), read_json(folder.results_path)
    except Diverged as diverged:
        state, error = "diverged", str(diverged)
    except Interrupted as interrupted:
        state, error = bench.stopped_as, str(interrupted)
    except KeyboardInterrupt:
        try_to(folder.set_status, state="interrupted", error="stopped at once, by a second Ctrl-C")
        raise
    except UserError as mistake:
        state, error = "failed", str(mistake)
    except Exception as bug:
        state, error = "failed", f"{type(bug).__name__}: {one_line(bug)} (traceback in {folder.path / 'error.log'})"
        try_to(write_text, folder.path / "error.log", traceback.format_exc())
    finally:
        folder.close()
    if warning := sink.finish(0 if state == "completed" else 1, results.get("metrics", {})):
        console.say(f"  warning: {warning}")
    if not lease.lost:  # somebody else's status now
        try_to(folder.set_status, state=state, error=error)
    return state, error


def try_to(action: Any, *args: Any, **kwargs: Any) -> None:
    """Write a last word if that is still possible; on a full disk the error on screen has to do."""
    try:
        action(*args, **kwargs)
    except (UserError, OSError):
        pass


class NoSink:
    """logger=none: metrics.jsonl is enough."""

    def log(self, row: dict[str, Any]) -> None:
        pass

    def finish(self, exit_code: int, summary: dict[str, Any]) -> str | None:
        return None


def open_sink(planned: PlannedRun, folder: RunFolder, sweep: str) -> Any:
    run = planned.run
    if run.logger.name == "none":
        return NoSink()
    from sae_sweeps.runs.wandb_sink import WandbSink

    return WandbSink(
        run.logger,
        run_id=planned.run_id,
        group=sweep,
        tags=run.logger.tags,
        config=run.to_dict(),
        folder=folder.path,
        title=planned.title,
    )


def finish(plan: Plan, states: States, outputs: Path, sweep: Path) -> None:
    """Print the table and what went wrong, and set the exit status."""
    from analysis.table import render, table

    frame = table([sweep])
    say()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    say(render(frame, "text", width=width))
    try_to(write_text, sweep / "table.csv", render(frame, "csv"))
    try_to(write_text, sweep / "table.md", render(frame, "markdown"))
    say(f"runs    {outputs / 'runs'}")
    say(f"sweep   {sweep}   (table.csv, table.md)")
    if states.interrupted:
        say("interrupted: the same command goes on from the checkpoints")
        outcome.status = 130
    elif any(state != "completed" for state in states.ended.values()):
        outcome.status = 1
