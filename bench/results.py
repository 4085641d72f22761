"""Where measured numbers go: a line of JSON each, at once, and tables in a Markdown page.

`results.jsonl` is added to and never rewritten, so a killed session keeps what it measured. The page is made from it
part by part, each part between two markers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_sweeps.storage.files import write_text

FILE = "results.jsonl"


class Results:
    """The lines of one part of the bench."""

    def __init__(self, folder: Path, part: str):
        self.path, self.part = folder / FILE, part

    def add(self, table: str, row: Mapping[str, Any]) -> None:
        """A row of the table with this title; the first row's columns are the table's."""
        self.line(table=table, row=dict(row))

    def line(self, **content: Any) -> None:
        text = json.dumps({"part": self.part, **content}) + "\n"
        with open(self.path, "a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def read(folder: Path, start: int = 0) -> list[dict[str, Any]]:
    """The lines of a folder's results from byte `start` on; a last line that is cut off is left out."""
    with open(folder / FILE, "rb") as file:
        file.seek(start)
        return [json.loads(line) for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]


def tables(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown of every table in the lines, in the order of their first rows."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if "row" in line:
            found.setdefault(line["table"], []).append(line["row"])
    out: list[str] = []
    for title, rows in found.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        out += [
            "",
            f"{title}:",
            "",
            *table(columns, [[shown(row.get(column, "")) for column in columns] for row in rows]),
        ]
    return out


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def shown(value: Any) -> str:
    """A number with four digits, a comma between thousands; anything else as it is."""
    if not isinstance(value, float) or value in (float("inf"), float("-inf")) or value != value:
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 1e-3 or not size else f"{value:.1e}"


def write(path: Path, name: str, lines: Sequence[str], add: bool = True, keep: bool = False) -> None:
    """Put the lines between the markers of `name`; where the file has none, at its end, or nowhere without `add`.

    With `keep` lines that are there already stay.
    """
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    text = path.read_text() if path.exists() else ""
    block = "\n".join([begin, *lines, end])
    if begin in text and not keep:
        before, _, rest = text.partition(begin)
        write_text(path, before + block + rest.partition(end)[2])
    elif begin not in text and add:
        write_text(path, f"{text.rstrip()}\n\n{block}\n".lstrip())
