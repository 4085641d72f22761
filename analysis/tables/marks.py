"""Which cells of a table are marked: the best of a column, and those that reach a target."""

from typing import TYPE_CHECKING

from analysis.metrics import TARGETS, Column, badness, direction

if TYPE_CHECKING:
    import pandas as pd


def best_rows(frame: "pd.DataFrame", column: Column) -> set[int]:
    """Row numbers that hold the best value of a ranked metric among fit SAEs; none when all values are equal.

    In a pivot, where every column is of one metric, the best of all cells.
    """
    kind, name = column
    metric = frame.attrs.get("pivot", name)
    if kind != "metrics" or direction(metric) is None:
        return set()
    columns = [c for c in frame.columns if c[0] == "metrics"] if "pivot" in frame.attrs else [column]
    scores: dict[tuple[int, Column], float] = {}
    for c in columns:
        unfit = unfit_rows(frame, c)
        values = ((row, value) for row, value in enumerate(frame[c]) if value == value and row not in unfit)
        scores |= {(row, c): badness(metric, value) for row, value in values}
    best = min(scores.values(), default=None)
    cells = {cell for cell, score in scores.items() if score == best}
    return {row for row, c in cells if c == column} if len(cells) < len(scores) else set()


def reached_rows(frame: "pd.DataFrame", column: Column) -> set[int]:
    """Row numbers whose value is beyond the metric's target, of fit SAEs only."""
    kind, name = column
    metric = frame.attrs.get("pivot", name)
    if kind != "metrics" or metric not in TARGETS:
        return set()
    better, target = TARGETS[metric]
    beyond = (value < target if better == "lower" else value > target for value in frame[column])
    return {row for row, yes in enumerate(beyond) if yes} - unfit_rows(frame, column)


def unfit_rows(frame: "pd.DataFrame", column: Column) -> set[int]:
    """Row numbers of SAEs that must not be praised: `frame.attrs["unfit"]` has reasons by run id (pivot: by cell)."""
    reasons = frame.attrs.get("unfit", {})
    if "pivot" in frame.attrs:
        return {row for row, name in reasons if name == column[1]}
    return {row for row, run_id in enumerate(frame["run", "run_id"]) if run_id in reasons} if reasons else set()
