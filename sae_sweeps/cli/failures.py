"""The runs of a sweep that did not complete, each with its error and its log."""

from __future__ import annotations

from pathlib import Path

from sae_sweeps.cluster.watch import RunView, SweepWatcher
from sae_sweeps.storage.printing import aligned
from sae_sweeps.storage.sweep_folder import outputs_of, run_path

HEAD = ("run_id", "what was varied", "state", "error", "log")
ERROR_WIDTH = 100


def failures(sweep: Path) -> str | None:
    """One line for each run that is not complete, under HEAD; None where all are."""
    failed = [view for view in SweepWatcher(sweep).poll() if view.reported_state != "completed"]
    return "\n".join(aligned([HEAD, *(_row(view, sweep) for view in failed)])) if failed else None


def _row(view: RunView, sweep: Path) -> tuple[str, ...]:
    error = " ".join(str(view.status["error"] or "").split())
    error = error if len(error) <= ERROR_WIDTH else error[: ERROR_WIDTH - 3] + "..."
    traceback = run_path(outputs_of(sweep), view.run_id) / "error.log"
    log = view.log or (traceback if traceback.exists() else None)
    return view.run_id, view.title, view.reported_state, error, str(log or "")
