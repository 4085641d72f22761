"""What is particular to the notes that `analysis.output.notes` wrote before they had the records' shape."""

import re
from collections.abc import Iterator

OWN_RUN = re.compile(r"^Run id: ")
"""A line that only notes of this project have; their text repeats figures of their dicts, so none is read there."""
OWN_LINES = re.compile(r"^(Run id|State|Against the baseline)\b.*(?:\n {2,}\S.*)*\n?", re.M)
"""Their lines that are not part of the description."""
STATE = re.compile(r"^State: (\w+)")
AUDITED = re.compile(r"^(?:error|warning|note), ([a-z0-9-]+): ")
"""A finding of the audit in a `Warnings:` list."""


def own_text(lines: list[tuple[int, str]]) -> list[str]:
    """Those of a section's lines that describe its run."""
    prose = "\n".join(text for _, text in lines)
    return OWN_LINES.sub("", prose).partition("\nWarnings:\n")[0].splitlines()


def own_warnings(listed: str) -> Iterator[str]:
    """The warnings listed in the notes, without the findings of the audit, which are computed anew."""
    for item in re.findall(r"^- (.*(?:\n {2,}.*)*)", listed, re.M):
        words = " ".join(item.split())
        found = AUDITED.match(words)
        if found is None or found[1] == "run-warning":
            yield words[found.end() :] if found else words
