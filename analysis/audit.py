"""What makes a comparison unsound: every rule of `analysis/rules.py`, applied to any number of runs at once."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.columns import of_kind
from analysis.evidence import Evidence
from analysis.records import ABSENT
from analysis.text import clean

if TYPE_CHECKING:
    import pandas as pd

LEVELS = ("error", "warning", "note")
"""error: the number is not what it says it is, or the comparison is not one; warning: it may mislead; note: to know."""

TOLD = 20
"""Lines that a table has for findings."""

SEEDS = ("seed", "data_seed")
"""Keys in which repeated runs of one configuration differ."""

NOT_THE_METHOD = (*SEEDS, "outputs", "device", "title", "tags", "dry_run", "logger", "cluster", "activations", "eval")
"""Keys and groups that say which repeat it is, where it lies or how it is judged, not what was trained."""


@dataclass(frozen=True)
class Finding:
    code: str
    """Stable: scripts may name it."""
    level: str
    """One of LEVELS."""
    sentence: str
    runs: tuple[str, ...]
    """Run ids concerned."""

    def told(self, n_runs: int, longest: int = 400) -> str:
        """The sentence with the runs that it is about, among `n_runs`."""
        return clean(f"{who(self.runs, n_runs)}{self.sentence}", longest)


def who(runs: Collection[str], n_runs: int) -> str:
    """`a, b: `, or nothing where all runs are meant."""
    if len(runs) == n_runs > 1:
        return ""
    return ", ".join(list(runs)[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "") + ": "


@dataclass
class Run:
    """One row of the frame, as rules see it: absent cells are absent keys."""

    run_id: str
    state: str
    step: int | None
    total_steps: int | None
    title: str = ""
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    source: str | None = None
    """Whose word an imported record is; None for a run of this project."""
    description: str = ""
    nulls: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=lambda: Evidence(None))

    @property
    def measured(self) -> bool:
        """Whether it stands in the comparison with numbers of its own."""
        return bool(self.metrics)

    @cached_property
    def steps(self) -> float | None:
        """Optimizer steps taken."""
        return self.metrics.get("steps", self.step)

    @cached_property
    def tokens(self) -> float | None:
        """Tokens trained on, as recorded, or steps times the batch, or as configured."""
        batch = number(self.config.get("batch_size"))
        product = None if batch is None or self.steps is None else batch * self.steps
        return next(
            (n for n in (self.metrics.get("tokens"), product, number(self.config.get("num_tokens"))) if n is not None),
            None,
        )

    @property
    def diverged(self) -> bool:
        """Whether its loss stopped being a number."""
        return self.state == "diverged" or ("final_loss" in self.nulls and self.steps != 0)


def number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value == value else None


class Comparison:
    """All runs of an audit, and what the command that made them varied."""

    def __init__(self, runs: list[Run], varied: Collection[str] = ()):
        self.runs, self.varied = runs, varied

    @cached_property
    def measured(self) -> list[Run]:
        return [run for run in self.runs if run.measured]

    @cached_property
    def configurations(self) -> list[list[Run]]:
        """The measured runs, those together that differ in their seeds alone."""
        keys = self.method_keys
        found: dict[tuple[Any, ...], list[Run]] = {}
        for run in self.measured:
            found.setdefault((run.source, *(run.config.get(key) for key in keys)), []).append(run)
        return list(found.values())

    @cached_property
    def keys(self) -> list[str]:
        """The config keys of the measured runs."""
        shapes = dict.fromkeys(tuple(run.config) for run in self.measured)  # few: one for each kind of run
        return list(dict.fromkeys(key for shape in shapes for key in shape))

    @cached_property
    def method_keys(self) -> list[str]:
        """Config keys, apart from NOT_THE_METHOD, in which measured runs differ."""
        configs = [run.config for run in self.measured]
        judged = (key for key in self.keys if key.partition(".")[0] not in NOT_THE_METHOD)
        return [key for key in judged if len({config.get(key, ABSENT) for config in configs}) > 1]


def audit(full: "pd.DataFrame", varied: Iterable[str] = ()) -> list[Finding]:
    """Everything that the rules find in the runs of a frame of `analysis.records.records`, worst first.

    Args:
        varied: keys that the sweep varies on purpose (`varied_by` reads them from its manifest). They may differ;
            tokens and steps may not.
    """
    from analysis.rules import RULES

    comparison = Comparison(runs_of(full), set(varied))
    found = [
        Finding(rule.code, rule.level, clean(sentence, 400), tuple(dict.fromkeys(run.run_id for run in runs)))
        for rule in RULES
        for sentence, runs in rule.find(comparison)
    ]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def sentences(findings: Iterable[Finding], n_runs: int) -> list[str]:
    """What a table says under its numbers: errors, warnings and runs that are still to come, a line each, worst first.

    Beyond TOLD lines it says how many there are.
    """
    told = [f.told(n_runs) for f in findings if f.level != "note" or f.code == "pending"]
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


def runs_of(full: "pd.DataFrame") -> list[Run]:
    """The rows of a frame as rules see them."""
    parts = []
    for kind in ("run", "config", "metrics"):
        columns = of_kind(full, kind)
        names = [name for _, name in columns]
        rows = full[columns].to_numpy().tolist() if columns else [[]] * len(full)
        parts.append([{name: value for name, value in zip(names, row, strict=True) if value == value} for row in rows])
    return [run_of(*row) for row in zip(*parts, strict=True)]


def run_of(fields: dict[str, Any], config: dict[str, Any], metrics: dict[str, float]) -> Run:
    source = None if fields.get("source") == "run" else fields.get("source")
    folder = None if source or fields.get("folder") is None else Path(fields["folder"])
    return Run(
        run_id=fields["run_id"],
        state=fields["state"],
        step=fields.get("step"),
        total_steps=fields.get("total_steps"),
        title=fields.get("title") or "",
        error=fields.get("error"),
        warnings=list(fields.get("warnings") or []),
        source=source,
        description=fields.get("description") or "",
        nulls=list(fields.get("nulls") or []),
        config=config,
        metrics=metrics,
        evidence=Evidence(folder),
    )


def varied_by(paths: Iterable[str | Path]) -> set[str]:
    """The keys that the sweeps of the paths vary: of a sweep's folder, of a folder with sweeps, of an outputs tree."""
    from analysis.records import read_manifest

    found: set[str] = set()
    for path in map(Path, paths):
        places = [path, path / "manifest.json", *path.glob("*/manifest.json"), *path.glob("sweeps/*/manifest.json")]
        for place in places:
            if place.name == "manifest.json" and place.is_file():
                found.update(map(str, read_manifest(place).get("varied") or []))
    return found


def tell(findings: list[Finding], n_runs: int, format: str = "text") -> str:
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
    told = finding.told(n_runs)
    if format == "markdown":
        from analysis.text import markdown_cell

        return f"- `{finding.code}` {markdown_cell(told)}"
    import textwrap

    body = textwrap.wrap(told, 96, break_long_words=False, break_on_hyphens=False)
    return f"  {finding.code:<18} " + ("\n" + " " * 21).join(body)
