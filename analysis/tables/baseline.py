"""The baseline row of a table, and the differences of the other rows to it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import differing, of_kind
from analysis.metrics import BUDGETS, DIFFERENCES
from analysis.tables.aggregate import CONFIDENCE
from analysis.tables.table import Table
from analysis.tables.where import Where
from analysis.text import clean
from sae_sweeps.errors import ConfigError


def against_baseline(table: Table, full: pd.DataFrame, members: list[list[int]], text: str) -> Table:
    """The table with the differences to a row.

    Args:
        full: all runs, whose columns a filter may name.
        members: of each row its runs, as row numbers of `full`.
        text: a run id, its beginning, or a filter.
    """
    row = baseline_row(full, members, text)
    note = f"differences to {described(table.frame, row)}" + (", with 95 % intervals (Welch)" * bool(table.aggregated))
    frame = with_differences(table.frame, row)
    return replace(table, frame=frame, baseline=frame["run", "run_id"].iloc[row], notes=[*table.notes, note])


def with_differences(frame: pd.DataFrame, row: int) -> pd.DataFrame:
    """The frame with each metric's difference to that of `row`, the baseline, which has none itself.

    Where runs are aggregated, `difference_low` and `difference_high` bound it with 95 % confidence by Welch's t of two
    means with unequal variances (degrees of freedom by Welch and Satterthwaite); nan where either is of a single run.
    """
    metrics = [column for column in of_kind(frame, "metrics") if column[1] not in BUDGETS]
    if not metrics:
        return frame
    names = [name for _, name in metrics]
    mean = frame[metrics].to_numpy(dtype="float64")
    difference = mean - mean[row]
    difference[row] = np.nan
    parts = {"difference": difference}
    if ("std", names[0]) in frame.columns:
        std, n = (frame[[(kind, name) for name in names]].to_numpy(dtype="float64") for kind in ("std", "n"))
        half = reach(std, n, std[row], n[row])
        parts |= {"difference_low": difference - half, "difference_high": difference + half}
    columns = [(kind, name) for name in names for kind in DIFFERENCES if kind in parts]
    table = np.stack([parts[kind][:, names.index(name)] for kind, name in columns], axis=1)
    added = pd.DataFrame(table, index=frame.index, columns=pd.MultiIndex.from_tuples(columns))
    return pd.concat([frame, added], axis=1)


def reach(std: Any, n: Any, base_std: Any, base_n: Any) -> Any:
    """Half of the 95 % interval of the difference of two means, element by element; nan where either is of one run."""
    from scipy.special import stdtrit

    with np.errstate(divide="ignore", invalid="ignore"):
        error, of_base = std**2 / n, base_std**2 / base_n
        both = error + of_base
        freedom = both**2 / (error**2 / (n - 1) + of_base**2 / (base_n - 1))
        return np.where(both == 0, 0.0, stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(both))


def baseline_row(full: pd.DataFrame, members: list[list[int]], text: str) -> int:
    """The row for a run id (or its beginning) or a filter. Raises ConfigError unless it is exactly one."""
    run_ids = list(full["run", "run_id"])
    meant = {row for row, run_id in enumerate(run_ids) if run_id == text} or {
        row for row, run_id in enumerate(run_ids) if len(text) >= 4 and run_id.startswith(text)
    }
    if not meant:
        if not set("=<>~ ") & set(text):
            raise ConfigError(f"--baseline {clean(text)}: no run here has that id; name one, or write as in 'k = 32'.")
        try:
            meant = {row for row, yes in enumerate(Where(text, full).rows()) if yes}
        except ConfigError as error:
            raise ConfigError(str(error).replace("--where", "--baseline", 1)) from None
    rows = [number for number, runs in enumerate(members) if meant & set(runs)]
    if len(rows) != 1:
        what = f"{len(rows)} rows match" if rows else "no run matches"
        raise ConfigError(f"--baseline {clean(text)!r}: {what}; name one row, or --aggregate what they differ in.")
    return rows[0]


def described(frame: pd.DataFrame, row: int) -> str:
    """A row by its run id and its values of the keys that differ."""
    keys = ((name.rpartition(".")[2], frame[kind, name].iloc[row]) for kind, name in differing(frame))
    values = ", ".join(f"{key} {clean(value)}" for key, value in keys if value is not None and value == value)
    return clean(frame["run", "run_id"].iloc[row]) + (f" ({clean(values, 100)})" if values else "")
