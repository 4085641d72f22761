"""`python -m analysis COMMAND ...`: tables, notes, figures and more from run folders."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote

from analysis.commands import audit, compare, dashboard, features, import_, notes, plots, publish, report, table
from sae_sweeps.errors import DataError, UserError
from sae_sweeps.storage.files import about_path
from sae_sweeps.storage.printing import replace_unprintable
from sae_sweeps.storage.secrets import without_secrets

READ_NOTES = ("audit", "import")
"""Commands that read a file of run notes as it is."""
COMMANDS = (table, notes, plots, report, features, compare, audit, import_, publish, dashboard)


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


def check_no_notes(paths: Iterable[str]) -> None:
    """Raises DataError for a text file, which `import` has to read before other commands can."""
    from analysis.reading.import_files import is_import

    for path in map(Path, paths):
        if path.suffix.lower() in ("", ".txt", ".md") and path.is_file() and not is_import(path):
            raise DataError(
                f"{path} is neither a results.json nor a manifest.json; if it holds run notes, read it with "
                f"`python -m analysis import {quote(str(path))}` and give the file that this writes."
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status, 2 for a mistake, which is printed as one sentence."""
    replace_unprintable()
    words = parser().parse_args(with_values(sys.argv[1:] if argv is None else argv))
    try:
        if words.command not in READ_NOTES:
            check_no_notes(getattr(words, "paths", ()))
        return words.run(words) or 0
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # as of `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        message = about_path(error) if isinstance(error, OSError) else str(error)
        if words.debug or message is None:
            raise
        print(f"error: {without_secrets(message)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
