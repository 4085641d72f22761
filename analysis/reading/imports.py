"""Earlier work as records that are shown beside runs: one file for each source, `outputs/imported/NAME.json`."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from analysis.reading.names import present_names
from analysis.reading.record import UNRECORDED, UNTRAINED, Recorded, Study

FORM = "sae_sweeps import 1"
"""Marks a file that an import wrote, in its first line but one."""


@dataclass
class Import:
    """The imported runs of one source, as stored in its file."""

    name: str
    """Of the file, and before the run ids of notes."""
    source: str
    """The name of what was read."""
    kind: str
    """notes, figures or saebench."""
    runs: list[dict[str, Any]]
    """run_id, title, state, steps, config (dotted keys), metrics (flat; None where there is no number), not_finite,
    description, warnings and recorded (`Recorded` without its study, and without what is empty) of each run."""
    study: Study = field(default_factory=Study)
    messages: list[str] = field(default_factory=list)
    """What was decided in reading, what was read twice, and what could not be read, each a sentence with its line."""

    def to_json(self) -> dict[str, Any]:
        also: dict[str, Any] = {"study": asdict(self.study)} if self.study != Study() else {}
        also |= {"messages": self.messages} if self.messages else {}
        return {"form": FORM, "source": self.source, "kind": self.kind, **also, "runs": self.runs}

    def n_details(self) -> int:
        """The number of figures for each class, data set or pair."""
        details = (run["recorded"].get("details", {}) for run in self.runs)
        rows = (row for of_run in details for rows in of_run.values() for row in rows)
        return sum(isinstance(value, int | float) for row in rows for value in row.values())

    def n_numbers(self) -> int:
        return sum(value is not None for run in self.runs for value in run["metrics"].values())


def imported_run(
    run_id: str,
    title: str,
    config: dict[str, Any],
    metrics: dict[str, Any],
    steps: Any = None,
    state: str = "completed",
    description: str = "",
    warnings: Iterable[str] = (),
    recorded: Recorded | None = None,
) -> dict[str, Any]:
    """One run of an import; metrics under their present names, numbers that are not finite as None."""
    metrics = present_names(metrics)
    return {
        "run_id": run_id,
        "title": title,
        "state": state,
        "steps": steps,
        "config": {
            key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in config.items()
        },
        "metrics": {name: finite(value) for name, value in metrics.items()},
        "not_finite": [name for name, value in metrics.items() if value is not None and not math.isfinite(value)],
        "description": description,
        "warnings": list(warnings),
        "recorded": {key: value for key, value in asdict(recorded or Recorded()).items() if value and key != "study"},
    }


def state_of(steps: Any, metrics: dict[str, Any]) -> str:
    """The state of a run that a record describes by its steps and metrics."""
    final_loss = metrics.get("final_loss")
    if final_loss is not None and not math.isfinite(final_loss):
        return "diverged"
    if steps == 0:
        return UNTRAINED
    return UNRECORDED if steps is None and not metrics else "completed"


def finite(value: Any) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def safe_stem(name: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", name)[:80].strip("._") or "import"
