"""The view of a table for people, shared by all formats: columns, short headers in groups, cells, notes."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from analysis.columns import has_reported
from analysis.metrics import FIRST, REPORTED_FIRST, STATISTICS, TARGETS, Column, direction, group, short_name
from analysis.tables.marks import best_rows, reached_rows
from analysis.tables.table import Table
from analysis.text import cell, clean, interval, signed, with_spread

SHORT_KEYS = {"layer.index": "layer"}
"""Keys whose last component is a poor header -> the header."""

BESIDE = (*STATISTICS, "difference_low", "difference_high")
"""Columns that are shown within another's cells."""

BEST, REACHED, MARKS = "*", "✓", {"error": "!", "warning": "?"}
KEYS = 5
"""The number of differing keys from which titles come before them."""
MANY = 4
"""The most runs that a note names; beyond it the number of the others is given."""


@dataclass
class Shown:
    """One column of a View."""

    column: Column
    name: str
    """The header: short, one printable line."""
    group: str
    """The group header above it; empty for columns that identify the run."""
    words: list[str]
    best: set[int]
    reached: set[int]
    values: list[Any]
    """The values to sort by."""

    @cached_property
    def is_number(self) -> bool:
        return self.column[0] in ("metrics", "difference") or all(
            isinstance(value, int | float | None) for value in self.values
        )

    @property
    def higher_is_better(self) -> bool:
        return self.column[0] == "metrics" and direction(self.column[1]) == "higher"

    def marks(self, row: int, best: str = BEST, reached: str = REACHED) -> str:
        return (best if row in self.best else "") + (reached if row in self.reached else "")


@dataclass
class View:
    columns: list[Shown]
    marks: list[str]
    """Of each row: !, ? or nothing."""
    notes: list[str]
    """How to read the numbers."""
    warnings: list[str]

    @property
    def has_marks(self) -> bool:
        return any(self.marks)

    @property
    def has_titles(self) -> bool:
        return any(column.column == ("run", "title") for column in self.columns)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headers above the columns, each with the number of columns that it spans."""
        return [(name, len(list(own))) for name, own in groupby(column.group for column in self.columns)]

    @property
    def legend(self) -> list[str]:
        """What the marks in the cells and before the rows mean."""
        found = []
        if any(column.best for column in self.columns):
            found.append(f"{BEST} best in its column")
        if names := [name_of(column) for column in self.columns if column.reached]:
            signs = {"lower": "<", "higher": ">"}
            reached = ", ".join(f"{name} {signs[TARGETS[name][0]]} {TARGETS[name][1]}" for name in dict.fromkeys(names))
            found.append(f"{REACHED} target reached: {reached}")
        if any(self.marks):
            found.append(", ".join(f"{sign} {level}" for level, sign in MARKS.items() if sign in self.marks))
        return found

    def remarks(self, best: bool = True, left_out: Iterable[str] = ()) -> list[str]:
        """The lines below the table: the legend (`best`: with the mark of the best), notes and warnings."""
        legend = [line for line in self.legend if best or not line.startswith(BEST)]
        return [*legend, *left_out, *self.notes, *(f"warning: {warning}" for warning in self.warnings)]


def name_of(column: Shown) -> str:
    """The metric of a column; in a pivot all columns have the same one."""
    return column.group if column.column[1] not in TARGETS else column.column[1]


def view(table: Table) -> View:
    """The View of a table."""
    frame, columns = table.frame, shown_columns(table)
    names = labels([*columns, *(column for column in frame.columns if column[0] == "metrics")], short=True)
    shown = [
        Shown(
            column=column,
            name=clean(names[column]),
            group=clean(group_of(table, column)),
            words=cells(table, column),
            best=best_rows(table, column),
            reached=reached_rows(table, column),
            values=list(frame[column]),
        )
        for column in columns
    ]
    marks = [MARKS.get(table.levels.get(run_id, ""), "") for run_id in ([] if table.pivot else frame["run", "run_id"])]
    if table.pivot or set(marks) == {MARKS["warning"]}:  # the same for every run: the sentences below suffice
        marks = [""] * len(frame)
    notes = [*target_note(table, columns), *table.notes, *unfit_note(table, shown)]
    return View(shown, marks, notes, table.warnings)


def shown_columns(table: Table) -> list[Column]:
    """The chosen columns; by default run, differing keys, FIRST, and tokens and steps where they differ.

    Where a run is imported, also REPORTED_FIRST. Where KEYS keys or more differ, titles take their place, if no two are
    alike: the keys come last.
    """
    frame = table.frame
    present = [column for column in frame.columns if column[0] not in BESIDE and column != ("run", "runs")]
    if table.columns_chosen or table.pivot:
        return present
    n_keys, titles = sum(kind == "config" for kind, _ in present), list(frame["run", "title"])
    has_titles = all(isinstance(title, str) for title in titles) and len(set(titles)) == len(titles)
    titled = (n_keys >= KEYS and has_titles) or (not n_keys and any(isinstance(title, str) for title in titles))
    main = (*REPORTED_FIRST, *FIRST) if has_reported(frame) else FIRST

    def shown(column: Column) -> bool:
        kind, name = column
        if kind == "run":
            if name == "state":
                return set(frame[column]) != {"completed"}
            return name in ("run_id", "source") or (name == "title" and titled)
        if kind == "difference":
            return name in FIRST and direction(name) is not None
        differs = name in ("tokens", "steps") and frame[column].nunique() > 1
        return kind == "config" or name in main or differs

    return sorted(filter(shown, present), key=lambda column: titled and column[0] == "config")


def group_of(table: Table, column: Column) -> str:
    kind, name = column
    if table.pivot:
        return table.pivot.metric if kind == "metrics" else ""
    return {"run": "", "config": "config"}.get(kind) or ("" if kind == "run" else group(name))


def labels(columns: Iterable[Column], short: bool = False) -> dict[Column, str]:
    """Unique headers: a dotted key's last component, or as many as no other column ends in.

    Args:
        short: use short names of metrics, for people, instead of their full names, for programs.
    """
    columns = list(dict.fromkeys(columns))
    result = {column: column[1] for column in columns}
    runs = {name for kind, name in columns if kind == "run"}
    folded = any(kind == "std" for kind, _ in columns)
    shorts = [short_name(name) for kind, name in columns if kind == "metrics"]
    for kind, name in columns:
        if kind == "metrics":
            brief = short_name(name)
            result[kind, name] = brief if short and shorts.count(brief) == 1 and brief not in runs else name
            if folded and not short:
                result[kind, name] = f"{name}_mean"
            elif name in runs:
                result[kind, name] = f"metrics.{name}"
        elif kind in STATISTICS or kind.startswith("difference"):
            result[kind, name] = f"Δ{short_name(name)}" if short else f"{name}_{kind}"
    taken = {result[column] for column in columns if column[0] != "config"}
    keys = {column: SHORT_KEYS.get(column[1], column[1]).split(".") for column in columns if column[0] == "config"}
    for column, parts in keys.items():
        ends = (parts[-n:] for n in range(1, len(parts) + 1))
        others = [other for key, other in keys.items() if key != column]
        # a whole name is no other key's even where other keys end in it
        names = (
            ".".join(end)
            for end in ends
            if not any((other if end == parts else other[-len(end) :]) == end for other in others)
        )
        result[column] = next((name for name in names if name not in taken), f"config.{column[1]}")
    return result


def cells(table: Table, column: Column) -> list[str]:
    """A column's values as short text; with spread, number and interval where rows are aggregated."""
    (kind, name), frame = column, table.frame
    values = list(frame[column])
    if column == ("run", "state"):
        return [
            progress(state, *table.progress.get(run, (None, None)))
            for run, state in zip(frame["run", "run_id"], values, strict=True)
        ]
    if column == ("run", "run_id") and ("run", "runs") in frame.columns:
        more = [len(runs) - 1 for runs in frame["run", "runs"]]
        return [clean(value) + (f" +{n}" if n else "") for value, n in zip(values, more, strict=True)]
    if kind == "difference":
        bounds = [("difference_low", name), ("difference_high", name)]
        if bounds[0] not in frame.columns:
            return [signed(value) for value in values]
        return [interval(*row) for row in zip(values, *(frame[bound] for bound in bounds), strict=True)]
    if kind != "metrics":
        return ["" if kind == "run" and value is None else cell(value, "config") for value in values]
    if ("std", name) in frame.columns and name not in ("tokens", "steps") and any(frame["n", name] > 1):
        return [with_spread(*row) for row in zip(values, frame["std", name], frame["n", name], strict=True)]
    whole = all(value != value or value == int(value) for value in values)
    return [cell(value, "whole" if whole else "number") for value in values]


def target_note(table: Table, columns: Iterable[Column]) -> list[str]:
    """The target of the convergence columns (*_to_fvu), where any is shown."""
    names = [name for kind, name in columns if kind == "metrics" and name.endswith("_to_fvu")]
    return [f"{', '.join(names)}: to a held-out fvu of {table.target_fvu:.4g}"] if names else []


def unfit_note(table: Table, shown: Iterable[Shown]) -> list[str]:
    """The rows that are never marked best, with reasons; empty where no metric is shown."""
    of_cells = table.pivot.unfit if table.pivot else {}
    reasons = [*table.unfit.items(), *((name, why) for (_, name), why in of_cells.items())]
    if not reasons or not any(column.column[0] == "metrics" for column in shown):
        return []
    more = f" and {len(reasons) - MANY} more" if len(reasons) > MANY else ""
    return [f"never marked best: {', '.join(f'{clean(name)} ({why})' for name, why in reasons[:MANY])}{more}"]


def progress(state: str, step: float | None, total_steps: float | None) -> str:
    """The state, with the percentage of steps done for an unfinished run."""
    return f"{state} at {100 * step / total_steps:.0f}%" if state != "completed" and step and total_steps else state
