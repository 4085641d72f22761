"""Which states of a run are final, and the end of a run whose process is gone."""

from pathlib import Path

from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.storage.sweep_folder import run_path

FINAL = ("completed", "diverged", "failed")
"""Ends that no live job will change."""


def mark_ended(outputs: Path, run_id: str, state: str, reason: str, even_if_leased: bool = False) -> bool:
    """Write the end of a run whose process cannot; False where it has a final one, or a process works on it."""
    folder = RunFolder(run_path(outputs, run_id))
    lease = Lease.acquire(folder)
    if lease is None and not even_if_leased:
        return False
    try:
        status = folder.status()
        if status is not None and status["state"] in FINAL:
            return False
        folder.set_status(state=state, error=reason)
        return True
    finally:
        if lease is not None:
            lease.release()
