"""The first screen of a report: what was compared, the effect of each variant, and what forbids a conclusion."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.auditing.finding import Finding
from analysis.metrics import short_name
from analysis.plots.effects import Against, Effect, comparisons
from analysis.plots.lines import short
from analysis.plots.study import Study, Variant
from analysis.text import cell, clean

DOUBTS = (
    "single-seed",
    "within-seeds",
    "floor",
    "no-control",
    "eval-missing",
    "few-tokens",
    "other-tokens",
    "identical",
)
"""Warnings and notes that forbid a conclusion about a difference, beside every error and every unequal budget."""
LISTED = 5
NAMED = 3


@dataclass
class Answer:
    """What the template draws; all texts are data."""

    tables: list["EffectTable"]
    verdicts: list[str]
    doubts: list[str]
    more: int
    """Doubts beyond those listed; the audit has all."""


@dataclass
class EffectTable:
    caption: str
    heads: list[str]
    baseline: list[str]
    """The baseline's means."""
    rows: list[tuple[str, list[tuple[str, str, str]]]]
    """Label of a variant, and for each metric (kind, difference, interval); kind is better, worse, unclear or none."""


def answer(study: Study, found: Sequence[Finding]) -> Answer:
    """The answer that the runs give, from the same numbers as the figure `effects`."""
    groups, alone = comparisons(study)
    doubts = [
        finding.text(len(study.full))
        for finding in found
        if finding.level == "error" or finding.code in DOUBTS or finding.code.startswith("budget")
    ]
    return Answer([table(study, one) for one in groups], verdicts(groups, alone), doubts[:LISTED], len(doubts[LISTED:]))


def table(study: Study, one: Against) -> EffectTable:
    row = one.baseline.rows[0]
    budgets = [(name, study.column(name)[row]) for name in ("tokens", "steps")]
    budget = ", ".join(f"{cell(value, 'whole')} {name}" for name, value in budgets if value == value)
    caption = f"Against {clean(short(one.baseline), 80)}" + (f": each with {budget}" if budget else "")
    return EffectTable(
        caption,
        [short_name(name) for name in one.metrics],
        [f"{study.mean(one.baseline, name):.4g}" for name in one.metrics],
        [
            (
                clean(short(variant), 80),
                [shown(one.effects.get((variant.label, name)), study, variant, name) for name in one.metrics],
            )
            for variant in one.variants
        ],
    )


def shown(effect: Effect | None, study: Study, variant: Variant, name: str) -> tuple[str, str, str]:
    if effect is None:
        return "none", study.absence(variant, name), ""
    low, high = effect.difference - effect.reach, effect.difference + effect.reach
    if low != low:
        return "unclear", f"{effect.difference:+.3g}", "one seed"
    kind = "unclear" if not effect.clear else "better" if effect.improves else "worse"
    return kind, f"{effect.difference:+.3g}", f"{low:+.3g} to {high:+.3g}"


def verdicts(groups: Sequence[Against], alone: Sequence[Variant]) -> list[str]:
    """How many differences are clear, and what was not compared."""
    effects = [effect for one in groups for effect in one.effects.values()]
    tried = [effect for effect in effects if effect.reach == effect.reach]
    lines = []
    if not groups:
        lines.append("No variant has a baseline that was trained like it, so the report shows no effect.")
    elif not tried:
        lines.append("One seed each: no difference has an interval, and none may be called one.")
    else:
        clear = [effect for effect in tried if effect.clear]
        better = sum(bool(effect.improves) for effect in clear)
        by_chance = 0.05 * len(tried)
        lines.append(
            f"{len(clear)} of {len(tried)} differences have a 95 % interval on one side of 0 ({better} better, "
            f"{len(clear) - better} worse); by chance alone it would be about {by_chance:.2g}."
        )
        if len(tried) < len(effects):
            single = len(effects) - len(tried)
            subject = "1 difference has" if single == 1 else f"{single} differences have"
            lines.append(f"{subject} one seed on a side, and no interval.")
    if groups and alone:
        names = ", ".join(clean(variant.label, 40) for variant in alone[:NAMED])
        more = f" and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
        lines.append(f"No baseline was trained like {names}{more} (other sizes or budgets), so they are left out here.")
    return lines
