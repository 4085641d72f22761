"""How a sweep's runs stand, from their own status files, with what the scheduler says of their jobs; and who is dead.

A run is at its end when its status says so and no job may yet change that. A run whose job is over, without an end of
its own and with nobody working on it, is declared dead, under its lease, with the reason in words.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweeps.cluster.ends import declare, final
from sae_sweeps.cluster.jobs import Job, JobState, Scheduler, jobs_of, latest_job, log_of
from sae_sweeps.cluster.schedulers import scheduler_named
from sae_sweeps.errors import OUT_OF_MEMORY
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import EMPTY_STATUS, ENDED, RunFolder
from sae_sweeps.storage.sweep_folder import outputs_of, read_manifest, run_path

GRACE_S = 3.0
"""Between a job's end and the verdict on its runs: what they wrote last may still be on its way here."""
CLOSED = ("completed", "diverged")
"""Ends that nobody changes while a sweep is watched; read once."""


@dataclass
class RunView:
    """One run as it stands."""

    run_id: str
    title: str
    status: dict[str, Any]
    """All fields of status.json."""
    job: Job | None
    job_state: JobState | None
    log: Path | None
    ended: bool
    doubtful: bool = False
    """Its job is over and it is not; the verdict comes after the grace period."""

    @property
    def state(self) -> str:
        return self.status["state"]

    @property
    def how(self) -> str:
        """The state as a launch reports it: a run whose evaluation failed is completed in part."""
        return "completed in part" if self.state == "completed" and self.status["error"] else self.state

    @property
    def left_by_others(self) -> bool:
        """It ended for a reason that is not its own fault; starting it again may help."""
        return self.state in ("lost", "preempted") or (
            self.state == "failed" and str(self.status["error"]).startswith(OUT_OF_MEMORY)
        )


class Observer:
    """Looks at a sweep again and again; asks each scheduler once per look."""

    def __init__(self, sweep: Path):
        read_manifest(sweep)  # no sweep: say so now
        self.sweep = sweep
        self.outputs = outputs_of(sweep)
        self.schedulers: dict[str, Scheduler] = {}
        self.silent_since: float | None = None
        """Since when the scheduler has not answered, by the monotonic clock."""
        self._dead_since: dict[str, float] = {}
        self._closed: dict[str, dict[str, Any]] = {}

    def look(self) -> list[RunView]:
        """Every run of the sweep, in its order. Runs that are found dead are declared so, on disk."""
        manifest = read_manifest(self.sweep)
        jobs = jobs_of(manifest)
        last = latest_job(jobs)
        statuses = {run["run_id"]: self._status(run["run_id"]) for run in manifest["runs"]}
        asked = {last[run_id].id: last[run_id] for run_id in statuses if run_id in last and not final(statuses[run_id])}
        states = self._ask(list(asked.values()), manifest["cluster"])
        views = []
        for run in manifest["runs"]:
            run_id = run["run_id"]
            job = last.get(run_id)
            state = None if states is None or job is None else states.get(job.id)
            log = None if job is None else self.sweep / log_of(job, manifest["groups"], run_id)
            view = RunView(run_id, run["title"], statuses[run_id], job, state, log, ended=False)
            unknown = states is None and job is not None
            self._judge(view, unknown)
            views.append(view)
        return views

    def settled(self) -> list[RunView]:
        """A look, and after the grace period another where a verdict was due."""
        views = self.look()
        if any(view.doubtful for view in views):
            time.sleep(GRACE_S)
            views = self.look()
        return views

    def _status(self, run_id: str) -> dict[str, Any]:
        if run_id not in self._closed:
            status = RunFolder(run_path(self.outputs, run_id)).status() or dict(EMPTY_STATUS)
            if status["state"] not in CLOSED:
                return status
            self._closed[run_id] = status
        return self._closed[run_id]

    def _ask(self, jobs: list[Job], cluster: dict[str, Any]) -> dict[str, JobState] | None:
        states: dict[str, JobState] = {}
        for name in {job.cluster for job in jobs}:
            if name not in self.schedulers:
                self.schedulers[name] = scheduler_named(name)
            answer = self.schedulers[name].states(self.sweep, [job for job in jobs if job.cluster == name])
            if answer is None:
                self.silent_since = self.silent_since or time.monotonic()
                return None
            states |= answer
        self.silent_since = None
        return states

    def _judge(self, view: RunView, unknown: bool) -> None:
        """Decide whether a run is at its end, and declare it dead where nobody else can."""
        status, state = view.status, view.job_state
        if final(status):
            view.ended = True
        elif unknown or (state is not None and state.alive and not state.hopeless):
            view.ended = False
            self._dead_since.pop(view.run_id, None)
        elif state is not None and state.hopeless:
            assert view.job is not None
            self.schedulers[view.job.cluster].cancel(self.sweep, [view.job])
            reason = f"job {view.job.id} can never start ({state.reason})"
            self._declare(view, "failed", reason)
        elif status["state"] == "preempted" and state is not None and state.leaves == "cancelled":
            self._declare(view, "cancelled", state.reason)  # what the worker took for a preemption was scancel
        elif status["state"] in ENDED:
            view.ended = True
        elif state is not None:
            self._after_its_job(view, state)
        elif status["state"] == "running" and Lease.holder(run_path(self.outputs, view.run_id)) is None:
            self._declare(view, "lost", "its process is gone and left no word")

    def _after_its_job(self, view: RunView, state: JobState) -> None:
        """The job is over and the run is not."""
        assert view.job is not None
        since = self._dead_since.setdefault(view.run_id, time.monotonic())
        if time.monotonic() - since < GRACE_S:
            view.doubtful = True
            return
        own = view.status["slurm_job_id"] == view.job.id and view.status["state"] == "running"
        if not own and Lease.holder(run_path(self.outputs, view.run_id)) is not None:
            return  # another sweep's process works on it
        reason = state.reason
        if state.leaves == "lost" and (said := last_line(view.log)):
            reason += f"; the log's last line: {said}"
        self._declare(view, state.leaves, reason, wait_for_lease=not own)

    def _declare(self, view: RunView, state: str, reason: str, wait_for_lease: bool = True) -> None:
        declared = declare(self.outputs, view.run_id, state, reason, wait_for_lease)
        view.status = self._status(view.run_id)
        view.ended = declared or final(view.status)


def last_line(log: Path | None) -> str:
    """The last line of a log that says something, shortened."""
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
