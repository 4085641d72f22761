"""A run as the rules of the audit see it."""

from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.auditing.evidence import Evidence
from analysis.columns import of_kind
from analysis.metrics import BUDGETS
from analysis.reading.record import Recorded
from sae_sweeps.storage.budget import AS_RECORDED

SINGLE_SAE = "as reported in SAEBench's files"
"""How the source of an import of result files begins."""


@dataclass
class Run:
    """One row of the frame, as rules see it: absent cells are absent keys."""

    run_id: str
    state: str
    step: int | None = None
    total_steps: int | None = None
    title: str = ""
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    source: str | None = None
    """Where an imported record comes from; None for a run of this project."""
    description: str = ""
    nulls: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    folder: Path | None = None
    not_finite: list[str] = field(default_factory=list)
    """Of an imported record: those of `nulls` that it has as nan or an infinity."""
    recorded: Recorded = field(default_factory=Recorded)
    """What else the notes have of an imported run."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """`provenance` of results.json."""

    @cached_property
    def evidence(self) -> Evidence:
        """The files of its folder; an imported record has none."""
        return Evidence(None if self.source or self.folder is None else Path(self.folder))

    @cached_property
    def study(self) -> str:
        """The imported study that it belongs to; empty for a run of this project and for a single SAE."""
        if self.source is None or self.source.startswith(SINGLE_SAE):
            return ""
        return str(self.config.get("study") or self.run_id.rpartition("/")[0] or self.source)

    @cached_property
    def name(self) -> str:
        """Its number or name within its study."""
        return self.run_id.rpartition("/")[2] if self.study else self.run_id

    @cached_property
    def place(self) -> int | None:
        """Its number within its study, where it has one."""
        return int(self.name) if self.study and self.name.isdecimal() and len(self.name) < 6 else None

    @cached_property
    def as_recorded(self) -> bool:
        """Whether it keeps the settings of an earlier study's record, budget included."""
        return AS_RECORDED in str(self.config.get("tags"))

    @cached_property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """What is recorded of each evaluation: model, layer or hook, eval_id, commit, and the SAE that it judged."""
        return self.recorded.evaluations if self.source else self.evidence.judged

    @property
    def top_variance(self) -> float | None:
        """Share of the training activations' variance that a thousandth of the tokens holds, where it is recorded."""
        norms = self.provenance.get("norms")
        return number(norms.get("top_variance")) if isinstance(norms, dict) else None

    @property
    def measured(self) -> bool:
        """Whether it has metrics to compare, not its budget alone."""
        return not self.metrics.keys() <= BUDGETS.keys()

    def number(self, key: str) -> float | None:
        """A value of its config, where that is a number."""
        return number(self.config.get(key))

    @cached_property
    def d_in(self) -> float | None:
        """Width of the activations."""
        return number(self.config.get("layer.d_in") or self.config.get("model.d_in"))

    @cached_property
    def steps(self) -> float | None:
        """Optimizer steps taken."""
        return self.metrics.get("steps", self.step)

    @cached_property
    def tokens(self) -> float | None:
        """Tokens trained on, as recorded, or steps times the batch, or as configured."""
        batch = self.number("batch_size")
        product = None if batch is None or self.steps is None else batch * self.steps
        found = (self.metrics.get("tokens"), product, self.number("num_tokens"))
        return next((n for n in found if n is not None), None)

    @property
    def diverged(self) -> bool:
        """Whether its loss stopped being a number."""
        missing = self.not_finite if self.source else self.nulls
        return self.state == "diverged" or ("final_loss" in missing and self.steps != 0)


def number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value == value else None


def runs_of(full: pd.DataFrame) -> list[Run]:
    """The rows of a frame as rules see them."""
    parts = []
    for kind in ("run", "config", "metrics"):
        columns = of_kind(full, kind)
        names = [name for _, name in columns]
        rows = full[columns].to_numpy().tolist() if columns else [[]] * len(full)
        parts.append([{name: value for name, value in zip(names, row, strict=True) if value == value} for row in rows])
    return [run_of(*row) for row in zip(*parts, strict=True)]


def run_of(values: dict[str, Any], config: dict[str, Any], metrics: dict[str, float]) -> Run:
    """A row of the frame, or the fields of a Record, as rules see it."""
    own = {"source": None} if values.get("source") == "run" else {}
    values = {f.name: values[f.name] for f in fields(Run) if values.get(f.name) is not None} | own
    return Run(**values | {"config": config, "metrics": metrics})
