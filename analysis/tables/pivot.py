"""One metric by the values of two keys."""

from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.columns import differing, find_column, identity, sort_key
from analysis.metrics import BUDGETS, STATISTICS, Column
from analysis.tables.aggregate import budget_of, labels_of, objects, statistics
from analysis.tables.table import Pivot, Table
from analysis.text import cell, clean
from sae_sweeps.errors import ConfigError

Cells = dict[tuple[int, str], list[int]]
"""The runs of each cell, as row numbers, by the cell's row and its column's name."""


def pivoted(table: Table, rows: str, columns: str, value: str) -> Table:
    """`value`, a metric, by two keys: a row for each value of one, a column for each of the other, runs averaged.

    The row key is under `config`, the cells are metrics named `key=value` with STATISTICS beside them. Raises
    ConfigError where runs of unequal tokens or steps would share a cell, or none has the metric.
    """
    full = table.frame
    down, across, metric = find_column(full, rows), find_column(full, columns), find_column(full, value)
    if metric[0] != "metrics":
        raise ConfigError(f"--pivot ... {clean(value)}: that is no metric; name one, such as fvu.")
    if down == across:
        raise ConfigError(f"--pivot {clean(rows)} {clean(columns)}: rows and columns are the same key; name two.")
    measured = full[full[metric].notna()].reset_index(drop=True)
    if not len(measured):
        raise ConfigError(f"--pivot ... {clean(value)}: no run has it; name a metric that was measured.")
    lines, names = places(list(measured[down])), places(list(measured[across]))
    name_of = dict(zip(names, unique_names(across[1], list(names.values())), strict=True))
    cells: Cells = {}
    for run, (line, name) in enumerate(zip(measured[down], measured[across], strict=True)):
        cells.setdefault((list(lines).index(identity(line)), name_of[identity(name)]), []).append(run)
    check_budgets(measured, cells)
    notes = [f"{clean(value)} by {clean(rows)} and {clean(columns)}"]
    if any(len(runs) > 1 for runs in cells.values()):
        differ = ", ".join(clean(key) for key in averaged(measured, cells) if key not in (down[1], across[1]))
        notes.append("mean ± standard deviation (runs)" + (f" of runs that differ in {differ}" if differ else ""))
    ids = list(measured["run", "run_id"])
    unfit = {at: why for at, runs in cells.items() for run in runs if (why := table.unfit.get(ids[run]))}

    by_cell = statistics(measured[[metric]], labels_of(cells.values(), len(measured)))
    contents = {down_column(down): objects(list(lines.values()))}
    for name in name_of.values():
        for kind in ("metrics", *STATISTICS):
            found = {line: by_cell[kind, metric[1]].iloc[n] for n, (line, own) in enumerate(cells) if own == name}
            empty = 0 if kind == "n" else float("nan")
            contents[kind, name] = [found.get(line, empty) for line in range(len(lines))]
    frame = pd.DataFrame(contents)
    return replace(table, frame=frame, notes=notes, levels={}, unfit={}, pivot=Pivot(metric[1], across[1], unfit))


def averaged(measured: pd.DataFrame, cells: Cells) -> list[str]:
    """The keys in which runs of one cell differ."""
    found = (differing(measured.iloc[runs]) for runs in cells.values() if len(runs) > 1)
    return list(dict.fromkeys(key for columns in found for _, key in columns))


def check_budgets(measured: pd.DataFrame, cells: Cells) -> None:
    """Raises ConfigError where runs of one cell differ in tokens or steps."""
    for budget in BUDGETS:
        amounts = budget_of(measured, budget)
        for (_, name), runs in cells.items():
            if len({amounts[run] for run in runs}) > 1:
                raise ConfigError(
                    f"--pivot: runs under {clean(name)} differ in {budget}; take some of them out with --where, or "
                    f"use {BUDGETS[budget]} as a key."
                )


def down_column(column: Column) -> Column:
    return ("config", column[1]) if column[0] == "metrics" else column


def places(values: list[Any]) -> dict[Any, Any]:
    """The distinct values, sorted, by identity."""
    distinct = {identity(value): value for value in values}
    listed = list(distinct.items())
    by_size = sort_key([value for _, value in listed])
    return dict(listed[number] for number in sorted(range(len(listed)), key=by_size))


def unique_names(key: str, values: list[Any]) -> list[str]:
    """`k=32` for each value of a key; with the full key where two columns would have one name."""
    head = key.rpartition(".")[2]
    names = [f"{head}={cell(value, 'config')}" for value in values]
    return [f"{head}={value!r}" if names.count(name) > 1 else name for name, value in zip(names, values, strict=True)]
