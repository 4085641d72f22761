"""What did not complete in a sweep, and where to read on: the table under the table."""

from __future__ import annotations

from pathlib import Path

from sae_sweeps.cluster.observe import Observer, RunView
from sae_sweeps.storage.sweep_folder import outputs_of, run_path

HEAD = ("run_id", "what was varied", "state", "error", "log")
ERROR_WIDTH = 100


def failures(sweep: Path) -> str | None:
    """One line for each run that is not complete: run, what was varied, state, error, log; None where all are."""
    left = [view for view in Observer(sweep).look() if view.how != "completed"]
    if not left:
        return None
    rows = [HEAD, *(_row(view, sweep) for view in left)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in rows)


def _row(view: RunView, sweep: Path) -> tuple[str, ...]:
    error = " ".join(str(view.status["error"] or "").split())
    error = error if len(error) <= ERROR_WIDTH else error[: ERROR_WIDTH - 3] + "..."
    traceback = run_path(outputs_of(sweep), view.run_id) / "error.log"
    log = view.log or (traceback if traceback.exists() else None)
    return view.run_id, view.title, view.how, error, str(log or "")
