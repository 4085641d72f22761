"""Findings as text, and as the lines and marks of a table."""

from collections.abc import Iterable

from analysis.auditing.finding import LEVELS, Finding

MAX_LINES = 20
"""The most lines of findings under a table."""


def sentences(findings: Iterable[Finding], n_runs: int) -> list[str]:
    """The lines under a table: errors, warnings and pending runs, one each, worst first.

    Beyond MAX_LINES the last line gives the number of the others.
    """
    lines = [f.text(n_runs) for f in findings if f.level != "note" or f.code == "pending"]
    if len(lines) <= MAX_LINES:
        return lines
    n_left = len(lines) - MAX_LINES + 1
    return [*lines[: MAX_LINES - 1], f"and {n_left} more findings: `python -m analysis audit` has them all."]


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
    """One finding as a list item of Markdown, or as text wrapped beside its code."""
    text = finding.text(n_runs)
    if format == "markdown":
        from analysis.text import markdown_cell

        return f"- `{finding.code}` {markdown_cell(text)}"
    import textwrap

    body = textwrap.wrap(text, 96, break_long_words=False, break_on_hyphens=False)
    return f"  {finding.code:<18} " + ("\n" + " " * 21).join(body)
