"""Which cells of a table are marked: the best of a column, and those that reach a target."""

from analysis.metrics import TARGETS, Column, badness, direction
from analysis.tables.table import Table


def best_rows(table: Table, column: Column) -> set[int]:
    """Row numbers that hold the best value of a ranked metric among fit SAEs; none when all values are equal.

    In a pivot, where every column is of one metric, the best of all cells.
    """
    metric = metric_of(table, column)
    if metric is None or direction(metric) is None:
        return set()
    columns = [c for c in table.frame.columns if c[0] == "metrics"] if table.pivot else [column]
    scores: dict[tuple[int, Column], float] = {}
    for c in columns:
        unfit = unfit_rows(table, c)
        values = ((row, value) for row, value in enumerate(table.frame[c]) if value == value and row not in unfit)
        scores |= {(row, c): badness(metric, value) for row, value in values}
    best = min(scores.values(), default=None)
    cells = {cell for cell, score in scores.items() if score == best}
    return {row for row, c in cells if c == column} if len(cells) < len(scores) else set()


def reached_rows(table: Table, column: Column) -> set[int]:
    """Row numbers whose value reaches the metric's target, without dead or dense SAEs."""
    metric = metric_of(table, column)
    if metric not in TARGETS:
        return set()
    better, target = TARGETS[metric]
    beyond = (value < target if better == "lower" else value > target for value in table.frame[column])
    return {row for row, yes in enumerate(beyond) if yes} - unfit_rows(table, column)


def metric_of(table: Table, column: Column) -> str | None:
    """The metric that a column shows; None for other columns."""
    if column[0] != "metrics":
        return None
    return table.pivot.metric if table.pivot else column[1]


def unfit_rows(table: Table, column: Column) -> set[int]:
    """Row numbers of cells that are never marked."""
    if table.pivot:
        return {row for row, name in table.pivot.unfit if name == column[1]}
    if not table.unfit:
        return set()
    return {row for row, run_id in enumerate(table.frame["run", "run_id"]) if run_id in table.unfit}
