"""Which states of a run are final, and writing an end for a run whose process is gone."""

from pathlib import Path
from typing import Any

from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.storage.sweep_folder import run_path

FINAL = ("completed", "diverged", "failed")
"""Ends that no job which is still alive will change."""


def final(status: dict[str, Any]) -> bool:
    return status["state"] in FINAL


def declare(outputs: Path, run_id: str, state: str, reason: str, wait_for_lease: bool = True) -> bool:
    """Write a run's end in its stead, under its lease; False when it has one already, or somebody works on it."""
    folder = RunFolder(run_path(outputs, run_id))
    lease = Lease.acquire(folder)
    if lease is None and wait_for_lease:
        return False
    try:
        status = folder.status()
        if status is not None and final(status):
            return False
        folder.set_status(state=state, error=reason)
        return True
    finally:
        if lease is not None:
            lease.release()
