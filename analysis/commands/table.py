"""`python -m analysis table PATH...`"""

import argparse
import os
import shutil
import sys

FORMATS = ("text", "markdown", "csv", "json", "svg")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    words = commands.add_parser(
        "table",
        help="one row per run: the keys that differ and the metrics, best marked",
        description="One row per run: the config keys that differ, then the metrics, with the best of each marked.",
    )
    words.add_argument("paths", nargs="+", metavar="PATH", help="a run or sweep folder, outputs, a results.json")
    words.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    words.add_argument("--sort", metavar="KEY", help="a config key or metric; ranked metrics come best first")
    words.add_argument("--columns", metavar="KEY,...", help="keys and metrics to show, patterns with * too")
    words.add_argument(
        "--target-fvu",
        type=float,
        metavar="X",
        help="held-out fvu of tokens_to_fvu and seconds_to_fvu (default: the largest final one of the runs)",
    )
    words.set_defaults(run=run)


def run(words: argparse.Namespace) -> None:
    from analysis.table import render, table

    columns = [name for name in words.columns.split(",") if name] if words.columns is not None else None
    frame = table(words.paths, sort=words.sort, columns=columns, target_fvu=words.target_fvu)
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    print(render(frame, words.format, width=width, color=terminal and "NO_COLOR" not in os.environ))
    if words.format == "csv":  # has no place of its own for them
        for warning in frame.attrs["warnings"]:
            print(f"warning: {warning}", file=sys.stderr)
