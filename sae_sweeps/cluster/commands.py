"""`python -m sae_sweeps status|resume|cancel SWEEP_DIR`: come back to a sweep. Torch is loaded by `resume` alone."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sae_sweeps.cluster.jobs import jobs_of
from sae_sweeps.cluster.observe import Observer, RunView, declare, scheduler_named
from sae_sweeps.errors import ConfigError
from sae_sweeps.runs.lease import process_alive
from sae_sweeps.sweeps.say import say
from sae_sweeps.sweeps.sweep import change_manifest, outputs_of, read_manifest, run_path

WATCH_S = 2.0
CANCEL_S = 120.0
"""How long cancelled jobs may take to end: Slurm waits KillWait seconds, 30 by default, between its two signals."""


# status ---------------------------------------------------------------------------------------------------------------


def status(sweep: Path, watch: bool, as_json: bool) -> int:
    """Print how every run stands; with `watch` again and again until all are at their end."""
    observer = Observer(sweep)
    while True:
        views = observer.look() if watch else observer.settled()
        if as_json:
            say(json.dumps([record(view, sweep) for view in views], indent=None if watch else 2))
        else:
            clear = "\x1b[H\x1b[2J" if watch and sys.stdout.isatty() else ""
            say(clear + status_table(views, sweep, observer))
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


# resume ---------------------------------------------------------------------------------------------------------------


def resume(sweep: Path, words: list[str], diverged: bool) -> int:
    """Launch again what is not complete and has no job that may complete it. Returns the exit status."""
    from sae_sweeps.command import let_threads_sleep

    let_threads_sleep()
    from sae_sweeps.cluster.dispatch import Left, dispatch
    from sae_sweeps.runs.bench import device_for
    from sae_sweeps.runs.folder import RunFolder
    from sae_sweeps.sweeps import outcome
    from sae_sweeps.sweeps.launch import finish, run_all
    from sae_sweeps.sweeps.stored import stored_plan

    manifest = read_manifest(sweep)
    cluster = cluster_of(manifest, words)
    views = Observer(sweep).settled()
    if manifest["cwd"] and Path(manifest["cwd"]).is_dir():
        sweep = sweep.resolve()
        os.chdir(manifest["cwd"])
    plan, outputs = stored_plan(sweep), outputs_of(sweep)
    if diverged:
        for view in views:
            if view.state == "diverged":
                RunFolder(run_path(outputs, view.run_id)).set_status(state="queued", error=None)
    change_manifest(sweep, lambda manifest: manifest.update(cluster=vars(cluster)))
    outcome.status = 0
    if cluster.name == "inline":
        states = run_all(plan, outputs, sweep, device_for(plan.runs[0].run.device), cluster=cluster)
    else:
        busy = {view.run_id for view in views if view.job_state and view.job_state.alive and not view.ended}
        came = dispatch(plan, outputs, sweep, cluster, leave=busy)
        if isinstance(came, Left):
            return came.status
        states = came
    finish(plan, states, outputs, sweep)
    return outcome.status


def cluster_of(manifest: dict[str, Any], words: list[str]) -> Any:
    """The cluster that the words ask for: another by `cluster=NAME`, or the sweep's own with some keys changed."""
    from sae_sweeps.config.cluster import cluster_config
    from sae_sweeps.sweeps.compose import compose_points

    for word in words:
        if not word.startswith(("cluster=", "cluster.")):
            raise ConfigError(f"{word}: resume takes words of the cluster group only; the runs are what they were.")
    saved = manifest["cluster"]
    another = any(word.startswith("cluster=") for word in words)
    points = compose_points(words if another else [f"cluster={saved['name']}", *words])
    if len(points) != 1:
        raise ConfigError("resume takes one value of each key.")
    composed = points[0].cfg.cluster
    if another:
        return cluster_config(composed)
    given = {word.partition("=")[0].partition(".")[2] for word in words}
    return cluster_config(OmegaConf.create(saved | {key: composed[key] for key in given}))


# cancel ---------------------------------------------------------------------------------------------------------------


def cancel(sweep: Path) -> int:
    """End what is queued or running of a sweep, wait until it is, and mark it cancelled."""
    manifest = read_manifest(sweep)
    observer = Observer(sweep)
    views = observer.settled()
    if observer.silent_since is not None:
        raise ConfigError("cancel: the scheduler does not answer, so nothing could be cancelled; try again later.")
    live = [view for view in views if not view.ended]
    wanted = {view.job.id for view in live if view.job}
    jobs = [job for job in jobs_of(manifest) if job.id in wanted]
    for name in {job.cluster for job in jobs}:
        scheduler_named(name).cancel(sweep, [job for job in jobs if job.cluster == name])
    launcher = manifest["launcher"]
    if manifest["cluster"]["name"] == "inline" and launcher and live and process_alive(launcher):
        os.kill(launcher["pid"], signal.SIGTERM)
    deadline = time.monotonic() + CANCEL_S
    left = {view.run_id for view in live}
    marked = 0
    while left and time.monotonic() < deadline:
        for view in observer.look():
            if view.run_id not in left:
                continue
            if view.ended and view.state in ("completed", "diverged", "failed", "cancelled"):
                left.discard(view.run_id)
                marked += view.state == "cancelled"
            elif view.job_state is None or not view.job_state.alive:
                if declare(outputs_of(sweep), view.run_id, "cancelled", "cancelled by `sae_sweeps cancel`"):
                    left.discard(view.run_id)
                    marked += 1
        if left:
            time.sleep(0.5)
    say(f"{marked} of {len(views)} runs cancelled, {len(views) - len(live)} were at their end before")
    for run_id in sorted(left):
        say(f"{run_id}: still worked on; another sweep may want it too")
    return 0
