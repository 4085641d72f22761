"""`sae-sweeps status SWEEP_DIR`: the state of every run of a sweep."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sae_sweeps.cluster.watch import RunView, SweepWatcher
from sae_sweeps.storage.printing import aligned, print_line
from sae_sweeps.storage.sweep_folder import outputs_of, run_path

WATCH_S = 2.0
HEAD = ("run_id", "title", "state", "progress", "loss", "job", "restarts", "why")
ALWAYS = HEAD[:5]
"""Columns that are shown even where all their cells are empty."""


def status(sweep: Path, watch: bool, as_json: bool) -> int:
    """Print the state of every run; with `watch` repeatedly until all have ended. Returns the exit status."""
    watcher = SweepWatcher(sweep)
    while True:
        views = watcher.poll() if watch else watcher.poll_decided()
        if as_json:
            print_line(json.dumps([record(view, sweep) for view in views], indent=None if watch else 2))
        else:
            clear = "\x1b[H\x1b[2J" if watch and sys.stdout.isatty() else ""
            print_line(clear + status_table(views, sweep, watcher.silent_since is not None))
        if not watch or all(view.ended for view in views):
            return 0
        try:
            time.sleep(WATCH_S)
        except KeyboardInterrupt:
            return 130


def record(view: RunView, sweep: Path) -> dict[str, Any]:
    """One run for `--json`."""
    fields = ("state", "step", "total_steps", "restarts", "error", "host", "started", "updated", "ended")
    job = view.job_state
    return {
        "run_id": view.run_id,
        "title": view.title,
        **{key: view.status[key] for key in fields},
        "at_its_end": view.ended,
        "loss": last_loss(sweep, view.run_id),
        "job": view.job and view.job.id,
        "job_state": job and job.name,
        "job_reason": job and job.reason,
        "log": view.log and str(view.log),
    }


def last_loss(sweep: Path, run_id: str) -> float | None:
    """The loss of the last whole row of metrics.jsonl."""
    path = run_path(outputs_of(sweep), run_id) / "metrics.jsonl"
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            rows = file.read().split(b"\n")
    except OSError:
        return None
    for row in reversed(rows[:-1]):
        try:
            return json.loads(row).get("loss")
        except (ValueError, AttributeError):
            continue
    return None


def status_table(views: list[RunView], sweep: Path, scheduler_is_silent: bool) -> str:
    """One line per run under HEAD, without the empty ones of the later columns, and the number of runs by state."""
    rows = [cells(view, sweep) for view in views]
    columns = [column for column in zip(HEAD, *rows, strict=True) if column[0] in ALWAYS or any(column[1:])]
    counts = sorted(Counter(view.reported_state for view in views).items())
    lines = aligned([*zip(*columns, strict=True)])
    lines.append(f"{len(views)} runs: " + ", ".join(f"{count} {state}" for state, count in counts))
    if scheduler_is_silent:
        lines.append("the scheduler does not answer: whether jobs are alive is unknown")
    return "\n".join(lines)


def cells(view: RunView, sweep: Path) -> list[str]:
    step, total = view.status["step"] or 0, view.status["total_steps"]
    loss, job = last_loss(sweep, view.run_id), view.job_state
    waiting = job.reason if job and job.alive and not view.ended and view.state == "queued" else ""
    return [
        view.run_id,
        view.title,
        view.reported_state,
        f"{step:,}/{total:,} {100 * step // max(total, 1):>3} %" if total else "",
        "" if loss is None else f"{loss:.4g}",
        f"{view.job.id} {job.name.lower()}" if view.job and job and not view.ended else "",
        str(view.status["restarts"] or ""),
        view.status["error"] or waiting,
    ]
