"""The report: one self-contained HTML file."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.auditing.audit import audit
from analysis.auditing.comparison import baselines_of
from analysis.auditing.finding import Finding
from analysis.auditing.run import runs_of
from analysis.grouped import grouped
from analysis.output.html import TABLE_CSS, TABLE_JS, html_table, rendered
from analysis.plots.draw import known
from analysis.plots.study import Study
from analysis.report.answer import answer
from analysis.report.figures import DEFAULT, FEW, MANY, pictures
from analysis.report.runs import Section, common_provenance, section, values_of
from analysis.report.summary import sentences
from analysis.tables.baseline import baseline_row
from analysis.tables.compare import compared, load, unfit_runs
from analysis.text import clean
from sae_sweeps.storage.files import write_text

HERE = Path(__file__).parent
SECTIONS = 60
"""The most runs that get a section of their own by default."""
LIMIT = 1_000_000
"""The page's size in bytes up to which figures are added."""
SHOWN = 3
"""Sentences of one audit rule that are visible at once; the others can be unfolded."""
UNFOLDED = 40
"""The most sentences of one audit rule that can be unfolded."""
ROOM = 200_000
"""Bytes that figures may take on a page of any size."""


def write_report(paths: Iterable[str | Path], file: str | Path, **options: Any) -> Path:
    """Write the report about the runs of the paths, with the arguments of `report`, and return its path."""
    write_text(file, report(paths, **options))
    return Path(file)


def report(
    paths: Iterable[str | Path],
    title: str | None = None,
    where: str | None = None,
    sort: str | None = None,
    baseline: str | None = None,
    figures: Sequence[str] | None = None,
    runs: int = SECTIONS,
    interactive: bool = False,
) -> str:
    """The report about the runs of the paths (see `records`) as HTML.

    Args:
        where, sort: which runs, in which order, as in `analysis.tables.table.table`.
        baseline: the run that configs are compared with: an id or a filter; by default the first of `baselines_of`.
        figures: their names; by default those of DEFAULT that have data and fit, FEW of them for many runs.
        runs: how many runs get a section of their own.
        interactive: add plotly's figures to hover over; 5 MB.

    Raises DataError and DamagedFile as `records` does, ConfigError for an unknown figure, column or run.
    """
    places = [Path(path) for path in paths]
    names = known(figures) if figures is not None else None
    loaded = load(places, where)
    full = loaded.frame
    study = Study(full)
    table = compared(loaded, sort=sort)
    compared_with = base_row(full, baseline)
    chosen = rows_with_sections(study, runs)
    sections = sections_of(study, chosen, compared_with)
    links = {study.full["run", "run_id"].iloc[row]: f"#{s.anchor}" for row, s in zip(chosen, sections, strict=True)}
    states = list(full["run", "state"])
    found = audit(full, loaded.varied)
    content: dict[str, Any] = {
        "title": clean(title or title_of(places), 120),
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "live": sum(state in ("queued", "running") for state in states),
        "answer": answer(study, found),
        "summary": sentences(study, unfit_runs(full)),
        "findings": by_rule(found, len(full)),
        "shown": SHOWN,
        "unfolded": UNFOLDED,
        "table": html_table(replace(table, warnings=[]), links),  # the audit section lists them
        "table_css": TABLE_CSS,
        "table_js": TABLE_JS,
        "sections": sections,
        "n_runs": len(full),
        "baseline": clean(full["run", "run_id"].iloc[compared_with], 40) if compared_with is not None else None,
        "common": common_provenance(study),
        "paths": [clean(path, 200) for path in places],
        "pictures": [],
        "left_out": [],
        "charts": "",
    }
    if names is None:
        names = list(FEW if len(full) > MANY else DEFAULT)
        content["left_out"] = [name for name in DEFAULT if name not in names]
    room = max(LIMIT - len(page(content).encode()), ROOM)
    content["pictures"], too_large = pictures(study, names, room)
    content["left_out"] += too_large
    if study.damaged:  # by then among the runs' warnings
        content["findings"] = by_rule(audit(full, loaded.varied), len(full))
    if interactive:
        from analysis.report.interactive import charts

        content["charts"] = charts(study)
    return page(content)


def page(content: dict[str, Any]) -> str:
    """The page as HTML. All text is escaped but the table, the sparklines and the charts."""
    style, script = ((HERE / name).read_text() for name in ("report.css", "report.js"))
    return rendered(HERE / "report.html.jinja", **content, style=style, script=script)


def title_of(paths: Sequence[Path]) -> str:
    return f"Report of {', '.join(path.resolve().name for path in paths[:3])}" + (" ..." if len(paths) > 3 else "")


def by_rule(found: Sequence[Finding], n_runs: int) -> list[tuple[str, str, list[str]]]:
    """The findings of the audit among `n_runs`, grouped by rule: level, code, sentences."""
    rules = grouped(((finding.level, finding.code), finding.text(n_runs)) for finding in found)
    return [(level, code, texts) for (level, code), texts in rules.items()]


def base_row(full: pd.DataFrame, baseline: str | None) -> int | None:
    """The run to compare configs with: the one named, the first of `baselines_of`, or the first with a penalty."""
    if baseline is not None:
        return baseline_row(full, [[row] for row in range(len(full))], baseline)
    runs = runs_of(full)
    known = [row for row, run in enumerate(runs) if run.config.get("penalty")]
    found = baselines_of([runs[row] for row in known])[0]
    return next((row for row in known if not found or runs[row] is found[0]), None)


def rows_with_sections(study: Study, n: int) -> list[int]:
    """All runs where they are few; otherwise those of lowest fvu and, up to a fifth, those without results."""
    total = len(study.full)
    if total <= n:
        return list(range(total))
    states = list(study.full["run", "state"])
    without = [row for row in range(total) if states[row] != "completed"][: n // 5]
    best = [row for variant in study.ranked(study.variants) for row in variant.rows if states[row] == "completed"]
    return sorted([*without, *best[: n - len(without)]])


def sections_of(study: Study, rows: Sequence[int], compared_with: int | None) -> list[Section]:
    variant_of = {row: variant for variant in study.variants for row in variant.rows}
    common = common_provenance(study)
    base = values_of(study.full, compared_with)["config"] if compared_with is not None else None
    return [section(study, row, variant_of[row], None if row == compared_with else base, common) for row in rows]
