"""Findings as text, and as the lines and marks of a table."""

from collections.abc import Iterable, Mapping

from analysis.auditing.finding import LEVELS, Finding, run_names, who
from analysis.text import clean, markdown_cell

JSON = {"code": "code", "level": "level", "sentence": "sentence", "do": "mend", "study": "study", "runs": "runs"}
"""Names in JSON -> fields of a Finding."""
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


def printed(
    findings: list[Finding], n_runs: int, format: str = "text", studies: Mapping[str, int] | None = None
) -> str:
    """Findings grouped by study and level, with what to do, as text, markdown or json.

    Args:
        studies: the runs of each imported study, and under an empty name those of this project.
    """
    if format == "json":
        import json

        content = [{name: getattr(finding, field) for name, field in JSON.items()} for finding in findings]
        return json.dumps({"runs": n_runs, "findings": content}, indent=2, ensure_ascii=False)
    named = [study for study in studies or {} if study]
    of = f" of {len(named)} studies" if len(named) > 1 else ""
    lines = [f"{n_runs} run{'s' * (n_runs != 1)}{of} audited: {counted(findings) or 'nothing found'}"]
    several = len(studies or {}) > 1
    for study, n in (studies or {"": n_runs}).items():
        own = [f for f in findings if f.study == study]
        if several:
            title = clean(study, 100) or "runs"
            lines += ["", heading(f"{title}: {n} run{'s' * (n != 1)}, {counted(own) or 'nothing found'}", 2, format)]
        lines += by_level(own, n, format, several)
    across = [f for f in findings if f.study is None]
    if across:
        lines += ["", heading(f"several studies: {counted(across)}", 2, format)]
        lines += by_level(across, n_runs, format, True)
    return "\n".join(lines)


def counted(findings: list[Finding]) -> str:
    """`2 errors, 1 note`."""
    return ", ".join(
        f"{count} {level}{'s' * (count != 1)}"
        for level in LEVELS
        if (count := sum(finding.level == level for finding in findings))
    )


def by_level(findings: list[Finding], n_runs: int, format: str, nested: bool) -> list[str]:
    """The lines of findings under a heading for each level."""
    lines = []
    for level in LEVELS:
        of_level = [finding for finding in findings if finding.level == level]
        if of_level:
            lines += ["", heading(f"{level}s", 3 if nested else 2, format), *[""] * (format == "markdown")]
            lines += [line_of(finding, n_runs, format) for finding in of_level]
    return lines


def heading(words: str, level: int, format: str) -> str:
    return f"{'#' * level} {markdown_cell(words)}" if format == "markdown" else words


def line_of(finding: Finding, n_runs: int, format: str) -> str:
    """One finding as a list item of Markdown, or as text wrapped beside its code."""
    text = clean(f"{whose(finding, n_runs)}{finding.advice()}", 1000)
    if format == "markdown":
        return f"- `{finding.code}` {markdown_cell(text)}"
    import textwrap

    body = textwrap.wrap(text, 96, break_long_words=False, break_on_hyphens=False)
    return f"  {finding.code:<18} " + ("\n" + " " * 21).join(body)


def whose(finding: Finding, n_runs: int) -> str:
    """The runs before a sentence: numbers within a study, else ids; nothing where all runs are meant."""
    if not finding.study or len(finding.runs) == n_runs > 1:
        return who(finding.runs, n_runs)
    return f"{run_names(run.rpartition('/')[2] for run in finding.runs)}: "
