"""Measurements of several machines side by side: a line for each part that a machine has measured, never rewritten."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.results import shown, tables
from bench.setting import ROOT

RECORDS = ROOT / "bench" / "results.jsonl"


@dataclass
class Record:
    """One part of the bench as one machine measured it."""

    part: str
    machine: str
    instructions: str
    """The CPU's sets of vector and matrix instructions; empty where they were not noted."""
    torch: str
    threads: int
    at: str
    """Date."""
    commit: str
    rates: dict[str, float]
    """What the machine did at best just before, by unit."""
    rows: list[tuple[str, dict[str, Any]]]
    """Each with the title of its table."""

    @property
    def place(self) -> tuple[str, str, int]:
        return self.machine, self.instructions, self.threads

    def described(self) -> str:
        rates = ", ".join(f"{shown(float(f'{rate:.3g}'))} {unit}" for unit, rate in self.rates.items())
        where = f"{self.machine}; {self.instructions or 'instruction sets not noted'}"
        when = f"torch {self.torch}, {self.threads} threads; {self.at}, commit {self.commit}"
        return f"{where}; {when}{f'; measured just before: {rates}' if rates else ''}."


def add(record: Record, path: Path = RECORDS) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def latest(part: str, path: Path = RECORDS) -> list[Record]:
    """The last record of a part on each machine, the machines in the order in which they were first measured on."""
    found: dict[tuple[str, str, int], Record] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        record = Record(**json.loads(line))
        if record.part == part:
            found[record.place] = record
    return list(found.values())


def side_by_side(records: Sequence[Record]) -> list[str]:
    """Markdown: what each machine is, and its rows beside the others' rows of the same name."""
    if len(records) == 1:
        return [records[0].described(), *tables([_line(table, row) for table, row in records[0].rows])]
    order: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    lines: list[str] = []
    for letter, record in zip(string.ascii_uppercase, records, strict=False):
        lines.append(f"- {letter}: {record.described()}")
        for table, row in record.rows:
            order.setdefault((table, next(iter(row.values()))), []).append({"on": letter, **row})
    return [*lines, *tables([_line(table, row) for (table, _), rows in order.items() for row in rows])]


def _line(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {"table": table, "row": row}
