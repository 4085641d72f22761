"""How soon a run reaches a held-out fraction of variance unexplained."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.reading.run_folders import or_warned
from sae_sweeps.storage.rows import RowFile

Row = dict[str, Any]
"""A row of metrics.jsonl."""

TOKENS, SPEED, FVU = b',"tokens":', b',"tokens_per_s":', b'"held_out_fvu":'
"""Keys as training writes them: in this order, the last two at the end."""


def tokens_to(rows: Iterable[Row], target: float) -> tuple[int, float] | None:
    """Tokens and seconds of training at the first row whose `held_out_fvu` is at or under the target, or None.

    Seconds are those of the training steps and of waiting for their batches, summed up from `tokens_per_s`: pauses and
    evaluations do not count.
    """
    seconds, before = 0.0, 0
    for row in rows:
        if row.get("tokens_per_s"):  # tokens of a row without it are counted at the next row's speed
            seconds += (row["tokens"] - before) / row["tokens_per_s"]
            before = row["tokens"]
        value = row.get("held_out_fvu")
        if value is not None and value <= target:
            return row["tokens"], seconds
    return None


def common_target(runs: Iterable[Sequence[Row]]) -> float | None:
    """The largest final `held_out_fvu` of the runs, which each of them reaches; None where no run has one."""
    finals = [
        values[-1]
        for rows in runs
        if (values := [row["held_out_fvu"] for row in rows if row.get("held_out_fvu") is not None])
    ]
    return max(finals, default=None)


def followed(folder: Path) -> list[Row]:
    """`tokens`, `tokens_per_s` and `held_out_fvu` of a run's rows; none of a run that was not followed on held-out
    text.

    Thousands of runs are read for three numbers of each row: a line as `RowFile` writes it is searched, a file with any
    other line parsed. Raises DamagedFile as `RowFile.rows` does.
    """
    file = RowFile(folder / "metrics.jsonl")
    try:
        content = file.path.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]  # a last line without an end was torn by a kill
    if b'"held_out_fvu"' not in whole:
        return []
    try:
        return [searched(line) for line in whole.splitlines()]
    except ValueError:
        return file.rows()


def searched(line: bytes) -> Row:
    """The three numbers of one line, as far as it has them. Raises ValueError for a line of another form."""
    if not (line.startswith(b'{"step":') and line.endswith(b"}")):
        raise ValueError
    start = line.index(TOKENS) + len(TOKENS)
    row: Row = {"tokens": int(line[start : line.index(b",", start)])}
    before, found, end = line[:-1].rpartition(SPEED)
    if FVU in before:
        raise ValueError
    if found:
        speed, _, end = end.partition(b",")
        if speed != b"null":
            row["tokens_per_s"] = float(speed)
    _, found, fvu = end.rpartition(FVU)
    if found and not fvu.startswith(b"null"):
        row["held_out_fvu"] = float(fvu.partition(b",")[0])
    return row


def with_convergence(full: pd.DataFrame, target: float | None = None) -> tuple[pd.DataFrame, float | None]:
    """The frame with the metrics tokens_to_fvu and seconds_to_fvu of completed runs, and their target.

    Without a target it is `common_target`. A run that never reached it has nan; where no run was followed on held-out
    text the frame comes back as it is. A damaged metrics.jsonl becomes one of its run's warnings.
    """
    complete = [number for number, state in enumerate(full["run", "state"]) if state == "completed"]
    folders = list(full["run", "folder"])
    warnings = list(full["run", "warnings"])
    nothing: list[Row] = []
    rows = {n: or_warned(warnings[n], partial(followed, folders[n]), nothing) for n in complete}
    target = common_target(rows.values()) if target is None else target
    if target is None or common_target(rows.values()) is None:
        return full, None
    reached = [tokens_to(rows[number], target) if number in rows else None for number in range(len(full))]
    full = full.copy()
    for place, name in enumerate(("tokens_to_fvu", "seconds_to_fvu")):
        full["metrics", name] = [float(found[place]) if found else float("nan") for found in reached]
    return full, target
