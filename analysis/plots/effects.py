"""What each variant changes: its difference to the baseline that was trained alike, with its interval over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.auditing.comparison import NOT_THE_METHOD, baselines_of
from analysis.auditing.run import Run, runs_of
from analysis.metrics import BUDGETS, FIRST, direction, short_name
from analysis.plots.lines import short
from analysis.plots.study import Missing, Study, Variant
from analysis.plots.style import COLOURS, DIM, GREY, Room, finish, panels
from analysis.reading.record import ABSENT
from analysis.tables.baseline import reach
from sae_sweeps.config.identity import LEFT_OUT

PENALTY = ("penalty", "schedule", "group_layer")
"""Keys and groups in which a variant may differ from its baseline."""
NOT_AN_EFFECT = ("tokens_to_fvu", "seconds_to_fvu")
MOST = 6
"""Metrics that are shown, the first of FIRST that the runs have."""
ROWS = 24
"""The most variants of a figure."""


@dataclass(frozen=True)
class Effect:
    """A variant's difference to its baseline in the mean of one metric."""

    difference: float
    reach: float
    """Half of the 95 % interval (Welch's t); nan where either has a single run."""
    better: str | None
    """lower, higher, one, or None where the metric is not ranked."""
    base: float
    """The baseline's mean."""

    @property
    def clear(self) -> bool:
        """Whether the interval is on one side of 0."""
        return abs(self.difference) > self.reach

    @property
    def improves(self) -> bool | None:
        """Whether the variant is better than its baseline; None for a metric that is not ranked."""
        if self.better is None:
            return None
        if self.better == "one":
            return abs(self.base + self.difference - 1) < abs(self.base - 1)
        return (self.difference < 0) == (self.better == "lower")


@dataclass(frozen=True)
class Against:
    """A baseline and the variants that were trained like it but for the penalty, at the same tokens and steps."""

    baseline: Variant
    variants: list[Variant]
    metrics: list[str]
    effects: dict[tuple[str, str], Effect]
    """By label of the variant and metric, where both have values."""


def comparisons(study: Study) -> tuple[list[Against], list[Variant]]:
    """Each baseline with its variants; and the variants that no baseline was trained like."""
    runs = runs_of(study.full)
    found, _ = baselines_of(runs)
    ids = {id(run) for run in found}
    bases = [variant for variant in study.variants if all(id(runs[row]) in ids for row in variant.rows)]
    keys = trained_by(runs)
    alike: dict[Any, list[Variant]] = {}
    for variant in study.variants:
        if variant not in bases:
            alike.setdefault(trained(study, runs, variant, keys), []).append(variant)
    out = []
    for base in bases:
        variants = alike.pop(trained(study, runs, base, keys), [])
        found_here = against(study, base, variants)
        if found_here.metrics:
            out.append(found_here)
    alone = [variant for variants in alike.values() for variant in variants]
    return out, [variant for variant in alone if study.values(variant, "fvu")]


def trained_by(runs: Sequence[Run]) -> list[str]:
    """Config keys in which runs differ, without the penalty's, seeds, and what is not trained by."""
    names = dict.fromkeys(key for run in runs for key in run.config)
    left_out = {*PENALTY, *NOT_THE_METHOD, *LEFT_OUT, "train.selection"}
    judged = [key for key in names if not {key, key.partition(".")[0]} & left_out]
    return [key for key in judged if len({str(run.config.get(key, ABSENT)) for run in runs}) > 1]


def trained(study: Study, runs: Sequence[Run], variant: Variant, keys: Sequence[str]) -> tuple[str, ...]:
    """What a variant and its baseline have in common: values of `keys`, the budget, and the study."""
    with_results = [row for row in variant.rows if study.state(row) == "completed"]
    row = (with_results or variant.rows)[0]
    budget = [str(study.column(name)[row]) for name in BUDGETS]
    return (*(str(runs[row].config.get(key, ABSENT)) for key in keys), *budget, str(runs[row].study))


def against(study: Study, base: Variant, variants: list[Variant]) -> Against:
    measured = set(study.metric_names())
    ranked = [n for n in FIRST if n in measured and direction(n) and n not in NOT_AN_EFFECT and study.values(base, n)]
    metrics = [name for name in ranked if any(study.values(variant, name) for variant in variants)]
    differing = [n for n in metrics if len({value for v in (base, *variants) for value in study.values(v, n)}) > 1]
    metrics = (differing or metrics)[:MOST]  # where all runs have one value there is nothing to see
    effects = {}
    for variant in variants:
        for name in metrics:
            own, other = study.values(variant, name), study.values(base, name)
            if own:
                difference = float(np.mean(own) - np.mean(other))
                half = float(reach(deviation(own), len(own), deviation(other), len(other)))
                effects[variant.label, name] = Effect(difference, half, direction(name), float(np.mean(other)))
    return Against(base, variants, metrics, effects)


def deviation(values: Sequence[float]) -> Any:
    """The sample standard deviation, nan for a single value."""
    return np.std(values, ddof=1) if len(values) > 1 else np.float64("nan")


def effects(study: Study) -> Figure:
    """A panel for each metric, a point for each variant: its difference to its baseline, with the 95 % interval."""
    found, _ = comparisons(study)
    if not found:
        raise Missing("no variant has a baseline that was trained like it")
    metrics = list(dict.fromkeys(name for one in found for name in one.metrics))[:MOST]
    everything = [(one, variant) for one in found for variant in one.variants]
    rows = everything[:ROWS]
    labels = [short(v) + (f"\nagainst {one.baseline.label}" if len(found) > 1 else "") for one, v in rows]
    lines = 2 if len(found) > 1 else 1
    room = Room(left=0.1, right=0.16, bottom=0.3, top=0.45)
    longest = max(len(line) for label in labels for line in label.split("\n"))
    size = (2.3, room.bottom + room.top + (0.1 + 0.13 * lines) * len(labels))
    fig, axes = panels(len(metrics), min(3, len(metrics)), size, room, left=0.1 + 0.062 * longest, sharey=True)
    for ax, name in zip(axes, metrics, strict=True):
        ax.axvline(0, color=GREY, linewidth=0.8, zorder=1)
        for place, (one, variant) in enumerate(rows):
            if (effect := one.effects.get((variant.label, name))) is None:
                ax.annotate(study.absence(variant, name), (0, place), size=6, color=DIM, va="center")
                continue
            half = None if effect.reach != effect.reach else effect.reach
            colour = GREY if not effect.clear else COLOURS[0 if effect.improves else 1]
            ax.errorbar(effect.difference, place, xerr=half, fmt="o", color=colour, markersize=4, capsize=2, zorder=3)
        better = {"lower": "lower is better", "higher": "higher is better", "one": "towards 1 is better"}
        ax.set_title(f"{short_name(name)}\n{better[direction(name) or 'lower']}")
        ax.set_yticks(range(len(rows)), labels)
        ax.tick_params(axis="y", length=0)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    note = "Difference to the baseline, bars 95 % intervals over seeds (Welch). Blue: better, red: worse, grey: no "
    note += "clear difference; a point without a bar has one seed."
    if len(rows) < len(everything):
        note += f" The first {len(rows)} of {len(everything)} variants; the report's first table has all."
    return finish(fig, note=note)
