"""A comparison table: a frame of values with its warnings, notes and marks."""

from dataclasses import dataclass, field

import pandas as pd


@dataclass
class Runs:
    """The runs that are compared, with all their data."""

    frame: pd.DataFrame
    """One row per run: the frame of `records`."""
    varied: set[str] = field(default_factory=set)
    """Keys that their sweeps vary on purpose."""
    target_fvu: float | None = None
    """The held-out fvu that `tokens_to_fvu` and `seconds_to_fvu` are measured to."""


@dataclass
class Pivot:
    """The keys and the metric of a pivot."""

    metric: str
    across: str
    """The key whose values are the columns."""
    unfit: dict[tuple[int, str], str]
    """(row, column name) -> why the cell is never marked."""


@dataclass
class Table:
    frame: pd.DataFrame
    """Columns are (kind, name): `run`, `config`, `metrics`, and beside a metric STATISTICS and DIFFERENCES."""
    notes: list[str] = field(default_factory=list)
    """How to read the numbers."""
    warnings: list[str] = field(default_factory=list)
    """The findings of the audit that make the comparison unsound, as sentences."""
    levels: dict[str, str] = field(default_factory=dict)
    """Run id -> worst level (error, warning) among its findings."""
    unfit: dict[str, str] = field(default_factory=dict)
    """Run id -> why the run is never marked best."""
    progress: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Run id -> (step, total steps) of unfinished runs."""
    target_fvu: float | None = None
    baseline: str | None = None
    """The run id of the baseline, where the table has differences."""
    aggregated: list[str] = field(default_factory=list)
    """The keys over which runs are aggregated."""
    columns_chosen: bool = False
    """Whether the user chose the columns; every format then shows all of them."""
    pivot: Pivot | None = None
