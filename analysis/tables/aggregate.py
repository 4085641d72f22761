"""Aggregates runs that differ only in given keys to one row: mean, std and n."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import UNSHOWN, find_column, identity, of_kind, varies
from analysis.metrics import BUDGETS, Column
from analysis.reading.configs import flat_config
from analysis.reading.record import ABSENT
from analysis.tables.table import Table
from analysis.text import clean
from sae_sweeps.config.identity import LEFT_OUT
from sae_sweeps.config.schema import RootConfig
from sae_sweeps.errors import ConfigError

CONFIDENCE = 0.95

CHOSEN = (("config", "eval"), ("config", "eval.evaluations"))
"""Which evaluations a run has, for which it has metrics; how they measured is in other keys of `eval`."""


def aggregated(table: Table, words: Sequence[str]) -> tuple[Table, list[list[int]]]:
    """The table of runs with those as one row that differ in the named keys alone; each row's runs as row numbers.

    `metrics` holds their mean, with STATISTICS beside it. Runs that differ in any other key of what was trained or of
    how it was measured, in tokens or in steps are rows of their own; so are unfinished runs and runs without the keys.
    Rows are in the order of their first run, to which levels and reasons of its other runs go. Raises ConfigError for
    what is no config key.
    """
    full = table.frame
    keys = [find_column(full, word) for word in words]
    for word, (kind, _) in zip(words, keys, strict=True):
        if kind != "config":
            raise ConfigError(f"--aggregate {clean(word)}: that is no config key; name one, such as seed.")
    members = members_of(full, keys)
    frame = aggregated_frame(full, keys, members)
    names = ", ".join(clean(word) for word in words)
    warnings = [*table.warnings, *repeated(full, keys, members)]
    if len(members) == len(full) > 1:
        warnings.append(f"nothing is aggregated: no two completed runs differ in {names} alone.")
    note = f"mean ± standard deviation (runs) over {names}; 95 % intervals: --format csv, json"
    return replace(
        table,
        frame=frame,
        notes=[*table.notes, note],
        warnings=warnings,
        levels=of_rows(frame, table.levels),
        unfit=of_rows(frame, table.unfit),
        aggregated=[name for _, name in keys],
    ), members


def of_rows(frame: pd.DataFrame, of_runs: dict[str, str]) -> dict[str, str]:
    """A level or reason for the first run of each row: `error` if any of its runs has it, else that of its first."""
    found = {}
    for first, runs in zip(frame["run", "run_id"], frame["run", "runs"], strict=True):
        if own := [of_runs[run] for run in runs if run in of_runs]:
            found[first] = "error" if "error" in own else own[0]
    return found


def members_of(full: pd.DataFrame, keys: Sequence[Column]) -> list[list[int]]:
    """The row numbers of the runs of each aggregate."""
    signatures = signatures_of(full, keys)
    present = [all(identity(value) != ("absent",) for value in row) for row in full[list(keys)].to_numpy()]
    together: dict[Any, list[int]] = {}
    for row, (state, signature) in enumerate(zip(full["run", "state"], signatures, strict=True)):
        mergeable = state == "completed" and present[row]
        together.setdefault(signature if mergeable else ("single", row), []).append(row)
    return list(together.values())


def aggregated_frame(full: pd.DataFrame, keys: Sequence[Column], members: list[list[int]]) -> pd.DataFrame:
    first = full.iloc[[rows[0] for rows in members]].reset_index(drop=True)
    mixed = [c for c in CHOSEN if c in full and any(varies(map(identity, full[c].iloc[rows])) for rows in members)]
    kept = [column for column in first.columns if column[0] != "metrics" and column not in (*keys, *mixed)]
    head = first[kept].copy()
    ids, titles, warnings = (list(full["run", name]) for name in ("run_id", "title", "warnings"))
    common = [{without(titles[row], keys) for row in rows} for rows in members]
    head["run", "title"] = objects([found.pop() if len(found) == 1 else None for found in common])
    head["run", "runs"] = objects([[ids[row] for row in rows] for rows in members])
    head["run", "warnings"] = objects(
        [list(dict.fromkeys(w for row in rows for w in warnings[row])) for rows in members]
    )
    labels = labels_of(members, len(full))
    return pd.concat([head, statistics(full[of_kind(full, "metrics")], labels)], axis=1)


def without(title: str | None, keys: Sequence[Column]) -> str | None:
    """The title without its words for `keys`, such as `seed=1`, in which the runs of a row differ."""
    names = "|".join(re.escape(name) for _, name in keys)
    return re.sub(rf"\s*(?<!\S)(?:{names})=\S+", "", title).strip() if title else title


def signatures_of(full: pd.DataFrame, keys: Sequence[Column]) -> list[tuple]:
    """For each run its config without `keys`, tokens, steps and source, as far as runs differ in them."""
    own = [c for c in of_kind(full, "config") if c not in (*keys, *CHOSEN) and c[1].partition(".")[0] not in UNSHOWN]
    is_run = [source == "run" for source in full["run", "source"]]
    found = zip(own, full[own].to_numpy().T if own else [], strict=True)
    columns = [with_usual(key, values, is_run) for (_, key), values in found if varies(values)]
    columns += [budget_of(full, metric) for metric in BUDGETS]
    columns.append([identity(value) for value in full["run", "source"]])
    varied = [column for column in columns if len(set(column)) > 1]
    return list(zip(*varied, strict=True)) if varied else [()] * len(full)


def with_usual(key: str, values: Iterable[Any], is_run: Sequence[bool]) -> list[Any]:
    """The identity of each value of a config key. A run from before the key was added has the key's default there, or,
    where it is no part of a run's id, whatever the others have."""
    found = [identity(value) for value in values]
    others = [value for value in found if value != ("absent",)]
    usual = others[0] if key in LEFT_OUT else identity(usual_values().get(key, ABSENT))
    return [usual if own and value == ("absent",) else value for value, own in zip(found, is_run, strict=True)]


@cache
def usual_values() -> dict[str, Any]:
    """The defaults of the groups whose choices have the same keys."""
    return flat_config({group: value for group, value in vars(RootConfig()).items() if isinstance(value, dict)})


def budget_of(full: pd.DataFrame, metric: str) -> list[Any]:
    """Each run's tokens or steps, as trained where that is recorded, as configured otherwise; None where unknown."""
    stand_in = BUDGETS[metric]
    places = [c for c in (("metrics", metric), ("config", stand_in), ("run", stand_in)) if c in full.columns]
    rows = zip(*(full[column] for column in places), strict=True)
    return [next((v for v in row if isinstance(v, int | float) and v == v), None) for row in rows]


def labels_of(members: Iterable[Sequence[int]], count: int) -> list[int]:
    """For each of `count` runs the number of its group."""
    labels = [0] * count
    for number, rows in enumerate(members):
        for row in rows:
            labels[row] = number
    return labels


def statistics(metrics: pd.DataFrame, labels: list[int]) -> pd.DataFrame:
    """Mean, standard deviation (n - 1), n and Student's 95 % confidence interval of the mean, by label and metric."""
    from scipy.special import stdtrit

    names = [name for _, name in metrics.columns]
    groups = metrics.set_axis(range(len(names)), axis=1).groupby(np.array(labels))
    mean, std, n = groups.mean(), groups.std(ddof=1), groups.count()
    reach = stdtrit((n - 1).where(n > 1), (1 + CONFIDENCE) / 2) * std / n**0.5
    parts = {"metrics": mean, "std": std, "n": n, "ci_low": mean - reach, "ci_high": mean + reach}
    places = [(kind, number) for number in range(len(names)) for kind in parts]
    result = pd.concat(parts, axis=1)[places] if places else pd.DataFrame(index=range(len(groups)))
    columns = [(kind, names[number]) for kind, number in places]
    result.columns = pd.MultiIndex.from_tuples(columns) if columns else pd.MultiIndex.from_arrays([[], []])
    return result.reset_index(drop=True)


def repeated(full: pd.DataFrame, keys: Sequence[Column], members: Sequence[Sequence[int]]) -> list[str]:
    """A sentence for each row that has runs of equal keys, which are no repetitions."""
    found = []
    values = [tuple(map(identity, row)) for row in full[list(keys)].to_numpy()]
    ids, names = list(full["run", "run_id"]), ", ".join(clean(key) for _, key in keys)
    for rows in members:
        if len({values[row] for row in rows}) < len(rows):
            who = ", ".join(ids[row] for row in rows[:3]) + (" ..." if len(rows) > 3 else "")
            found.append(f"{who}: aggregated runs of equal {names}, so their spread and interval are too small.")
    return found


def objects(values: list[Any]) -> pd.Series:
    """A column that keeps None and lists as they are."""
    return pd.Series(values, dtype="object")
