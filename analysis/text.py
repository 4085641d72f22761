"""Values and foreign text as table cells. Names and texts from runs are data: never markup, formulas or line breaks."""

import re
from typing import Any

LONGEST = 60


def clean(value: object, longest: int = LONGEST) -> str:
    """One printable line: blanks for line breaks and tabs, nothing for other control and direction characters."""
    words = " ".join(str(value).split())
    words = "".join(c for c in words if c.isprintable())
    return words if len(words) <= longest else words[: longest - 1] + "…"


def cell(value: Any, kind: str = "number") -> str:
    """A value in a few characters: `config` as written, `whole` numbers with separators, a `number` in four digits."""
    if value is None:
        return "null" if kind == "config" else ""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float):
        return clean(value)
    if value != value:
        return ""
    if kind == "config":
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if kind == "whole" or abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:#.4g}".rstrip(".")


def markdown_cell(words: str) -> str:
    """Text that Markdown shows as it is, within a table too."""
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~$])", r"\\\1", words)


def csv_cell(value: Any) -> Any:
    """A number as it is; text in one line, with an apostrophe before what a spreadsheet would take for a formula."""
    if value is None or value != value:
        return ""
    if isinstance(value, int | float):
        return int(value) if abs(value) < 2**53 and value == int(value) and not isinstance(value, bool) else value
    words = clean(value, 32_000)  # what a spreadsheet's cell holds
    return f"'{words}" if words.startswith(("=", "+", "-", "@")) else words


def wrapped(name: str, longest: int = 9) -> str:
    """A header in lines of about `longest` characters, broken after `_`, `.` and `/`."""
    lines = [""]
    for part in re.findall(r"[^_./]*[_./]?", clean(name)):
        if lines[-1] and len(lines[-1] + part) > longest:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
