"""`python -m analysis table PATH...`"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sae_sweeps.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("text", "markdown", "csv", "json", "svg", "latex", "html")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    words = commands.add_parser(
        "table",
        help="one row per run: the keys that differ and the metrics, best marked",
        description="One row per run: the config keys that differ, then the metrics, with the best of each marked.",
    )
    words.add_argument("paths", nargs="+", metavar="PATH", help="a run or sweep folder, outputs, a results.json")
    words.add_argument("--format", choices=FORMATS, help="default: what FILE's ending says, or text")
    words.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the table there")
    words.add_argument("--where", metavar="FILTER", help="runs to show: 'k = 320 and penalty in (none, ortho)'")
    words.add_argument("--sort", metavar="KEY", help="a key or metric, ranked metrics best first; -KEY turns it round")
    words.add_argument("--columns", metavar="KEY,...", help="keys and metrics to show, patterns with * too")
    words.add_argument("--fold", metavar="KEY,...", help="runs that differ in these alone as mean ± std (n): seed")
    words.add_argument(
        "--pivot", nargs=3, metavar=("ROWS", "COLUMNS", "METRIC"), help="a metric by the values of two keys"
    )
    words.add_argument("--baseline", metavar="RUN", help="show differences to it: a run id or a filter")
    words.add_argument(
        "--target-fvu",
        type=float,
        metavar="X",
        help="held-out fvu of tokens_to_fvu and seconds_to_fvu (default: the largest final one of the runs)",
    )
    words.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=5.0,
        metavar="SECONDS",
        help="draw it again every few seconds (5) until no run is queued or running",
    )
    words.set_defaults(run=run)


def run(words: argparse.Namespace) -> None:
    from analysis.output.formats import format_of, render
    from sae_sweeps.storage.files import write_text

    if words.fold is not None and not listed(words.fold):
        raise ConfigError("--fold names no key; name one, such as seed.")
    format = words.format or ("text" if words.output is None else format_of(words.output))
    if words.watch is not None:
        if format != "text" or words.output is not None:
            raise ConfigError("--watch draws on the terminal; leave out --output and --format.")
        if not words.watch > 0:
            raise ConfigError(f"--watch {words.watch:g}: write seconds above 0.")
        watch(words)
        return
    frame = table_of(words)
    if words.output is not None:
        write_text(words.output, render(frame, format) + "\n")
        print(f"table   {words.output}")
    else:
        show(frame, format)
    if format == "csv":  # has no place of its own for them
        for line in (*frame.attrs["notes"], *(f"warning: {warning}" for warning in frame.attrs["warnings"])):
            print(line, file=sys.stderr)


def table_of(words: argparse.Namespace) -> "pd.DataFrame":
    from analysis.tables.table import table

    return table(
        words.paths,
        sort=words.sort,
        columns=listed(words.columns),
        target_fvu=words.target_fvu,
        where=words.where,
        fold=listed(words.fold) or (),
        pivot=words.pivot,
        baseline=words.baseline,
    )


def listed(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()] if text is not None else None


def show(frame: "pd.DataFrame", format: str) -> None:
    from analysis.output.formats import render

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    print(render(frame, format, width=width, color=terminal and "NO_COLOR" not in os.environ), flush=True)


def watch(words: argparse.Namespace) -> None:
    """Draw the table until no run that it is asked for is queued or running, or Ctrl-C; over itself on a terminal."""
    from analysis.reading.records import records
    from analysis.tables.table import table

    try:
        while True:
            states = set(records(words.paths)["run", "state"])
            try:
                frame = table_of(words)
            except ConfigError as error:
                if "completed" in states or not states & {"queued", "running"}:
                    raise
                frame = table(words.paths)  # what was asked for may be a metric that no run has yet
                frame.attrs["notes"].append(f"waiting for a first result: {error}")
            if sys.stdout.isatty():
                print("\x1b[H\x1b[2J", end="")
            show(frame, "text")
            if not states & {"queued", "running"}:
                return
            time.sleep(words.watch)
    except KeyboardInterrupt:
        print()
