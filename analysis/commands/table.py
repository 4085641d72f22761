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
    from analysis.tables.table import Table

FORMATS = ("text", "markdown", "csv", "json", "svg", "latex", "html")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "table",
        help="one row per run: the keys that differ and the metrics, best marked",
        description="One row per run: the config keys that differ, then the metrics, with the best of each marked.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run or sweep folder, outputs, a results.json")
    parser.add_argument("--format", choices=FORMATS, help="default: from FILE's ending, or text")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--where", metavar="FILTER", help="runs to show: 'k = 320 and penalty in (none, ortho)'")
    parser.add_argument("--sort", metavar="KEY", help="a key or metric, ranked metrics best first; -KEY turns it round")
    parser.add_argument("--columns", metavar="KEY,...", help="keys and metrics to show, patterns with * too")
    parser.add_argument(
        "--aggregate", "--fold", metavar="KEY,...", help="runs that differ in these alone as mean ± std (n): seed"
    )
    parser.add_argument(
        "--pivot", nargs=3, metavar=("ROWS", "COLUMNS", "METRIC"), help="a metric by the values of two keys"
    )
    parser.add_argument("--baseline", metavar="RUN", help="show differences to it: a run id or a filter")
    parser.add_argument(
        "--target-fvu",
        type=float,
        metavar="X",
        help="held-out fvu of tokens_to_fvu and seconds_to_fvu (default: the largest final one of the runs)",
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=5.0,
        metavar="SECONDS",
        help="draw it again every few seconds (5) until no run is queued or running",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from analysis.output.formats import format_of, render
    from sae_sweeps.storage.files import check_output, write_text

    if args.output is not None:
        check_output("-o", args.output, "table.md")
    if args.aggregate is not None and not listed(args.aggregate):
        raise ConfigError("--aggregate names no key; name one, such as seed.")
    format = args.format or ("text" if args.output is None else format_of(args.output))
    if args.watch is not None:
        if format != "text" or args.output is not None:
            raise ConfigError("--watch draws on the terminal; leave out --output and --format.")
        if not args.watch > 0:
            raise ConfigError(f"--watch {args.watch:g}: write seconds above 0.")
        watch(args)
        return
    comparison = table_of(args)
    if args.output is not None:
        write_text(args.output, render(comparison, format) + "\n")
        print(f"table   {args.output}")
    else:
        show(comparison, format)
    if format == "csv":  # has no place of its own for them
        for line in (*comparison.notes, *(f"warning: {warning}" for warning in comparison.warnings)):
            print(line, file=sys.stderr)


def table_of(args: argparse.Namespace) -> "Table":
    from analysis.tables.compare import table

    return table(
        args.paths,
        sort=args.sort,
        columns=listed(args.columns),
        target_fvu=args.target_fvu,
        where=args.where,
        aggregate=listed(args.aggregate) or (),
        pivot=args.pivot,
        baseline=args.baseline,
    )


def listed(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()] if text is not None else None


def show(comparison: "Table", format: str) -> None:
    from analysis.output.formats import render

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    print(render(comparison, format, width=width, color=terminal and "NO_COLOR" not in os.environ), flush=True)


def watch(args: argparse.Namespace) -> None:
    """Draw the table until none of its runs is queued or running, or Ctrl-C; on a terminal in place of the last one."""
    from analysis.reading.records import records
    from analysis.tables.compare import table

    try:
        while True:
            states = set(records(args.paths)["run", "state"])
            try:
                comparison = table_of(args)
            except ConfigError as error:
                if "completed" in states or not states & {"queued", "running"}:
                    raise
                comparison = table(args.paths)  # the columns may be metrics that no run has yet
                comparison.notes.append(f"waiting for a first result: {error}")
            if sys.stdout.isatty():
                print("\x1b[H\x1b[2J", end="")
            show(comparison, "text")
            if not states & {"queued", "running"}:
                return
            time.sleep(args.watch)
    except KeyboardInterrupt:
        print()
