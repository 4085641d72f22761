"""A table's frame as text, markdown, csv, json or a picture. A further format is one function here."""

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.metrics import FIRST, Column, best_rows
from analysis.text import cell, csv_cell, markdown_cell, wrapped
from sae_sweeps.errors import ConfigError
from sae_sweeps.files import without_nonfinite

if TYPE_CHECKING:
    import pandas as pd

SHORT = {"layer.index": "layer"}
"""Keys whose last component says little."""


def render(frame: "pd.DataFrame", format: str = "text", width: int | None = None, color: bool = False) -> str:
    """A frame of `table` as text, markdown, csv, json or svg, without a final newline.

    Text and markdown show the metrics of FIRST unless columns were chosen; csv and json have all at full precision.

    Args:
        width: columns of the terminal; a default text table leaves out its last metrics until it fits, and says so.
        color: mark by terminal codes too (text).
    """
    if format not in FORMATS:
        raise ConfigError(f"format={format}: there is no such format; choose one of {', '.join(FORMATS)}.")
    return FORMATS[format](frame, width, color).rstrip("\n")


def shown_columns(frame: "pd.DataFrame") -> list[Column]:
    """What text and markdown show: the run, what differs, FIRST, tokens or steps that differ; or what was chosen."""
    if frame.attrs.get("chosen"):
        return list(frame.columns)
    has_keys = any(kind == "config" for kind, _ in frame.columns)

    def shown(column: Column) -> bool:
        kind, name = column
        if kind == "run":
            titled = name == "title" and not has_keys and any(isinstance(title, str) for title in frame[column])
            return name in ("run_id", "source") or titled or (name == "state" and set(frame[column]) != {"completed"})
        differs = name in ("tokens", "steps") and frame[column].nunique() > 1
        return kind == "config" or name in FIRST or differs

    return [column for column in frame.columns if shown(column)]


def labels(columns: Iterable[Column]) -> dict[Column, str]:
    """Short headers: a dotted key's last component, or as many as tell it from every other column."""
    columns = list(columns)
    taken = {name for kind, name in columns if kind != "config"}
    keys = {column: SHORT.get(column[1], column[1]).split(".") for column in columns if column[0] == "config"}
    result = {(kind, name): name for kind, name in columns}
    result |= {c: f"metrics.{c[1]}" for c in columns if c[0] == "metrics" and ("run", c[1]) in result}
    for column, parts in keys.items():
        ends = (parts[-n:] for n in range(1, len(parts) + 1))
        names = (".".join(end) for end in ends if sum(other[-len(end) :] == end for other in keys.values()) == 1)
        result[column] = next((name for name in names if name not in taken), f"config.{column[1]}")
    return result


def cells(frame: "pd.DataFrame", column: Column) -> list[str]:
    """A column's values in a few characters each."""
    values = list(frame[column])
    if column == ("run", "state") and ("run", "step") in frame.columns:
        return [progress(*row) for row in zip(values, frame["run", "step"], frame["run", "total_steps"], strict=True)]
    whole = all(value != value or value == int(value) for value in values) if column[0] == "metrics" else False
    return [cell(value, "whole" if whole else "number" if column[0] == "metrics" else "config") for value in values]


def told_target(frame: "pd.DataFrame", columns: Iterable[Column]) -> str | None:
    """What the convergence columns speak of, where any is shown."""
    names = [name for kind, name in columns if kind == "metrics" and name.endswith("_to_fvu")]
    return f"{', '.join(names)}: to a held-out fvu of {frame.attrs['target_fvu']:.4g}" if names else None


def progress(state: str, step: float | None, total_steps: float | None) -> str:
    """The state, and how far an unfinished run came."""
    return f"{state} at {100 * step / total_steps:.0f}%" if state != "completed" and step and total_steps else state


# The formats ---------------------------------------------------------------------------------------------------------


def text(frame: "pd.DataFrame", width: int | None, color: bool) -> str:
    from rich.cells import cell_len

    columns, left_out = shown_columns(frame), list[str]()
    while width is not None and not frame.attrs.get("chosen") and columns[-1][0] == "metrics":
        if max(map(cell_len, draw(frame, columns).split("\n"))) <= width:
            break
        left_out.insert(0, columns.pop()[1])
    notes = ["* best in its column"] if any(best_rows(frame, column) for column in columns) else []
    if left_out:
        notes.append(f"left out for want of room: {', '.join(left_out)}")
    notes += [told] if (told := told_target(frame, columns)) else []
    notes += [f"warning: {warning}" for warning in frame.attrs.get("warnings", [])]
    return "\n".join([draw(frame, columns, width, color), *notes])


def draw(frame: "pd.DataFrame", columns: list[Column], width: int | None = None, color: bool = False) -> str:
    """The grid alone, as wide as it needs to be unless `width` is given."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    content, names = [], labels(columns)
    for column in columns:
        is_number = all(isinstance(value, int | float | None) for value in frame[column])
        grid.add_column(Text(wrapped(names[column])), justify="right" if is_number else "left", vertical="bottom")
        best = best_rows(frame, column)
        mark = [Text("*", "bold") if row in best else Text(" " if best else "") for row in range(len(frame))]
        content.append([Text(words) + mark[row] for row, words in enumerate(cells(frame, column))])
    for row in zip(*content, strict=True):
        grid.add_row(*row)
    file = io.StringIO()
    terminal = {"force_terminal": color, "color_system": "standard" if color else None}
    console = Console(file=file, width=width or 100_000, highlight=False, **terminal)  # type: ignore[arg-type]
    console.print(grid)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def svg(frame: "pd.DataFrame", width: int | None, color: bool) -> str:
    """The text table as a picture of a terminal; it names no font or address that a viewer would have to fetch."""
    import re

    from rich.console import Console
    from rich.text import Text

    # a mark of its own in each cell would be a piece of its own in the picture, which not every viewer aligns
    lines = Text.from_ansi(text(frame, width, color=True).replace("\x1b[1m*\x1b[0m", "*"))
    widest = max((line.cell_len for line in lines.split()), default=80)
    console = Console(file=io.StringIO(), record=True, width=widest, highlight=False)
    console.print(lines)
    picture = console.export_svg(title="python -m analysis table")
    return re.sub(r"@font-face \{[^}]*\}", "", picture).replace("Fira Code", "monospace")


def markdown(frame: "pd.DataFrame", width: int | None, color: bool) -> str:
    columns = shown_columns(frame)
    names, content = labels(columns), []
    for column in columns:
        best = best_rows(frame, column)
        words = map(markdown_cell, cells(frame, column))
        content.append([f"**{word}**" if row in best else word for row, word in enumerate(words)])
    head = [markdown_cell(names[column]) for column in columns]
    rule = ["---:" if kind == "metrics" else "---" for kind, _ in columns]
    lines = ["| " + " | ".join(line) + " |" for line in (head, rule, *zip(*content, strict=True))]
    notes = [f"- {told}"] if (told := told_target(frame, columns)) else []
    notes += [f"- warning: {markdown_cell(warning)}" for warning in frame.attrs.get("warnings", [])]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def csv(frame: "pd.DataFrame", width: int | None, color: bool) -> str:
    import csv

    names = labels(frame.columns)
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    out.writerow([csv_cell(names[column]) for column in frame.columns])
    out.writerows([csv_cell(value) for value in row] for row in frame.itertuples(index=False, name=None))
    return file.getvalue()


def to_json(frame: "pd.DataFrame", width: int | None, color: bool) -> str:
    """{"runs": [{run_id, ..., config: {}, metrics: {}}], "best": {metric: [run_id]}, "warnings": []}, and `target_fvu`
    where runs were followed on held-out text."""
    runs = []
    for row in frame.itertuples(index=False, name=None):
        run: dict[str, Any] = {"run": {}, "config": {}, "metrics": {}}
        for (kind, name), value in zip(frame.columns, row, strict=True):
            if value == value:  # absent keys are left out
                run[kind][name] = str(value) if isinstance(value, Path) else value
        runs.append({**run.pop("run"), **run})
    best = {column[1]: best_rows(frame, column) for column in frame.columns}
    content = {
        "runs": runs,
        "best": {metric: [runs[row]["run_id"] for row in sorted(rows)] for metric, rows in best.items() if rows},
        "warnings": frame.attrs.get("warnings", []),
    }
    if frame.attrs.get("target_fvu") is not None:
        content["target_fvu"] = frame.attrs["target_fvu"]
    return json.dumps(without_nonfinite(content), indent=2, allow_nan=False)


FORMATS: dict[str, Callable[["pd.DataFrame", int | None, bool], str]] = {
    "text": text,
    "markdown": markdown,
    "csv": csv,
    "json": to_json,
    "svg": svg,
}
