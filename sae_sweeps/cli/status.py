"""`sae-sweeps status SWEEP_DIR`: the state of every run of a sweep."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from sae_sweeps.cluster.observe import Observer, RunView
from sae_sweeps.storage.printing import print_line
from sae_sweeps.storage.sweep_folder import outputs_of, run_path

WATCH_S = 2.0


def status(sweep: Path, watch: bool, as_json: bool) -> int:
    """Print how every run stands; with `watch` again and again until all are at their end."""
    observer = Observer(sweep)
    while True:
        views = observer.look() if watch else observer.settled()
        if as_json:
            print_line(json.dumps([record(view, sweep) for view in views], indent=None if watch else 2))
        else:
            clear = "\x1b[H\x1b[2J" if watch and sys.stdout.isatty() else ""
            print_line(clear + status_table(views, sweep, observer))
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
        "job_state": job and job.word,
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


def status_table(views: list[RunView], sweep: Path, observer: Observer) -> str:
    """run, title, state, progress, loss, job, restarts where there are any, and the reason of an end."""
    head = ["run_id", "title", "state", "progress", "loss", "job", "restarts", "why"]
    rows = [[*cells(view, sweep)] for view in views]
    shown = [n for n, name in enumerate(head) if name not in ("job", "restarts", "why") or any(row[n] for row in rows)]
    widths = [max(len(row[n]) for row in [head, *rows]) for n in shown]
    lines = [
        "  ".join(row[n].ljust(width) for n, width in zip(shown, widths, strict=True)).rstrip() for row in [head, *rows]
    ]
    counts: dict[str, int] = {}
    for view in views:
        counts[view.how] = counts.get(view.how, 0) + 1
    lines.append(f"{len(views)} runs: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    if observer.silent_since is not None:
        lines.append("the scheduler does not answer: jobs cannot be told from those that are gone")
    return "\n".join(lines)


def cells(view: RunView, sweep: Path) -> list[str]:
    step, total = view.status["step"] or 0, view.status["total_steps"]
    loss = last_loss(sweep, view.run_id)
    job = view.job_state
    where = f"{view.job.id} {job.word.lower()}" if view.job and job and not view.ended else ""
    why = view.status["error"] or (
        job.reason if job and job.alive and not view.ended and view.state == "queued" else ""
    )
    return [
        view.run_id,
        view.title,
        view.how,
        f"{step:,}/{total:,} {100 * step // max(total, 1):>3} %" if total else "",
        "" if loss is None else f"{loss:.4g}",
        where,
        str(view.status["restarts"] or ""),
        why or "",
    ]
