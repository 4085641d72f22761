"""The jobs in a sweep's manifest, and the interface of a scheduler."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from sae_sweeps.errors import DamagedFile
from sae_sweeps.storage.sweep_folder import change_manifest


@dataclass
class Job:
    """One job of a scheduler: the groups of runs that it trains side by side."""

    cluster: str
    """Its scheduler: local, or else Slurm."""
    id: str
    """As the scheduler prints it; `12_3` in an array of Slurm."""
    groups: list[int]
    """Numbers in the manifest's `groups`."""
    runs: list[str]
    logs: list[str]
    """One for each group, relative to the sweep's folder."""
    submitted: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    pool: dict[str, Any] | None = None
    """cluster=local: the process that starts the groups' processes."""


@dataclass(frozen=True)
class JobState:
    """A job's state at the scheduler now."""

    name: str
    """PENDING, RUNNING, COMPLETED, ...; GONE where the scheduler no longer knows it."""
    alive: bool
    """It waits or runs, and may still complete its runs."""
    reason: str = ""
    """Why it waits, or how it ended, in words."""
    unfinished_run: str = "lost"
    """State of a run that had not ended when the job did."""
    never_starts: bool = False
    """It waits, and by the scheduler's reason will never start."""


class Scheduler(Protocol):
    """Slurm, or this machine's processes."""

    def submit(self, sweep: Path, groups: list[int]) -> list[Job]:
        """Start jobs for the groups. Raises ConfigError when the scheduler refuses."""
        ...

    def states(self, sweep: Path, jobs: list[Job]) -> dict[str, JobState] | None:
        """The state of every job by its id, in one query; None when the scheduler does not answer."""
        ...

    def cancel(self, sweep: Path, jobs: list[Job]) -> None:
        """End jobs, waiting or running; returns at once."""
        ...


def jobs_of(manifest: dict[str, Any]) -> list[Job]:
    """The jobs that a manifest lists. Raises DamagedFile where one lacks a field."""
    try:
        return [Job(**job) for job in manifest["jobs"]]
    except TypeError:
        raise DamagedFile(
            "the sweep's manifest.json is damaged (it lists a job without its id or its groups); restore it, or "
            "launch the command again."
        ) from None


def add_groups(sweep: Path, groups: list[list[str]]) -> list[int]:
    """Write groups of run ids into the manifest and return their numbers; a job finds its runs by them."""
    manifest = change_manifest(sweep, lambda manifest: manifest["groups"].extend(groups))
    last = len(manifest["groups"])
    return list(range(last - len(groups), last))


def add_jobs(sweep: Path, jobs: list[Job]) -> None:
    change_manifest(sweep, lambda manifest: manifest["jobs"].extend(asdict(job) for job in jobs))


def latest_job(jobs: list[Job]) -> dict[str, Job]:
    """For each run the last job submitted to train it."""
    return {run_id: job for job in jobs for run_id in job.runs}


def log_of(job: Job, groups: list[list[str]], run_id: str) -> str:
    """The log of the group that a run is in."""
    return next(log for number, log in zip(job.groups, job.logs, strict=True) if run_id in groups[number])


def runs_in(groups: list[list[str]], numbers: Collection[int]) -> list[str]:
    return [run_id for number in numbers for run_id in groups[number]]
