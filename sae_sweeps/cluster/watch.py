"""The state of a sweep's runs, from their status files and their jobs' states; and which runs have died.

A run has ended when its status is an end and no live job may change that. A run whose job is over, that has recorded no
end and that no process works on, is marked as ended, under its lease, with the reason in words.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweeps.cluster.ends import FINAL, mark_ended
from sae_sweeps.cluster.jobs import Job, JobState, Scheduler, jobs_of, latest_job, log_of
from sae_sweeps.cluster.schedulers import scheduler_named
from sae_sweeps.errors import OUT_OF_MEMORY, DamagedFile, DataError
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import DAMAGED, EMPTY_STATUS, ENDED, RunFolder
from sae_sweeps.storage.sweep_folder import outputs_of, read_manifest, run_path

GRACE_S = 3.0
"""Between a job's end and the decision about its runs: their last writes may not be visible here yet."""
UNCHANGING = ("completed", "diverged")
"""Ends that nothing changes while a sweep is watched; read once."""


@dataclass
class RunView:
    """One run at the time of a poll."""

    run_id: str
    title: str
    status: dict[str, Any]
    """All fields of status.json."""
    job: Job | None
    job_state: JobState | None
    log: Path | None
    ended: bool = False
    undecided: bool = False
    """Its job is over and it has not ended; decided after the grace period."""

    @property
    def state(self) -> str:
        return self.status["state"]

    @property
    def reported_state(self) -> str:
        """The state as a launch reports it: a run whose evaluation failed is completed in part."""
        return "completed in part" if self.state == "completed" and self.status["error"] else self.state

    @property
    def worth_retrying(self) -> bool:
        """The cause of its end was outside the run: another start may help."""
        return self.state in ("lost", "preempted") or (
            self.state == "failed" and str(self.status["error"]).startswith(OUT_OF_MEMORY)
        )


class SweepWatcher:
    """Polls a sweep; one query of each scheduler per poll."""

    def __init__(self, sweep: Path):
        read_manifest(sweep)  # raises where this is no sweep
        self.sweep = sweep
        self.outputs = outputs_of(sweep)
        self.schedulers: dict[str, Scheduler] = {}
        self.silent_since: float | None = None
        """time.monotonic() of the first of the queries that the scheduler has not answered."""
        self._job_over_since: dict[str, float] = {}
        self._unchanging: dict[str, dict[str, Any]] = {}

    def poll(self) -> list[RunView]:
        """Every run of the sweep, in its order. Runs that are found dead are marked so, on disk."""
        manifest = read_manifest(self.sweep)
        last = latest_job(jobs_of(manifest))
        statuses = {run["run_id"]: self._status(run["run_id"]) for run in manifest["runs"]}
        open_jobs = {
            last[run_id].id: last[run_id]
            for run_id, status in statuses.items()
            if run_id in last and status["state"] not in (*FINAL, DAMAGED)
        }
        states = self._job_states(list(open_jobs.values()))
        views = []
        for run in manifest["runs"]:
            run_id = run["run_id"]
            job = last.get(run_id)
            state = None if states is None or job is None else states.get(job.id)
            log = None if job is None else self.sweep / log_of(job, manifest["groups"], run_id)
            view = RunView(run_id, run["title"], statuses[run_id], job, state, log)
            if view.state != DAMAGED:
                try:
                    self._decide(view, unknown=states is None and job is not None)
                except (DamagedFile, DataError) as problem:
                    view.status = view.status | {"state": DAMAGED, "error": str(problem)}
            view.ended |= view.state == DAMAGED
            views.append(view)
        return views

    def poll_decided(self) -> list[RunView]:
        """A poll, repeated after the grace period where a run was undecided."""
        views = self.poll()
        if any(view.undecided for view in views):
            time.sleep(GRACE_S)
            views = self.poll()
        return views

    def _status(self, run_id: str) -> dict[str, Any]:
        if run_id in self._unchanging:
            return self._unchanging[run_id]
        try:
            status = RunFolder(run_path(self.outputs, run_id)).status() or dict(EMPTY_STATUS)
        except (DamagedFile, DataError) as problem:
            return EMPTY_STATUS | {"state": DAMAGED, "error": str(problem)}
        if status["state"] in UNCHANGING:
            self._unchanging[run_id] = status
        return status

    def _job_states(self, jobs: list[Job]) -> dict[str, JobState] | None:
        """By job id; None where a scheduler does not answer."""
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

    def _decide(self, view: RunView, unknown: bool) -> None:
        """Set whether a run has ended, and mark it as ended where its process is gone."""
        status, state = view.status, view.job_state
        if status["state"] in FINAL:
            view.ended = True
        elif unknown or (state is not None and state.alive and not state.never_starts):
            self._job_over_since.pop(view.run_id, None)
        elif state is not None and state.never_starts:
            assert view.job is not None
            self.schedulers[view.job.cluster].cancel(self.sweep, [view.job])
            self._mark_ended(view, "failed", f"job {view.job.id} can never start ({state.reason})")
        elif status["state"] == "preempted" and state is not None and state.unfinished_run == "cancelled":
            self._mark_ended(view, "cancelled", state.reason)  # the signal was scancel's, not a preemption's
        elif status["state"] in ENDED:
            view.ended = True
        elif state is not None:
            self._decide_after_job(view, state)
        elif status["state"] == "running" and Lease.holder(run_path(self.outputs, view.run_id)) is None:
            self._mark_ended(view, "lost", "its process is gone and recorded no end")

    def _decide_after_job(self, view: RunView, state: JobState) -> None:
        """The job is over and the run has not ended."""
        assert view.job is not None
        since = self._job_over_since.setdefault(view.run_id, time.monotonic())
        if time.monotonic() - since < GRACE_S:
            view.undecided = True
            return
        of_this_job = view.status["slurm_job_id"] == view.job.id and view.status["state"] == "running"
        if not of_this_job and Lease.holder(run_path(self.outputs, view.run_id)) is not None:
            return  # another sweep's process works on it
        reason = state.reason
        if state.unfinished_run == "lost" and (line := last_line(view.log)):
            reason += f"; the log's last line: {line}"
        self._mark_ended(view, state.unfinished_run, reason, even_if_leased=of_this_job)

    def _mark_ended(self, view: RunView, state: str, reason: str, even_if_leased: bool = False) -> None:
        marked = mark_ended(self.outputs, view.run_id, state, reason, even_if_leased)
        view.status = self._status(view.run_id)
        view.ended = marked or view.status["state"] in FINAL


def last_line(log: Path | None) -> str:
    """The last line of a log that is not blank, its first 200 characters."""
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
