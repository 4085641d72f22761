"""Lines and aligned columns of text for a terminal."""

import io
import os
import sys
from collections.abc import Iterable, Sequence

from sae_sweeps.storage.secrets import without_secrets


def replace_unprintable() -> None:
    """Let standard output and errors print `?` for what their encoding lacks, as where LANG is C: a table's lines must
    not end a sweep."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def print_line(text: str = "") -> None:
    """Print a line, without secrets.

    Once the reader is gone (`| head`, a closed terminal) the rest is dropped, and the runs go on.
    """
    try:
        print(without_secrets(text), flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def spans(numbers: Iterable[int]) -> list[list[int]]:
    """Ascending numbers, cut where one is missing: 1, 2, 3, 5 as [[1, 2, 3], [5]]."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return parts


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line per row; columns are as wide as their widest cell, with two blanks between them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
