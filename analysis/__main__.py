"""`python -m analysis COMMAND ...`: what people read of runs. Nothing heavy is imported before it is needed."""

import argparse
import gc
import os
import sys
from collections.abc import Sequence

from analysis.commands import audit, dashboard, import_, notes, plots, publish, report, table
from sae_sweeps.errors import UserError

COMMANDS = (table, notes, plots, report, audit, import_, publish, dashboard)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m analysis", description="Read run folders: compare, export.")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top


def with_values(argv: Sequence[str]) -> list[str]:
    """`--sort -fvu` as `--sort=-fvu`: argparse would take the value for an option."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--sort" and word.startswith("-") and not word.startswith("--"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its status (0 where it says nothing), or 2 for a mistake, told in one sentence."""
    gc.set_threshold(50_000)  # of thousands of records none is garbage, and to look for it takes a tenth of the time
    words = parser().parse_args(with_values(sys.argv[1:] if argv is None else argv))
    try:
        return words.run(words) or 0
    except UserError as error:
        if words.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.modules["pyarrow"] = None  # type: ignore[assignment]  # pandas imports it: a tenth of a second, for nothing here
    sys.exit(main())
