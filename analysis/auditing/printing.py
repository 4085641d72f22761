"""Findings as text, and as the lines and marks of a table."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from analysis.auditing.finding import LEVELS, Finding

if TYPE_CHECKING:
    pass

TOLD = 20
"""Lines that a table has for findings."""


def sentences(findings: Iterable[Finding], n_runs: int) -> list[str]:
    """What a table says under its numbers: errors, warnings and runs that are still to come, a line each, worst first.

    Beyond TOLD lines it says how many there are.
    """
    told = [f.text(n_runs) for f in findings if f.level != "note" or f.code == "pending"]
    if len(told) <= TOLD:
        return told
    return [*told[: TOLD - 1], f"and {len(told) - TOLD + 1} more findings: `python -m analysis audit` has them all."]


def marks(findings: Iterable[Finding]) -> dict[str, str]:
    """The worst level of each run that a finding of level error or warning names."""
    worst: dict[str, str] = {}
    for finding in findings:
        for run_id in finding.runs if finding.level != "note" else ():
            if LEVELS.index(finding.level) < LEVELS.index(worst.get(run_id, "note")):
                worst[run_id] = finding.level
    return worst


def printed(findings: list[Finding], n_runs: int, format: str = "text") -> str:
    """Findings grouped by level, as text, markdown or json."""
    if format == "json":
        import json

        content = [{"code": f.code, "level": f.level, "sentence": f.sentence, "runs": list(f.runs)} for f in findings]
        return json.dumps({"runs": n_runs, "findings": content}, indent=2, ensure_ascii=False)
    counted = ", ".join(
        f"{count} {level}{'s' * (count != 1)}"
        for level in LEVELS
        if (count := sum(finding.level == level for finding in findings))
    )
    lines = [f"{n_runs} run{'s' * (n_runs != 1)} audited: {counted or 'nothing found'}"]
    for level in LEVELS:
        of_level = [finding for finding in findings if finding.level == level]
        if of_level:
            lines += ["", f"## {level}s" if format == "markdown" else f"{level}s", *[""] * (format == "markdown")]
            lines += [line_of(finding, n_runs, format) for finding in of_level]
    return "\n".join(lines)


def line_of(finding: Finding, n_runs: int, format: str) -> str:
    told = finding.text(n_runs)
    if format == "markdown":
        from analysis.text import markdown_cell

        return f"- `{finding.code}` {markdown_cell(told)}"
    import textwrap

    body = textwrap.wrap(told, 96, break_long_words=False, break_on_hyphens=False)
    return f"  {finding.code:<18} " + ("\n" + " " * 21).join(body)
