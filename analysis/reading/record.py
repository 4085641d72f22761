"""A run as its folder or an import describes it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ABSENT = float("nan")
"""In a column of a run that has no such key or metric; a key that is null is None."""
RUN_FIELDS = (
    "run_id", "title", "state", "step", "total_steps", "error", "warnings", "folder", "source", "provenance",
    "description", "nulls",
)  # fmt: skip
LOST = "lost?"
"""The state of a run that is recorded as running although no living process has its lease."""


@dataclass
class Record:
    """One run as its folder or its import describes it."""

    run_id: str
    folder: Path
    title: str | None = None
    state: str = "queued"
    step: int | None = None
    total_steps: int | None = None
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Empty unless the run is completed: an unfinished or diverged run has no result. What was imported is kept."""
    source: str = "run"
    """`run` for a run folder; for imported records where they come from (`as reported in notes.txt`)."""
    provenance: dict[str, Any] = field(default_factory=dict)
    description: str | None = None
    """The prose description of an imported record."""
    nulls: list[str] = field(default_factory=list)
    """Metrics that are recorded without a number: not measured, or not finite."""
