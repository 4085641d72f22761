"""The comparison table: one row per run, or per fold of runs; the config keys that differ, then the metrics."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.auditing.audit import audit, varied_by
from analysis.auditing.printing import marks, sentences
from analysis.columns import differing, find_column, find_columns, order, ordered_metrics
from analysis.metrics import DIFFERENCES, STATISTICS, Column, unfitness
from analysis.reading.convergence import with_convergence
from analysis.reading.records import records
from analysis.tables.aggregate import fold, repeated
from analysis.tables.baseline import baseline_row, described, with_differences
from analysis.tables.pivot import pivot
from analysis.tables.where import select
from analysis.text import clean
from sae_sweeps.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

RUN_COLUMNS = ("run_id", "runs", "title", "state", "step", "total_steps")
CONVERGENCE = ("tokens_to_fvu", "seconds_to_fvu")


class Told(dict):
    """What is told of each run. Pandas copies attrs, all they hold, with every column that is taken; not this."""

    def __deepcopy__(self, memo: dict) -> "Told":
        return self


def table(
    paths: Iterable[str | Path],
    sort: str | None = None,
    columns: list[str] | None = None,
    target_fvu: float | None = None,
    where: str | None = None,
    fold: Sequence[str] = (),
    pivot: tuple[str, str, str] | None = None,
    baseline: str | None = None,
) -> "pd.DataFrame":
    """One row per run of the paths (see `records`), with columns under `run`, `config` and `metrics`.

    Args:
        sort: a column; best first where the metric has a direction, ascending otherwise, empty cells last; `-column`
            the other way round.
        columns: names or patterns to show after run_id; by default the differing keys and all metrics.
        target_fvu: the held-out fvu of tokens_to_fvu and seconds_to_fvu; by default the largest final one of the runs.
        where: a filter, see `analysis.tables.where`.
        fold: keys whose runs become one row each, see `analysis.tables.aggregate.fold`.
        pivot: row key, column key and metric, see `analysis.tables.pivot.pivot`.
        baseline: a run id, or a filter that one row matches: differences to it stand beside each metric.

    `frame.attrs` says what is to be told beside the numbers: `warnings` (what makes the comparison unsound), `notes`
    (how to read it), `marks` (worst level by run id), `unfit` (why a run is never marked best, by run id) and `steps`
    (step and total steps of unfinished runs, by run id).
    Raises DataError and DamagedFile as `records` does, ConfigError for a word that means nothing here.
    """
    words = [*(columns or ()), *([sort.removeprefix("-")] if sort else ()), *(pivot or ())]
    followed = (columns is None and pivot is None) or any(fnmatchcase(name, w) for name in CONVERGENCE for w in words)
    full = load(paths, where, target_fvu, followed)
    return compared(full, sort, columns, fold, pivot, baseline)


def load(
    paths: Iterable[str | Path], where: str | None = None, target_fvu: float | None = None, followed: bool = True
) -> "pd.DataFrame":
    """All that is known of the runs that match, a row each; with convergence unless it is not asked for.

    Without a target of its own, convergence is to what every matching run reaches, so the filter cannot speak of it.
    """
    paths = list(paths)
    full = records(paths)
    if target_fvu is not None:
        full, target = with_convergence(full, target_fvu)
    if where is not None:
        full = select(full, where)
    if target_fvu is None:
        full, target = with_convergence(full) if followed else (full, None)
    full.attrs |= {"target_fvu": target, "varied": varied_by(paths)}
    return full


def compared(
    full: "pd.DataFrame",
    sort: str | None = None,
    columns: list[str] | None = None,
    fold: Sequence[str] = (),
    pivot: tuple[str, str, str] | None = None,
    baseline: str | None = None,
) -> "pd.DataFrame":
    """The table of what `load` gives; arguments and attrs as in `table`."""
    warnings, levels = judged(full)
    attrs: dict[str, Any] = {
        "warnings": warnings,
        "marks": Told(levels),
        "notes": [],
        "unfit": Told(unfit_runs(full)),
        "chosen": columns is not None,
    }
    attrs["target_fvu"] = full.attrs.get("target_fvu")
    runs = zip(*(full["run", name] for name in ("run_id", "state", "step", "total_steps")), strict=True)
    attrs["steps"] = Told((run_id, (step, total)) for run_id, state, step, total in runs if state != "completed")
    if pivot is not None:
        if fold or baseline or columns is not None or sort:
            raise ConfigError("--pivot stands alone; leave out --fold, --baseline, --columns and --sort.")
        return pivoted(full, pivot, attrs)
    frame, members = folded(full, fold, attrs) if fold else (full, [[row] for row in range(len(full))])
    if baseline is not None:
        row = baseline_row(full, members, baseline)
        frame = with_differences(frame, row)
        attrs |= {"baseline": frame["run", "run_id"].iloc[row]}
        attrs["notes"].append(
            f"differences to {described(frame, row)}" + (", with 95 % intervals (Welch)" if fold else "")
        )
    if sort is not None:
        frame = frame.iloc[order(frame, sort)]
    if columns is None:
        named = ("source",) if set(full["run", "source"]) != {"run"} else ()  # only where something was imported
        of_runs = (("run", name) for name in (*RUN_COLUMNS, *named))
        shown = [*(c for c in of_runs if c in frame.columns), *differing(frame), *ordered_metrics(frame)]
    else:
        chosen = [column for word in columns for column in find_columns(frame, word)]
        shown = list(dict.fromkeys([("run", "run_id"), *chosen]))
        if fold and ("run", "runs") not in shown:
            shown.insert(1, ("run", "runs"))
    frame = frame[with_companions(frame, shown)].reset_index(drop=True)
    frame.attrs = attrs
    return frame


def with_companions(frame: "pd.DataFrame", columns: Iterable[Column]) -> list[Column]:
    """Each metric followed by what stands beside it: spread, number, interval, difference."""
    there = set(frame.columns)
    wanted = (
        beside
        for column in columns
        for beside in (column, *((kind, column[1]) for kind in (*STATISTICS, *DIFFERENCES) if column[0] == "metrics"))
    )
    return [column for column in wanted if column in there]


def folded(full: "pd.DataFrame", words: Sequence[str], attrs: dict[str, Any]) -> tuple["pd.DataFrame", list[list[int]]]:
    """The fold over the named keys, with notes on it and what was judged of runs handed on to their rows."""
    keys = [find_column(full, word) for word in words]
    for word, (kind, _) in zip(words, keys, strict=True):
        if kind != "config":
            raise ConfigError(f"--fold {clean(word)}: that is no config key; name one, such as seed.")
    frame, members = fold(full, keys)
    names = ", ".join(clean(word) for word in words)
    attrs["folded"] = [name for _, name in keys]
    attrs["notes"].append(f"mean ± standard deviation (runs) over {names}; 95 % intervals: --format csv, json")
    attrs["warnings"] = attrs["warnings"] + repeated(full, keys, members)
    if len(members) == len(full) > 1:
        attrs["warnings"].append(f"nothing is folded: no two completed runs differ in {names} alone.")
    for name in ("marks", "unfit"):
        attrs[name] = Told(handed_on(frame, attrs[name]))
    return frame, members


def handed_on(frame: "pd.DataFrame", told: dict[str, str]) -> dict[str, str]:
    """What is told of runs, for the first run of each row: the level `error` before others, else the first told."""
    found = {}
    for first, runs in zip(frame["run", "run_id"], frame["run", "runs"], strict=True):
        if own := [told[run] for run in runs if run in told]:
            found[first] = "error" if "error" in own else own[0]
    return found


def pivoted(full: "pd.DataFrame", words: tuple[str, str, str], attrs: dict[str, Any]) -> "pd.DataFrame":
    """The pivot, with notes on what its cells average."""
    frame = pivot(full, *words)
    cells, run_ids = frame.attrs["members"], frame.attrs["measured"]
    unfit = {
        cell: reason for cell, runs in cells.items() for run in runs if (reason := attrs["unfit"].get(run_ids[run]))
    }
    notes = [f"{clean(words[2])} by {clean(words[0])} and {clean(words[1])}"]
    if any(len(runs) > 1 for runs in cells.values()):
        differ = ", ".join(map(clean, frame.attrs["averaged"]))
        notes.append("mean ± standard deviation (runs)" + (f" of runs that differ in {differ}" if differ else ""))
    told = {name: frame.attrs[name] for name in ("pivot", "across")}
    frame.attrs = attrs | told | {"unfit": unfit, "notes": notes, "marks": {}}
    return frame


def unfit_runs(full: "pd.DataFrame") -> dict[str, str]:
    """By run id why its scores are no merit."""
    sizes: list[list[float | None]] = []
    for column in (("metrics", "l0"), ("config", "architecture.d_sae"), ("config", "model.d_in")):
        there = column in full.columns
        sizes.append([number(value) for value in full[column]] if there else [None] * len(full))
    reasons = (unfitness(*size) for size in zip(*sizes, strict=True))
    return {run_id: why for run_id, why in zip(full["run", "run_id"], reasons, strict=True) if why}


def number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and value == value else None


def judged(full: "pd.DataFrame") -> tuple[list[str], dict[str, str]]:
    """What the audit finds: sentences, and the worst level (error, warning) by run id."""
    found = audit(full, full.attrs.get("varied", ()))
    return sentences(found, len(full)), marks(found)
