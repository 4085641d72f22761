"""`sae-sweeps cancel SWEEP_DIR`: cancel the queued and running runs of a sweep."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from sae_sweeps.cluster.ends import mark_ended
from sae_sweeps.cluster.jobs import jobs_of
from sae_sweeps.cluster.schedulers import scheduler_named
from sae_sweeps.cluster.watch import SweepWatcher
from sae_sweeps.config.cluster import kind_of
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.lease import process_alive
from sae_sweeps.storage.printing import print_line
from sae_sweeps.storage.run_folder import DAMAGED
from sae_sweeps.storage.sweep_folder import outputs_of, read_manifest

CANCEL_S = 120.0
"""How long cancelled jobs may take to end: Slurm waits KillWait seconds, 30 by default, between its two signals."""


def cancel(sweep: Path) -> int:
    """Cancel the queued and running runs of a sweep, and wait until they have ended. Returns the exit status."""
    manifest = read_manifest(sweep)
    watcher = SweepWatcher(sweep)
    views = watcher.poll_decided()
    if watcher.silent_since is not None:
        raise ConfigError("cancel: the scheduler does not answer, so nothing could be cancelled; try again later.")
    live = [view for view in views if not view.ended]
    wanted = {view.job.id for view in views if view.job and (not view.ended or view.state == DAMAGED)}
    jobs = [job for job in jobs_of(manifest) if job.id in wanted]
    for name in {job.cluster for job in jobs}:
        scheduler_named(name).cancel(sweep, [job for job in jobs if job.cluster == name])
    launcher = manifest["launcher"]
    if kind_of(manifest["cluster"]) == "inline" and launcher and live and process_alive(launcher):
        os.kill(launcher["pid"], signal.SIGTERM)
    deadline = time.monotonic() + CANCEL_S
    waiting = {view.run_id for view in live}
    marked = 0
    while waiting and time.monotonic() < deadline:
        for view in watcher.poll():
            if view.run_id not in waiting:
                continue
            if view.ended and view.state in ("completed", "diverged", "failed", "cancelled"):
                waiting.discard(view.run_id)
                marked += view.state == "cancelled"
            elif view.job_state is None or not view.job_state.alive:
                if mark_ended(outputs_of(sweep), view.run_id, "cancelled", "cancelled by `sae_sweeps cancel`"):
                    waiting.discard(view.run_id)
                    marked += 1
        if waiting:
            time.sleep(0.5)
    print_line(f"{marked} of {len(views)} runs cancelled, {len(views) - len(live)} had ended before")
    for run_id in sorted(waiting):
        print_line(f"{run_id}: a process still works on it; another sweep may include it too")
    return 0
