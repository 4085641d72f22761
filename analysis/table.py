"""The comparison table: one row per run, the config keys that differ, then the metrics with the best marked."""

import difflib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.records import RUN_FIELDS, records
from analysis.text import cell, clean, csv_cell, markdown_cell, wrapped
from sae_sweeps.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

Column = tuple[str, str]
"""(run, config or metrics; name)."""

DIRECTIONS = {
    "fvu": "lower",
    "explained_variance": "higher",
    "explained_variance_correct": "higher",
    "explained_variance_legacy": "higher",
    "mse": "lower",
    "mse_per_token": "lower",
    "cossim": "higher",
    "l2_ratio": "one",
    "relative_reconstruction_bias": "one",
    "ce_loss_score": "higher",
    "ce_loss_with_sae": "lower",
    "kl_div_score": "higher",
    "kl_div_with_sae": "lower",
    "recon_loss": "lower",
    "dead_features": "lower",
    "frac_alive": "higher",
    "mean_absorption*": "lower",
    "mean_full_absorption*": "lower",
    "sae_test_accuracy": "higher",
    "sae_top_*_test_accuracy": "higher",
    "scr_metric_threshold_*": "higher",
    "tpp_threshold_*_total_metric": "higher",
    "unlearning_score": "higher",
    "autointerp_score": "higher",
}
"""What is better, by metric name or pattern: lower, higher, or one (nearest to 1).

Others are not ranked: `final_loss` and `penalty_loss` contain the penalty weight that sweeps vary, `l0` is a choice.
"""

FIRST = ("fvu", "ce_loss_score", "explained_variance", "l0", "dead_features", "penalty_loss", "final_loss")
"""The metrics of a default text table, in its order; all others follow in the other formats."""

BUDGETS = {"tokens": "num_tokens", "steps": "total_steps"}
"""Metrics that have to agree among compared runs, with the config key or run field that stands in before the end."""

UNSHOWN = ("outputs", "device", "title", "dry_run", "logger", "cluster", "activations")
"""Keys and groups that say where and how a run was made, not what it is."""

IDENTITY = ("model", "data")
"""Groups whose keys follow from their name, once the name differs."""

SHORT = {"layer.index": "layer"}


def table(paths: Iterable[str | Path], sort: str | None = None, columns: list[str] | None = None) -> "pd.DataFrame":
    """One row per run of the paths (see `records`), with columns under `run`, `config` and `metrics`.

    Args:
        sort: a column; best first where the metric has a direction, ascending otherwise, empty cells last.
        columns: names or patterns to show after run_id; by default the differing keys and all metrics.

    `frame.attrs["warnings"]` says in words what makes the comparison unsound.
    Raises DataError and DamagedFile as `records` does, ConfigError for a column that no run has.
    """
    full = records(paths)
    if sort:
        (*_, by) = find_columns(full, sort)
        full = full.iloc[sorted(range(len(full)), key=sort_key(full, by))]
    if columns is None:
        shown = [("run", "run_id"), ("run", "title"), ("run", "state"), *differing(full), *ordered_metrics(full)]
    else:
        shown = list(dict.fromkeys([("run", "run_id"), *(c for word in columns for c in find_columns(full, word))]))
    frame = full[shown].reset_index(drop=True)
    frame.attrs = {"warnings": warnings_of(full), "chosen": columns is not None, "progress": progress_of(full)}
    return frame


def render(frame: "pd.DataFrame", format: str = "text", width: int | None = None, color: bool = False) -> str:
    """A frame of `table` as text, markdown, csv or json, without a final newline.

    Args:
        width: columns of the terminal; a default text table leaves out its last metrics until it fits, and says so.
        color: bold and dim text by terminal codes.
    """
    if format not in FORMATS:
        raise ConfigError(f"format={format}: choose one of {', '.join(FORMATS)}.")
    return FORMATS[format](frame, width, color).rstrip("\n")


# What is shown -------------------------------------------------------------------------------------------------------


def differing(full: "pd.DataFrame") -> list[Column]:
    """The config keys that take more than one value among the runs that have them."""
    found: list[Column] = []
    for column in group(full, "config"):
        head, _, rest = column[1].partition(".")
        if head in UNSHOWN or len(set(map(hashable, present(full[column])))) < 2:
            continue
        if head in IDENTITY and rest and ("config", head) in found:
            continue
        same_values = (f for f in found if last_part(f) == last_part(column) and full[f].equals(full[column]))
        if next(same_values, None) is None:
            found.append(column)
    return found


def ordered_metrics(full: "pd.DataFrame") -> list[Column]:
    """All metrics, those of FIRST first."""
    metrics = group(full, "metrics")
    first = [("metrics", name) for name in FIRST]
    return [c for c in first if c in metrics] + [c for c in metrics if c not in first]


def default_columns(frame: "pd.DataFrame") -> list[Column]:
    """Of a default table: the run, what differs, the metrics of FIRST, and a budget that differs."""
    columns: list[Column] = []
    for column in frame.columns:
        kind, name = column
        if kind == "run":
            keep = name == "run_id" or (name == "title" and not group(frame, "config") and frame[column].notna().any())
            keep = keep or (name == "state" and set(frame[column]) != {"completed"})
        else:
            keep = kind == "config" or name in FIRST or (name in BUDGETS and len(set(present(frame[column]))) > 1)
        if keep:
            columns.append(column)
    return columns


def shown_columns(frame: "pd.DataFrame") -> list[Column]:
    return list(frame.columns) if frame.attrs.get("chosen") else default_columns(frame)


def labels(columns: Iterable[Column]) -> dict[Column, str]:
    """Short headers: a dotted key's last component where no other column is called so, more of it where one is."""
    columns = list(columns)
    result: dict[Column, str] = {}
    names = [name for kind, name in columns if kind != "config"]
    keys = [SHORT.get(name, name).split(".") for kind, name in columns if kind == "config"]
    for kind, name in columns:
        parts = SHORT.get(name, name).split(".")
        label = name
        if kind == "config":
            for start in reversed(range(len(parts))):
                label = ".".join(parts[start:])
                same = sum(key[-len(parts[start:]) :] == parts[start:] for key in keys)
                if same == 1 and label not in names:
                    break
            else:
                label = f"config.{name}"
        result[kind, name] = label
    return result


def find_columns(full: "pd.DataFrame", word: str) -> list[Column]:
    """The columns that a word names: exactly, by the last components of a key, or as a pattern with `*`."""
    columns = [*group(full, "run"), *group(full, "metrics"), *group(full, "config")]
    columns = [c for c in columns if c[0] != "run" or c[1] in RUN_FIELDS]
    tests: tuple[Callable[[str], bool], ...] = (
        lambda name: name == word or SHORT.get(name) == word,
        lambda name: name.endswith(f".{word}"),
        lambda name: fnmatchcase(name, word),
    )
    for test in tests:
        if found := [column for column in columns if test(column[1])]:
            return found if test is tests[-1] else found[:1]
    near = difflib.get_close_matches(word, [name for _, name in columns], n=1)
    hint = f"did you mean {near[0]}?" if near else "leave it out to see what there is."
    raise ConfigError(f"no run has a column {clean(word)}; {hint}")


def direction(metric: str) -> str | None:
    """lower, higher, one, or None for a metric that is not ranked."""
    return DIRECTIONS.get(metric) or next((d for p, d in DIRECTIONS.items() if fnmatchcase(metric, p)), None)


def badness(metric: str, value: float) -> float:
    """A ranked metric's value turned so that smaller is better."""
    return {"lower": value, "higher": -value, "one": abs(value - 1)}[direction(metric) or "lower"]


def best_rows(frame: "pd.DataFrame", column: Column) -> set[int]:
    """Rows that hold the best value of a ranked metric; none where fewer than two values differ."""
    kind, name = column
    if kind != "metrics" or direction(name) is None:
        return set()
    scores = {row: badness(name, value) for row, value in enumerate(frame[column]) if value == value}
    best = min(scores.values(), default=0.0)
    rows = {row for row, score in scores.items() if score == best}
    return rows if len(rows) < len(scores) else set()


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


# What makes the comparison unsound -----------------------------------------------------------------------------------


def warnings_of(full: "pd.DataFrame") -> list[str]:
    """One sentence each; a later audit has the rules that need more than a table."""
    found = []
    complete = full[full["run", "state"] == "completed"]
    for metric, stand_in in BUDGETS.items():
        values = budget(complete, metric, stand_in)
        if len(set(values)) > 1:
            found.append(f"the runs differ in {metric}, from {min(values):,.0f} to {max(values):,.0f}: not a fair comparison")
    states = Counter(state for state in full["run", "state"] if state != "completed")
    if states:
        what = ", ".join(f"{count} {state}" for state, count in states.items())
        found.append(f"{sum(states.values())} of {len(full)} runs without results: {what}")
    for run_id, state, error in zip(full["run", "run_id"], full["run", "state"], full["run", "error"], strict=True):
        if error and state != "completed":
            found.append(f"{run_id} {state}: {error}")
    said: dict[str, list[str]] = {}
    for run_id, warnings in zip(full["run", "run_id"], full["run", "warnings"], strict=True):
        for warning in warnings:
            said.setdefault(warning, []).append(run_id)
    for warning, runs in said.items():
        who = "every run" if len(runs) == len(full) > 1 else ", ".join(runs[:3]) + (" ..." if len(runs) > 3 else "")
        found.append(f"{who}: {warning}")
    return [clean(sentence, 400) for sentence in found]


def budget(complete: "pd.DataFrame", metric: str, stand_in: str) -> list[float]:
    """Each run's tokens or steps, as trained where that is recorded, as configured otherwise."""
    places = [("metrics", metric), ("config", stand_in), ("run", stand_in)]
    values = []
    for _, row in complete[[c for c in places if c in complete.columns]].iterrows():
        numbers = [v for v in row if isinstance(v, int | float) and v == v]
        values += numbers[:1]
    return values


def progress_of(full: "pd.DataFrame") -> list[str]:
    """What the state column says: the state, and how far an unfinished run came."""
    words = []
    for _, row in full["run"].iterrows():
        state, step, total = row["state"], row["step"], row["total_steps"]
        unfinished = state != "completed" and step and total
        words.append(f"{state} at {100 * step // total}%" if unfinished else state)
    return words


# Formats -------------------------------------------------------------------------------------------------------------


def cells(frame: "pd.DataFrame", columns: list[Column]) -> list[list[str]]:
    """Words and numbers of the shown columns, column by column, four digits of each number."""
    found = []
    for column in columns:
        values = frame.attrs["progress"] if column == ("run", "state") else list(frame[column])
        whole = all(isinstance(v, int | float) and (v != v or v == int(v)) for v in values)
        found.append([cell(value, "config" if column[0] != "metrics" else "whole" if whole else "") for value in values])
    return found


def text(frame: "pd.DataFrame", width: int | None, color: bool) -> str:
    columns, left_out = shown_columns(frame), []
    while True:
        body = draw(frame, columns, width, color)
        fits = width is None or frame.attrs.get("chosen") or max(map(len, draw(frame, columns, None, False).split("\n"))) <= width
        if fits or sum(kind == "metrics" for kind, _ in columns) <= 1:
            break
        left_out.insert(0, columns.pop()[1])
    notes = ["* best in its column"] if any(best_rows(frame, column) for column in columns) else []
    if left_out:
        notes.append(f"left out for want of room: {', '.join(left_out)}")
    notes += [f"warning: {warning}" for warning in frame.attrs["warnings"]]
    return "\n".join([body, *notes])


def draw(frame: "pd.DataFrame", columns: list[Column], width: int | None, color: bool) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    names = labels(columns)
    for column in columns:
        is_number = column[0] == "metrics" or all(isinstance(v, int | float | None) for v in frame[column])
        grid.add_column(Text(wrapped(names[column])), justify="right" if is_number else "left", vertical="bottom")
    marked = []
    for column, words in zip(columns, cells(frame, columns), strict=True):
        best = best_rows(frame, column)
        room = " " if best else ""
        marked.append([Text(w + "*", "bold") if row in best else Text(w + room) for row, w in enumerate(words)])
    for row in zip(*marked, strict=True):
        grid.add_row(*row)
    file = io.StringIO()
    console = Console(
        file=file, width=width or 100_000, force_terminal=color, color_system="standard" if color else None, highlight=False
    )
    console.print(grid)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def markdown(frame: "pd.DataFrame", width: int | None, color: bool) -> str:
    columns = shown_columns(frame)
    names = labels(columns)
    body = []
    for column, words in zip(columns, cells(frame, columns), strict=True):
        best = best_rows(frame, column)
        body.append([f"**{markdown_cell(w)}**" if row in best else markdown_cell(w) for row, w in enumerate(words)])
    lines = [
        [markdown_cell(names[column]) for column in columns],
        ["---:" if kind == "metrics" else "---" for kind, _ in columns],
        *zip(*body, strict=True),
    ]
    notes = "".join(f"\n- warning: {markdown_cell(warning)}" for warning in frame.attrs["warnings"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + (f"\n{notes}" if notes else "")


def csv(frame: "pd.DataFrame", width: int | None, color: bool) -> str:
    """Full precision, every column; text that a spreadsheet would compute is quoted with an apostrophe."""
    from csv import writer

    names = labels(frame.columns)
    file = io.StringIO()
    out = writer(file, lineterminator="\n")
    out.writerow([csv_cell(names[column]) for column in frame.columns])
    for row in frame.itertuples(index=False, name=None):
        out.writerow([csv_cell(value) for value in row])
    return file.getvalue()


def to_json(frame: "pd.DataFrame", width: int | None, color: bool) -> str:
    """{"runs": [{run fields, config: {}, metrics: {}}], "best": {metric: [run ids]}, "warnings": []}."""
    runs = []
    for row in frame.itertuples(index=False, name=None):
        run: dict[str, Any] = {"config": {}, "metrics": {}}
        for (kind, name), value in zip(frame.columns, row, strict=True):
            if value is None or value == value:  # absent ones are left out
                (run if kind == "run" else run[kind])[name] = str(value) if isinstance(value, Path) else value
        runs.append(run)
    ids = list(frame["run", "run_id"])
    best = {column[1]: [ids[row] for row in sorted(rows)] for column in frame.columns if (rows := best_rows(frame, column))}
    return json.dumps({"runs": runs, "best": best, "warnings": frame.attrs["warnings"]}, indent=2, allow_nan=False)


FORMATS: dict[str, Callable[["pd.DataFrame", int | None, bool], str]] = {
    "text": text,
    "markdown": markdown,
    "csv": csv,
    "json": to_json,
}


# Helpers -------------------------------------------------------------------------------------------------------------


def group(frame: "pd.DataFrame", kind: str) -> list[Column]:
    return [column for column in frame.columns if column[0] == kind]


def present(values: Iterable[Any]) -> list[Any]:
    """Values without the absent ones (NaN); None is a value."""
    return [value for value in values if value == value]


def hashable(value: Any) -> Any:
    return (isinstance(value, bool), value)


def last_part(column: Column) -> str:
    return column[1].rpartition(".")[2]
