"""Panels of bars: one panel for each metric, one bar for each variant."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from analysis.plots.lines import short
from analysis.plots.study import Missing, Study, Variant
from analysis.plots.style import BAR, COLOURS, DIM, EDGE, Room, finish, panels
from analysis.text import cell

BARS = 36
"""The most bars of a panel; of more variants the TOP of lowest fvu are drawn."""
TOP = 20

Target = tuple[float, str]
"""A metric's target value, and `above` or `below`."""


def bar_panels(
    study: Study,
    names: Sequence[tuple[str, str]],
    targets: dict[str, Target] | None = None,
    values: Callable[[Variant, str], list[float]] | None = None,
) -> Figure:
    """A panel of bars for each metric (name, label): bars are means over seeds, dots the seeds, dashed lines targets.

    A variant without a value has a word for it in place of a bar; one that is still under way is left out then.

    targets: metric -> Target, for metrics that have one. values: a variant's values of a name, by default those of its
    metrics. Raises Missing where no run has any of the metrics.
    """
    values = values or study.values
    found = {id(variant): [values(variant, name) for name, _ in names] for variant in study.variants}
    variants = [variant for variant in study.variants if any(found[id(variant)]) or not study.under_way(variant)]
    if not any(map(any, found.values())):
        raise Missing("no run has these metrics")
    shown = study.ranked(variants)[:TOP] if len(variants) > BARS else variants
    labels = [short(variant) for variant in shown]
    targets = targets or {}
    titles = [titled(label, targets.get(name)) for name, label in names]
    fig, axes = bar_axes(labels, titles)
    for number, (ax, (name, _), title) in enumerate(zip(axes, names, titles, strict=True)):
        draw_bars(ax, [found[id(variant)][number] for variant in shown], targets.get(name))
        for place, variant in enumerate(shown):
            if not found[id(variant)][number]:
                write_beside(ax, 0, place, study.absence(variant, name), DIM)
        ax.set_title(title)
        ax.set_yticks(range(len(shown)), labels)
        ax.tick_params(axis="y", length=0)
    axes[0].set_ylim(len(shown) - 0.45, -0.55)  # the first variant at the top; all panels share the axis
    return finish(fig, note=bars_note(variants, shown))


def titled(label: str, target: Target | None) -> str:
    """The title of a panel: the metric's label, and its target on a line below."""
    return f"{label}\n-- target: {target[1]} {target[0]:g}" if target else label


def bar_axes(labels: Sequence[str], titles: Sequence[str]) -> tuple[Figure, list[Any]]:
    """A figure with room for `labels` of bars on the left and for `titles` above, and its axes, one for each title."""
    lines = 1 + max(title.count("\n") for title in titles)
    room = Room(left=0.08, right=0.16, bottom=0.3, top=0.14 + 0.15 * lines + 0.005 * len(labels))
    height = room.bottom + room.top + 0.17 * len(labels)
    left = 0.1 + 0.062 * max(map(len, labels))
    columns = min(3 if len(labels) <= 12 else 4, len(titles))
    return panels(len(titles), columns, (2.1, height), room, left=left, sharey=True)


def draw_bars(ax: Any, values: Sequence[Sequence[float]], target: Target | None) -> None:
    """Draw a bar for each variant's mean over its seeds, with the number at its end; `values` is [variants][seeds]."""
    means = [sum(seeds) / len(seeds) if seeds else float("nan") for seeds in values]
    ax.barh(range(len(values)), means, color=BAR, edgecolor=EDGE, linewidth=0.6, height=0.7)
    for place, seeds in enumerate(values):
        if len(seeds) > 1:
            ax.plot(seeds, [place] * len(seeds), "o", color="black", markersize=2, zorder=4)
    numbers = [0.0, *(value for seeds in values for value in seeds)]
    low, high = min(numbers), max([*numbers, target[0]] if target else numbers)
    ax.set_xlim(low * 1.2, high + 0.28 * (high - low) or 1)  # room for the number at the end of the longest bar
    ax.xaxis.get_major_locator().set_params(prune="upper")  # the next panel's first number is close
    if not any(values):
        ax.set_xticks([])
    for place, (mean, seeds) in enumerate(zip(means, values, strict=True)):
        if seeds:
            number = cell(mean, "whole" if mean == int(mean) else "number")
            write_beside(ax, max(0.0, *seeds), place, number, "black")
    if target:
        ax.axvline(target[0], color=COLOURS[1], linestyle="--", linewidth=1.1, zorder=5)


def write_beside(ax: Any, x: float, place: int, word: str, colour: str) -> None:
    """Write a word in small letters to the right of x, in the row of that number."""
    ax.annotate(
        word, (x, place), xytext=(3, 0), textcoords="offset points", va="center", size=6, color=colour, zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3},
    )  # fmt: skip


def bars_note(variants: Sequence[Variant], shown: Sequence[Variant]) -> str:
    """The note below bars: what the dots are, and how many variants are shown."""
    notes = []
    if any(len(variant.rows) > 1 for variant in shown):
        notes.append("Dots are seeds, bars their means.")
    if len(shown) < len(variants):
        notes.append(f"{len(shown)} of {len(variants)}: those of lowest fvu; the table has all.")
    return " ".join(notes)
