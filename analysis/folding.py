"""Runs folded into mean, spread and number, and their differences to a baseline."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from analysis.columns import UNSHOWN, differing, find_column, identity, of_kind, sort_key, varies
from analysis.metrics import BUDGETS, DIFFERENCES, STATISTICS, Column
from analysis.text import cell, clean
from sae_sweeps.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95


def fold(full: "pd.DataFrame", keys: Sequence[Column]) -> tuple["pd.DataFrame", list[list[int]]]:
    """Runs that differ in `keys` alone become one row: `metrics` holds their mean, STATISTICS what stands beside it.

    Runs that differ in anything else that makes a run what it is, in tokens or in steps stay apart; so do unfinished
    runs and runs without the keys. Returns the frame, its rows in the order of their first run, and each row's runs as
    row numbers of `full`.
    """
    import pandas as pd

    signatures = signatures_of(full, keys)
    present = [all(identity(value) != ("absent",) for value in row) for row in full[list(keys)].to_numpy()]
    together: dict[Any, list[int]] = {}
    for row, (state, signature) in enumerate(zip(full["run", "state"], signatures, strict=True)):
        mergeable = state == "completed" and present[row]
        together.setdefault(signature if mergeable else ("alone", row), []).append(row)
    members = list(together.values())

    first = full.iloc[[rows[0] for rows in members]].reset_index(drop=True)
    kept = [column for column in first.columns if column[0] != "metrics" and column not in keys]
    head = first[kept].copy()
    ids, titles, warnings = (list(full["run", name]) for name in ("run_id", "title", "warnings"))
    common = [{titles[row] for row in rows} for rows in members]
    head["run", "title"] = objects([found.pop() if len(found) == 1 else None for found in common])
    head["run", "runs"] = objects([[ids[row] for row in rows] for rows in members])
    head["run", "warnings"] = objects(
        [list(dict.fromkeys(w for row in rows for w in warnings[row])) for rows in members]
    )
    labels = labels_of(members, len(full))
    return pd.concat([head, statistics(full[of_kind(full, "metrics")], labels)], axis=1), members


def signatures_of(full: "pd.DataFrame", keys: Sequence[Column]) -> list[tuple]:
    """For each run what it is apart from `keys`: config, tokens, steps and source, as far as runs differ in them."""
    told = [
        column
        for column in of_kind(full, "config")
        if column not in keys and column[1].partition(".")[0] not in UNSHOWN
    ]
    found = full[told].to_numpy().T if told else []
    columns: list[list[Any]] = [[identity(value) for value in values] for values in found if varies(values)]
    columns += [budget_of(full, metric) for metric in BUDGETS]
    columns.append([identity(value) for value in full["run", "source"]])
    varied = [column for column in columns if len(set(column)) > 1]
    return list(zip(*varied, strict=True)) if varied else [()] * len(full)


def budget_of(full: "pd.DataFrame", metric: str) -> list[Any]:
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


def statistics(metrics: "pd.DataFrame", labels: list[int]) -> "pd.DataFrame":
    """Mean, standard deviation (n - 1), n and Student's 95 % confidence interval of the mean, by label and metric."""
    import numpy as np
    import pandas as pd
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


def repeated(full: "pd.DataFrame", keys: Sequence[Column], members: Sequence[Sequence[int]]) -> list[str]:
    """What makes a fold count more than there is: equal values of the folded keys within a row; a sentence each."""
    found = []
    values = [tuple(map(identity, row)) for row in full[list(keys)].to_numpy()]
    ids, names = list(full["run", "run_id"]), ", ".join(clean(key) for _, key in keys)
    for rows in members:
        if len({values[row] for row in rows}) < len(rows):
            who = ", ".join(ids[row] for row in rows[:3]) + (" ..." if len(rows) > 3 else "")
            found.append(f"{who}: folded runs of equal {names}, so their spread and interval are too small.")
    return found


def pivot(full: "pd.DataFrame", rows: str, columns: str, value: str) -> "pd.DataFrame":
    """`value`, a metric, by two keys: a row for each value of one, a column for each of the other, runs averaged.

    The row key stands under `config`, the cells as metrics named `key=value` with STATISTICS beside them; `attrs` has
    the metric (`pivot`), the runs in each cell (`members`, by row and name) and the keys that a cell averages over
    (`averaged`). Raises ConfigError where runs of unequal tokens or steps would share a cell, or none has the metric.
    """
    import pandas as pd

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
    cells: dict[tuple[int, str], list[int]] = {}
    for run, (line, name) in enumerate(zip(measured[down], measured[across], strict=True)):
        cells.setdefault((list(lines).index(identity(line)), name_of[identity(name)]), []).append(run)
    averaged = dict.fromkeys(
        column[1]
        for runs in cells.values()
        if len(runs) > 1
        for column in differing(measured.iloc[runs])
        if column not in (down, across)
    )
    for budget in BUDGETS:
        amounts = budget_of(measured, budget)
        for (_, name), runs in cells.items():
            if len({amounts[run] for run in runs}) > 1:
                raise ConfigError(
                    f"--pivot: runs under {clean(name)} differ in {budget}; take some of them out with --where, or "
                    f"use {BUDGETS[budget]} as a key."
                )
    keys = list(cells)
    told = statistics(measured[[metric]], labels_of(cells.values(), len(measured)))
    frame = pd.DataFrame({down_column(down): objects(list(lines.values()))})
    for name in name_of.values():
        for kind in ("metrics", *STATISTICS):
            found = {line: told[kind, metric[1]].iloc[n] for n, (line, own) in enumerate(keys) if own == name}
            empty = 0 if kind == "n" else float("nan")
            frame[kind, name] = [found.get(line, empty) for line in range(len(lines))]
    frame.columns = pd.MultiIndex.from_tuples(list(frame.columns))
    frame.attrs = {"pivot": metric[1], "across": across[1], "members": cells, "averaged": list(averaged)}
    frame.attrs["measured"] = list(measured["run", "run_id"])
    return frame


def down_column(column: Column) -> Column:
    return ("config", column[1]) if column[0] == "metrics" else column


def places(values: list[Any]) -> dict[Any, Any]:
    """The distinct values, sorted, by identity."""
    distinct = {identity(value): value for value in values}
    listed = list(distinct.items())
    by_size = sort_key([value for _, value in listed])
    return dict(listed[number] for number in sorted(range(len(listed)), key=by_size))


def unique_names(key: str, values: list[Any]) -> list[str]:
    """`k=32` for each value of a key; in full where two would read the same."""
    head = key.rpartition(".")[2]
    names = [f"{head}={cell(value, 'config')}" for value in values]
    return [f"{head}={value!r}" if names.count(name) > 1 else name for name, value in zip(names, values, strict=True)]


def with_differences(frame: "pd.DataFrame", row: int) -> "pd.DataFrame":
    """The frame with each metric's difference to that of `row`, the baseline, which has none itself.

    Where runs are folded, `difference_low` and `difference_high` bound it with 95 % confidence by Welch's t of two
    means with unequal variances (degrees of freedom by Welch and Satterthwaite); nan where either is of a single run.
    """
    import numpy as np
    import pandas as pd
    from scipy.special import stdtrit

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
        with np.errstate(divide="ignore", invalid="ignore"):
            error = std**2 / n  # nan for a single run
            both = error + error[row]
            freedom = both**2 / (error**2 / (n - 1) + error[row] ** 2 / (n[row] - 1))
            reach = np.where(both == 0, 0.0, stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(both))
        parts |= {"difference_low": difference - reach, "difference_high": difference + reach}
    columns = [(kind, name) for name in names for kind in DIFFERENCES if kind in parts]
    table = np.stack([parts[kind][:, names.index(name)] for kind, name in columns], axis=1)
    added = pd.DataFrame(table, index=frame.index, columns=pd.MultiIndex.from_tuples(columns))
    return pd.concat([frame, added], axis=1)


def objects(values: list[Any]) -> "pd.Series":
    """A column that keeps None and lists as they are."""
    import pandas as pd

    return pd.Series(values, dtype="object")
