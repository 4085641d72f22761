"""Tables in a Markdown file, each between two markers, replaced when it is measured again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sae_sweeps.storage.files import write_text


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def write(path: Path, name: str, lines: list[str]) -> None:
    """Put the lines between the markers of `name`; at the end of the file where it has none."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    text = path.read_text() if path.exists() else ""
    block = "\n".join([begin, *lines, end])
    if begin in text:
        before, _, rest = text.partition(begin)
        text = before + block + rest.partition(end)[2]
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    write_text(path, text)
