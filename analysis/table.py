"""The comparison table: one row per run, the config keys that differ, then the metrics."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.convergence import with_convergence
from analysis.formats import FORMATS, render
from analysis.metrics import FIRST, Column, badness
from analysis.records import records
from analysis.text import clean
from sae_sweeps.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "render", "table"]

RUN_COLUMNS = ("run_id", "title", "state", "step", "total_steps")

UNSHOWN = ("outputs", "device", "title", "dry_run", "logger", "cluster", "activations")
"""Keys and groups that say where and how a run was made, not what it is."""

IDENTITY = ("model", "data")
"""Groups whose keys follow from their name, once the name differs."""

BUDGETS = {"tokens": "num_tokens", "steps": "total_steps"}
"""Metrics that have to agree among compared runs, each with the config key or run field for records without it."""


def table(
    paths: Iterable[str | Path],
    sort: str | None = None,
    columns: list[str] | None = None,
    target_fvu: float | None = None,
) -> "pd.DataFrame":
    """One row per run of the paths (see `records`), with columns under `run`, `config` and `metrics`.

    Args:
        sort: a column; best first where the metric has a direction, ascending otherwise, empty cells last.
        columns: names or patterns to show after run_id; by default the differing keys and all metrics.
        target_fvu: the held-out fvu of tokens_to_fvu and seconds_to_fvu; by default the largest final one of the runs.

    `frame.attrs["warnings"]` says in words what makes the comparison unsound.
    Raises DataError and DamagedFile as `records` does, ConfigError for a column that no run has.
    """
    full, target = with_convergence(records(paths), target_fvu)
    if sort is not None:
        full = full.iloc[sorted(range(len(full)), key=sort_key(full, find_columns(full, sort)[0]))]
    if columns is None:
        imported = [("run", "source")] if full["run", "source"].notna().any() else []
        shown = [*(("run", name) for name in RUN_COLUMNS), *imported, *differing(full), *ordered_metrics(full)]
    else:
        chosen = [column for word in columns for column in find_columns(full, word)]
        shown = list(dict.fromkeys([("run", "run_id"), *chosen]))
    frame = full[shown].reset_index(drop=True)
    frame.attrs = {"warnings": warnings_of(full), "chosen": columns is not None, "target_fvu": target}
    return frame


def differing(full: "pd.DataFrame") -> list[Column]:
    """The config keys that take more than one value among the runs that have them."""
    found: list[Column] = []
    for column in of_kind(full, "config"):
        head, _, rest = column[1].partition(".")
        values = {(isinstance(value, bool), value) for value in full[column] if value == value}
        follows = head in IDENTITY and rest and ("config", head) in found
        if head in UNSHOWN or follows or len(values) < 2:
            continue
        twins = (f for f in found if last_part(f) == last_part(column) and full[f].equals(full[column]))
        if next(twins, None) is None:
            found.append(column)
    return found


def ordered_metrics(full: "pd.DataFrame") -> list[Column]:
    """All metrics, those of FIRST first."""
    metrics = of_kind(full, "metrics")
    first = [("metrics", name) for name in FIRST if ("metrics", name) in metrics]
    return first + [column for column in metrics if column not in first]


def find_columns(full: "pd.DataFrame", word: str) -> list[Column]:
    """The columns that a word names: exactly, by the last components of a key, or as a pattern with `*`."""
    columns = [column for kind in ("run", "metrics", "config") for column in of_kind(full, kind)]
    tests: tuple[Callable[[str], bool], ...] = (
        lambda name: name == word,
        lambda name: name.endswith(f".{word}") or (word, name) == ("layer", "layer.index"),
        lambda name: fnmatchcase(name, word),
    )
    for test in tests:
        if found := [column for column in columns if test(column[1])]:
            return found if test is tests[-1] else found[:1]
    near = difflib.get_close_matches(word, [part for _, name in columns for part in (name, last_part((_, name)))], n=1)
    hint = f"did you mean {near[0]}?" if near else "`--format csv` lists the names."
    raise ConfigError(f"no run has a column {clean(word)!r}; {hint}")


def sort_key(full: "pd.DataFrame", column: Column) -> Callable[[int], tuple]:
    """Orders row numbers: numbers by size (ranked metrics best first), then words, then empty cells."""
    values = list(full[column])

    def key(row: int) -> tuple:
        value = values[row]
        if value is None or value != value:
            return (2, 0, "")
        if isinstance(value, int | float):
            return (0, badness(column[1], value) if column[0] == "metrics" else value, "")
        return (1, 0, str(value))

    return key


def warnings_of(full: "pd.DataFrame") -> list[str]:
    """What makes the comparison unsound or a row empty, and what the runs themselves warn of; a sentence each."""
    found = []
    for metric, stand_in in BUDGETS.items():
        values = budgets(full[full["run", "state"] == "completed"], metric, stand_in)
        if len(set(values)) > 1:
            found.append(f"{metric} differ from {min(values):,.0f} to {max(values):,.0f}, so the runs do not compare.")
    states = Counter(state for state in full["run", "state"] if state != "completed")
    if states:
        what = ", ".join(f"{count} {state}" for state, count in states.items())
        found.append(f"no results of {sum(states.values())} of {len(full)} runs ({what}).")
    said: dict[str, list[str]] = {}
    for run_id, state, error, own in zip(
        *(full["run", f] for f in ("run_id", "state", "error", "warnings")), strict=True
    ):
        if error and state != "completed":
            found.append(f"{run_id} {state}: {error}")
        for warning in own:
            said.setdefault(warning, []).append(run_id)
    for warning, runs in said.items():
        who = "every run" if len(runs) == len(full) > 1 else ", ".join(runs[:3]) + (" ..." if len(runs) > 3 else "")
        found.append(f"{who}: {warning}")
    return [clean(sentence, 400) for sentence in found]


def budgets(complete: "pd.DataFrame", metric: str, stand_in: str) -> list[float]:
    """Each run's tokens or steps, as trained where that is recorded, as configured otherwise."""
    places = [c for c in (("metrics", metric), ("config", stand_in), ("run", stand_in)) if c in complete.columns]
    rows = zip(*(complete[column] for column in places), strict=True)
    known = ([value for value in row if isinstance(value, int | float) and value == value] for row in rows)
    return [values[0] for values in known if values]


def of_kind(frame: "pd.DataFrame", kind: str) -> list[Column]:
    return [column for column in frame.columns if column[0] == kind]


def last_part(column: tuple[Any, str]) -> str:
    return column[1].rpartition(".")[2]
