"""The comparison table: one row per run, or per aggregate of runs; the config keys that differ, then the metrics."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from analysis.auditing.audit import audit, varied_by
from analysis.auditing.printing import marks, sentences
from analysis.auditing.run import runs_of
from analysis.columns import differing, find_columns, has_reported, order, ordered_metrics
from analysis.metrics import DIFFERENCES, STATISTICS, Column, unfitness
from analysis.reading.convergence import with_convergence
from analysis.reading.names import COLUMN_NAMES
from analysis.reading.records import records
from analysis.tables.aggregate import aggregated
from analysis.tables.baseline import against_baseline
from analysis.tables.pivot import pivoted
from analysis.tables.table import Runs, Table
from analysis.tables.where import select
from sae_sweeps.errors import ConfigError

RUN_COLUMNS = ("run_id", "runs", "title", "state", "step", "total_steps")

CONVERGENCE = ("tokens_to_fvu", "seconds_to_fvu")


def table(
    paths: Iterable[str | Path],
    sort: str | None = None,
    columns: list[str] | None = None,
    target_fvu: float | None = None,
    where: str | None = None,
    aggregate: Sequence[str] = (),
    pivot: tuple[str, str, str] | None = None,
    baseline: str | None = None,
) -> Table:
    """One row per run of the paths (see `records`), with columns under `run`, `config` and `metrics`.

    Args:
        sort: a column; best first where the metric has a direction, ascending otherwise, empty cells last; `-column`
            the other way round.
        columns: names or patterns to show after run_id; by default the differing keys and all metrics.
        target_fvu: the held-out fvu of tokens_to_fvu and seconds_to_fvu; by default the largest final one of the runs.
        where: a filter, see `analysis.tables.where`.
        aggregate: keys whose runs become one row each, see `analysis.tables.aggregate.aggregated`.
        pivot: row key, column key and metric, see `analysis.tables.pivot.pivoted`.
        baseline: a run id, or a filter that one row matches: differences to it are shown beside each metric.

    Raises DataError and DamagedFile as `records` does, ConfigError for a name that no column has, and the like.
    """
    words = [*(columns or ()), *([sort.removeprefix("-")] if sort else ()), *(pivot or ())]
    followed = (columns is None and pivot is None) or any(fnmatchcase(name, w) for name in CONVERGENCE for w in words)
    runs = load(paths, where, target_fvu, followed)
    return compared(runs, sort, columns, aggregate, pivot, baseline)


def load(
    paths: Iterable[str | Path], where: str | None = None, target_fvu: float | None = None, followed: bool = True
) -> Runs:
    """All that is known of the runs that match; `followed`: with the metrics of CONVERGENCE.

    Without a target, convergence is to what every matching run reaches, so the filter cannot name it.
    """
    paths = list(paths)
    frame = records(paths)
    if target_fvu is not None:
        frame, target = with_convergence(frame, target_fvu)
    if where is not None:
        frame = select(frame, where)
    if target_fvu is None:
        frame, target = with_convergence(frame) if followed else (frame, None)
    return Runs(frame, varied_by(paths), target)


def compared(
    runs: Runs,
    sort: str | None = None,
    columns: list[str] | None = None,
    aggregate: Sequence[str] = (),
    pivot: tuple[str, str, str] | None = None,
    baseline: str | None = None,
) -> Table:
    """The table of loaded runs; arguments as in `table`."""
    full = runs.frame
    findings = audit(full, runs.varied)
    steps = zip(*(full["run", name] for name in ("run_id", "state", "step", "total_steps")), strict=True)
    result = Table(
        full,
        warnings=sentences(findings, len(full)),
        levels=marks(findings),
        unfit=unfit_runs(full),
        progress={run_id: (step, total) for run_id, state, step, total in steps if state != "completed"},
        target_fvu=runs.target_fvu,
        columns_chosen=columns is not None,
    )
    if pivot is not None:
        if aggregate or baseline or columns is not None or sort:
            raise ConfigError("--pivot cannot be combined; leave out --aggregate, --baseline, --columns and --sort.")
        return pivoted(result, *pivot)
    members = [[row] for row in range(len(full))]
    if aggregate:
        result, members = aggregated(result, aggregate)
    if baseline is not None:
        result = against_baseline(result, full, members, baseline)
    frame = result.frame
    if sort is not None:
        frame = frame.iloc[order(frame, sort)]
    if columns is None:
        named = ("source",) if has_reported(full) else ()
        of_runs = (("run", name) for name in (*RUN_COLUMNS, *named))
        shown = [*(c for c in of_runs if c in frame.columns), *differing(frame), *ordered_metrics(frame)]
    else:
        frame, chosen = chosen_columns(frame, columns)
        shown = list(dict.fromkeys([("run", "run_id"), *chosen]))
        if aggregate and ("run", "runs") not in shown:
            shown.insert(1, ("run", "runs"))
    result.frame = frame[with_companions(frame, shown)].reset_index(drop=True)
    return result


def chosen_columns(frame: pd.DataFrame, words: Iterable[str]) -> tuple[pd.DataFrame, list[Column]]:
    """The columns for a user's words, and the frame with those that a word of COLUMN_NAMES means under that word."""
    frame, chosen = frame.copy(deep=False), list[Column]()
    for word in words:
        found = find_columns(frame, word)
        kind, name = found[0]
        if word in COLUMN_NAMES and name.rpartition(".")[2] != word and word != "layer":
            for own in (kind, *STATISTICS, *DIFFERENCES):
                if (own, name) in frame.columns:
                    frame[own, word] = frame[own, name]
            found = [(kind, word)]
        chosen += found
    return frame, chosen


def with_companions(frame: pd.DataFrame, columns: Iterable[Column]) -> list[Column]:
    """Each metric followed by its spread, number, interval and difference, where the frame has them."""
    present, found = set(frame.columns), list[Column]()
    for kind, name in columns:
        beside = (*STATISTICS, *DIFFERENCES) if kind == "metrics" else ()
        found += [(own, name) for own in (kind, *beside) if (own, name) in present]
    return found


def unfit_runs(full: pd.DataFrame) -> dict[str, str]:
    """Run id -> why the run is never marked best."""
    reasons = {
        run.run_id: unfitness(
            run.metrics.get("l0"), run.number("architecture.d_sae"), run.d_in, run.metrics.get("steps")
        )
        for run in runs_of(full)
    }
    return {run_id: why for run_id, why in reasons.items() if why}
