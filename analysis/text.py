"""Values and foreign text as table cells. Names and texts from runs are data: never markup, formulas or line breaks."""

import math
import re
from typing import Any

from sae_sweeps.storage.secrets import without_credentials

LONGEST = 60
FORMULA = tuple("=+-@＝＋－＠")
"""Characters that begin a formula in a spreadsheet."""


def clean(value: object, longest: int = LONGEST) -> str:
    """One printable line without secrets: blanks for line breaks and tabs, nothing for other control and direction
    characters."""
    words = without_credentials(" ".join(str(value).split()))
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
    """The text escaped for a Markdown table."""
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~$])", r"\\\1", words)


def csv_cell(value: Any) -> Any:
    """A number unchanged; text in one line, with an apostrophe before what a spreadsheet would run as a formula."""
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if value is None or value != value:
        return ""
    if isinstance(value, int | float):
        return int(value) if abs(value) < 2**53 and value == int(value) and not isinstance(value, bool) else value
    words = clean(value, 32_000)  # what a spreadsheet's cell holds
    return f"'{words}" if words.startswith(FORMULA) else words


def wrapped(name: str, longest: int = 9) -> str:
    """A header in lines of about `longest` characters, broken after `_`, `.` and `/`."""
    lines = [""]
    for part in re.findall(r"[^_./]*[_./]?", clean(name)):
        if part and lines[-1] and len(lines[-1] + part) > longest:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def signed(value: float) -> str:
    """A difference in three digits, with its sign."""
    if value != value or value == 0:
        return "0" if value == 0 else ""
    return f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+#.3g}".rstrip(".")


def interval(value: float, low: float, high: float) -> str:
    """A difference and, where it is known, the interval that it lies in."""
    return signed(value) + (f" [{signed(low)}, {signed(high)}]" if low == low and high == high else "")


def with_spread(mean: float, std: float, n: float) -> str:
    """`0.1924 ± 0.0012 (3)`: the spread in two digits, the mean as far as they go; `0.1924 (1)` for a single run."""
    if mean != mean:
        return ""
    if std != std or std == 0:
        number = cell(mean, "whole" if mean == int(mean) else "number")
        return f"{number} ± 0 ({n:.0f})" if std == 0 else f"{number} ({n:.0f})"
    places = max(0, 1 - math.floor(math.log10(std)))
    if places > 6:
        return f"{cell(mean)} ± {std:.2g} ({n:.0f})"
    return f"{mean:,.{places}f} ± {std:,.{places}f} ({n:.0f})"


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "[": "{[}", "]": "{]}", "*": "{*}", "±": r"$\pm$", "Δ": r"$\Delta$",
    "…": r"\ldots{}", "✓": r"$^{\dagger}$",
}  # fmt: skip
"""Characters that LaTeX interprets; also brackets and stars, which are arguments after a line break."""


def latex_cell(words: str) -> str:
    """The text escaped for LaTeX."""
    return "".join(LATEX.get(character, character) for character in words)
