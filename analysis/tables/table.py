"""A comparison table: a frame of numbers, and what a reader has to know of them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Runs:
    """All that is known of the runs that are compared."""

    frame: "pd.DataFrame"
    """A row each, as `records` gives it."""
    varied: set[str] = field(default_factory=set)
    """Keys that their sweeps vary on purpose."""
    target_fvu: float | None = None
    """The held-out fvu that `tokens_to_fvu` and `seconds_to_fvu` are measured to."""


@dataclass
class Pivot:
    """What the columns of a pivot have in common."""

    metric: str
    across: str
    """The key that has a column for each of its values."""
    unfit: dict[tuple[int, str], str]
    """Why a cell is never marked, by row and column name."""


@dataclass
class Table:
    frame: "pd.DataFrame"
    """Columns are (kind, name): `run`, `config`, `metrics`, and beside a metric STATISTICS and DIFFERENCES."""
    notes: list[str] = field(default_factory=list)
    """How to read the numbers."""
    warnings: list[str] = field(default_factory=list)
    """What makes the comparison unsound."""
    levels: dict[str, str] = field(default_factory=dict)
    """The worst level (error, warning) of what the audit found, by run id."""
    unfit: dict[str, str] = field(default_factory=dict)
    """Why a run is never marked as best, by run id."""
    progress: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Step and total steps of unfinished runs, by run id."""
    target_fvu: float | None = None
    baseline: str | None = None
    """The run id of the row to which the differences are."""
    aggregated: list[str] = field(default_factory=list)
    """Keys whose runs are one row."""
    columns_chosen: bool = False
    """By name; every format shows all of them then."""
    pivot: Pivot | None = None
