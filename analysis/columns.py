"""Finds the columns that a user names, and the columns in which runs differ."""

from collections.abc import Callable, Hashable, Iterable
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from analysis.metrics import FIRST, REPORTED_FIRST, Column, badness, short_name
from analysis.reading.names import COLUMN_NAMES
from analysis.text import clean
from sae_sweeps.errors import ConfigError, did_you_mean

UNSHOWN = (
    "outputs", "device", "title", "description", "dry_run", "logger", "cluster", "activations", "tags", "variants",
    "arms",
)  # fmt: skip
"""Keys and groups of where and how a run was made, which tables do not show."""

IDENTITY = ("model", "data")
"""Groups whose other keys are left out where their name differs, since they follow from it."""


def of_kind(frame: pd.DataFrame, kind: str) -> list[Column]:
    return [column for column in frame.columns if column[0] == kind]


def last_part(column: tuple[Any, str]) -> str:
    return column[1].rpartition(".")[2]


def identity(value: Any) -> Hashable:
    """The identity of a cell for comparisons: true differs from 1, an absent key from a null one."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, list | dict):
        return str(value)
    return ("absent",) if value != value else value


def varies(values: Iterable[Any]) -> bool:
    """A fast test whether a column may hold more than one value (1 and 1.0 count as two)."""
    values = list(values)
    try:
        return len(set(values)) > 1 or len(set(map(type, values))) > 1
    except TypeError:  # lists
        return True


def differing(full: pd.DataFrame) -> list[Column]:
    """The config keys that take more than one value among the runs that have them."""
    found: list[Column] = []
    keys = of_kind(full, "config")
    for column, values in zip(keys, full[keys].to_numpy().T if keys else [], strict=True):
        head, _, rest = column[1].partition(".")
        follows = head in IDENTITY and rest and ("config", head) in found
        if last_part(column) == "_digest_":  # of code from outside; shown where choices of one name differ in it
            owner = column[1].rpartition(".")[0]
            follows = any(("config", name) in found for name in (owner, f"{owner}.name"))
        if head in UNSHOWN or follows or not varies(values):
            continue
        if len({identity(value) for value in values} - {("absent",)}) < 2:
            continue
        if not any(last_part(f) == last_part(column) and full[f].equals(full[column]) for f in found):
            found.append(column)
    return found


def has_reported(full: pd.DataFrame) -> bool:
    """Whether a run is imported."""
    return ("run", "source") in full.columns and set(full["run", "source"]) != {"run"}


def ordered_metrics(full: pd.DataFrame) -> list[Column]:
    """All metrics: those of REPORTED_FIRST where a run is imported, those of FIRST, then the others."""
    metrics = dict.fromkeys(of_kind(full, "metrics"))
    names = (*REPORTED_FIRST, *FIRST) if has_reported(full) else FIRST
    first = [("metrics", name) for name in names if ("metrics", name) in metrics]
    return list(dict.fromkeys([*first, *metrics]))


def find_columns(full: pd.DataFrame, word: str) -> list[Column]:
    """The columns for a user's word: a full name, a key's last components, a name of COLUMN_NAMES, a short name, or a
    pattern with `*`.

    Of several keys with these last components the least nested ones count, of equal columns the first.
    """
    columns = [column for kind in ("run", "metrics", "config") for column in of_kind(full, kind)]
    named = "layer.index" if word == "layer" else word
    if exact := [column for column in columns if column[1] == named]:
        return exact[:1]
    if ends := [c for c in columns if c[1].endswith(f".{word}")]:
        depth = min(name.count(".") for _, name in ends)
        return distinct(full, [column for column in ends if column[1].count(".") == depth])
    if (other := COLUMN_NAMES.get(word, word)) != word:
        try:
            return find_columns(full, other)
        except ConfigError:
            raise ConfigError(f"no run has a column {clean(word)!r}: it is {other}, which none has.") from None
    tests: tuple[Callable[[Column], bool], ...] = (
        lambda column: column[0] == "metrics" and short_name(column[1]) == word,
        lambda column: fnmatchcase(column[1], word),
    )
    for test in tests:
        if found := [column for column in columns if test(column)]:
            return found
    if word in ("tokens_to_fvu", "seconds_to_fvu"):
        raise ConfigError(f"no run has {word} here; give --target-fvu X, for the runs' common target is not known yet.")
    parts = [part for _, name in columns for part in (name, last_part((_, name)))]
    hint = did_you_mean(word, [*map(clean, parts), *COLUMN_NAMES], "`--format csv` lists the names.")
    raise ConfigError(f"no run has a column {clean(word)!r}; {hint}")


def find_column(full: pd.DataFrame, word: str) -> Column:
    """The one column for a user's word. Raises ConfigError where there are several."""
    found = find_columns(full, word)
    if len(found) > 1:
        names = " or ".join(clean(name) for _, name in found[:4]) + (" ..." if len(found) > 4 else "")
        raise ConfigError(f"{clean(word)!r} names {len(found)} columns; write {names}.")
    return found[0]


def distinct(full: pd.DataFrame, columns: Iterable[Column]) -> list[Column]:
    """The columns without copies: those equal in every cell to an earlier one."""
    found: list[Column] = []
    for column in columns:
        if not any(full[column].equals(full[earlier]) for earlier in found):
            found.append(column)
    return found


def sort_key(values: list[Any], metric: str | None = None) -> Callable[[int], tuple]:
    """Orders row numbers: numbers by size (a ranked metric's best first), then words, then empty cells."""

    def key(row: int) -> tuple:
        value = values[row]
        if value is None or value != value:
            return (2, 0, "")
        if isinstance(value, int | float):
            return (0, badness(metric, value) if metric else value, "")
        return (1, 0, str(value))

    return key


def order(full: pd.DataFrame, word: str) -> list[int]:
    """Row numbers sorted by a column; `-word` reverses the order, empty cells are last in both."""
    turned = word.startswith("-")
    column = find_column(full, word.removeprefix("-"))
    values = list(full[column])
    rows = sorted(range(len(values)), key=sort_key(values, column[1] if column[0] == "metrics" else None))
    if not turned:
        return rows
    filled = [row for row in rows if values[row] is not None and values[row] == values[row]]
    return filled[::-1] + rows[len(filled) :]
