"""`python -m analysis table PATH...`: what people read of runs. Nothing heavy is imported before it is needed."""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence

from sae_sweeps.errors import UserError

FORMATS = ("text", "markdown", "csv", "json", "svg")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m analysis", description="Read run folders: compare, export.")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    table = commands.add_parser(
        "table",
        help="one row per run: the keys that differ and the metrics, best marked",
        description="One row per run: the config keys that differ, then the metrics, with the best of each marked.",
    )
    table.add_argument("paths", nargs="+", metavar="PATH", help="a run or sweep folder, outputs, a results.json")
    table.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    table.add_argument("--sort", metavar="KEY", help="a config key or metric; ranked metrics come best first")
    table.add_argument("--columns", metavar="KEY,...", help="keys and metrics to show, patterns with * too")
    table.add_argument(
        "--target-fvu",
        type=float,
        metavar="X",
        help="held-out fvu of tokens_to_fvu and seconds_to_fvu (default: the largest final one of the runs)",
    )
    table.set_defaults(run=run_table)
    return top


def run_table(words: argparse.Namespace) -> None:
    from analysis.table import render, table

    columns = [name for name in words.columns.split(",") if name] if words.columns is not None else None
    frame = table(words.paths, sort=words.sort, columns=columns, target_fvu=words.target_fvu)
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    print(render(frame, words.format, width=width, color=terminal and "NO_COLOR" not in os.environ))
    if words.format == "csv":  # has no place of its own for them
        for warning in frame.attrs["warnings"]:
            print(f"warning: {warning}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0, or 2 for a mistake, told in one sentence."""
    words = parser().parse_args(argv)
    try:
        words.run(words)
    except UserError as error:
        if words.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
