"""Panels of curves, one line for each variant, and their legends and notes."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.plots.study import SHARE, WEIGHTED, Missing, Study, Variant, evenly
from analysis.plots.style import GREY, finish, log_scale, look, panels
from analysis.text import clean

DISTINCT = 10
"""The most lines with colours of their own; of more, NAMED are coloured and the rest is grey."""
NAMED = 5

TITLES = {
    "fvu": ("fvu, batch", "fraction of variance"),
    "held_out_fvu": ("fvu, held-out text", "fraction of variance"),
    "held_out_fvu_per_token": ("fvu per token, held-out text", "mean fraction of variance"),
    "l0": ("L0", "active features per token"),
    "dead_features": ("dead features", "share of the features"),
    "lr": ("learning rate", "per step"),
    "k": ("k", "features per token"),
    "p": ("p of the L_p norm", "exponent"),
    "loss": ("total loss", None),
    "recon_loss": ("reconstruction loss", None),
    WEIGHTED: ("penalty, times its weight", None),
    SHARE: ("penalty's share of the loss", "share"),
    "tokens_per_s": ("speed", "tokens per second"),
    "penalty/competing_pairs": ("competing pairs", "pairs of features"),
    "penalty/threshold": ("competition threshold", "overlap"),
    "penalty/alpha": ("alpha", "share of the constraint lifted"),
    "penalty/constraint": ("g(e)", "share of the constraint kept"),
    "penalty/fvu_average": ("moving fvu", "fraction of variance"),
    "penalty/group_1": ("features in group 1", "features"),
    "penalty/group_2": ("features in group 2", "features"),
    "penalty/mi": ("MI between groups", "nats"),
    "penalty/group_lasso": ("group lasso", "activation units"),
    "penalty/l2": ("squared norm of the weights", "unweighted"),
    "penalty/contrastive": ("InfoNCE of energy profiles", "nats"),
    "penalty/info_nce": ("InfoNCE", "nats"),
    "penalty/anchors": ("tokens with positives", "share of the batch"),
    "penalty/diversity": ("concentration of activation", "0 even, 1 in one feature"),
    "penalty/features": ("features that vary", "features"),
    "penalty/nearest_cosine": ("nearest in the chunk", "cosine"),
}
"""Title and unit of a logged number; None for the unit of the reconstruction."""


def title_and_unit(name: str, study: Study) -> tuple[str, str]:
    parts = name.split("/")
    title, unit = TITLES.get(name) or TITLES.get(f"{parts[0]}/{parts[-1]}") or ("", "")
    if len(parts) == 3:  # a term of one penalty of several
        title = f"{parts[1]}: {title or parts[-1]}"
    if unit is None:
        unit = study.units()
    if not title and name.endswith("_loss"):
        title, unit = f"{name.removesuffix('_loss')} loss", "before its weight"
    if not title and name.endswith("_weight"):
        title, unit = f"{name.removesuffix('_weight')} weight", "weight in the loss"
    return clean(title or name, 40), clean(unit, 40)


def named_variants(study: Study, variants: list[Variant]) -> list[Variant]:
    """The variants to colour and name: all up to DISTINCT, else NAMED of them from the lowest to the highest fvu."""
    return variants if len(variants) <= DISTINCT else evenly(study.ranked(variants), NAMED)


@dataclass
class Panel:
    """A panel of curves."""

    title: str
    unit: str
    curve: Callable[[Variant], tuple[np.ndarray, np.ndarray] | None]
    """x [n] and values [seeds, n] of a variant, or None."""
    scale: str = ""
    """`zero` for an axis from 0; `log` for a logarithmic one where all values are positive, else the same."""
    x: str = "training step"


def line_panels(
    study: Study,
    variants: list[Variant],
    shown: Sequence[Panel],
    columns: int = 3,
    note: str = "",
    grey: bool = False,
    **kwargs: Any,
) -> Figure:
    """Panels with a line for each variant; those of several seeds as mean and band.

    grey: where only some variants are named, the others are lines too. kwargs: of `panels`.
    """
    named = named_variants(study, variants)
    fig, axes = panels(len(shown), columns, **kwargs)
    bands = draw_panels(axes, named, shown, [variant for variant in variants if grey and variant not in named])
    for ax in axes[:-columns]:
        ax.set_xlabel("")
    return finish(fig, *legend_of(named), note=f"{lines_note(study, variants, named, bands, grey)} {note}".strip())


def draw_panels(
    axes: Sequence[Any], named: Sequence[Variant], shown: Sequence[Panel], others: Sequence[Variant] = ()
) -> bool:
    """Draw the panels into axes: a line for each named variant, over grey ones of the others. Returns whether there
    are bands."""
    bands = False
    for ax, panel in zip(axes, shown, strict=True):
        lowest = []
        for number, variant in [*((None, other) for other in others), *enumerate(named)]:
            if found := panel.curve(variant):
                x, values = found
                lowest.append(values.min())
                if number is None:
                    ax.plot(x, values.mean(0), color=GREY, linewidth=0.5, alpha=0.6, zorder=1)
                else:
                    line(ax, x, values, number)
                    bands |= len(values) > 1
        ax.set(title=panel.title, ylabel=panel.unit, xlabel=panel.x)
        low = min(lowest, default=0.0)
        if panel.scale == "log" and low > 0:
            log_scale(ax, "y")
        elif panel.scale or 0 < ax.get_ylim()[0] < 0.5 * ax.get_ylim()[1]:
            ax.set_ylim(bottom=0 if low >= 0 else None)
    return bands


def over_steps(records: Sequence[dict[str, Any]], value: Callable[[Any], float]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [n] and a number [1, n] of each of a run's records."""
    return np.array([record["step"] for record in records]), np.array([[value(record) for record in records]])


def curve_panels(
    study: Study,
    names: Sequence[str],
    x: str = "step",
    log: Sequence[str] = (),
    columns: int = 3,
    zero: bool = False,
    note: str = "",
    missing: str = "no run has logged them",
) -> Figure:
    """A panel for each logged number.

    log: names that have a logarithmic axis where they are positive; zero: begin all other axes at 0. Raises Missing
    with the sentence where there is no number or no run has one.
    """
    variants = [v for v in study.followed if any(study.curve(v, name, x) is not None for name in names)]
    if not variants or not names:
        raise Missing(missing)
    shown = [
        Panel(
            *title_and_unit(name, study),
            partial(study.curve, name=name, x=x),
            "log" if name in log else "zero" if zero else "",
            {"step": "training step", "tokens": "training tokens"}[x],
        )
        for name in names
    ]
    return line_panels(study, variants, shown, columns, note, grey=True)


def line(ax: Any, x: np.ndarray, values: np.ndarray, number: int, **kwargs: Any) -> None:
    """Draw the mean of values [seeds, n] over x [n], and the band from their minimum to their maximum."""
    shape = look(number)
    ax.plot(x, values.mean(0), **shape, markevery=markers(len(x), number), zorder=3, **kwargs)
    if len(values) > 1:
        ax.fill_between(x, values.min(0), values.max(0), color=shape["color"], alpha=0.18, linewidth=0)


def markers(n: int, number: int) -> Any:
    """matplotlib's `markevery` for about five markers on a line of n points, shifted for each line."""
    step = max(1, n // 5)
    return (min(number * max(1, step // 6), max(n - 1, 0)) % step, step)


def legend_of(variants: Sequence[Variant], points: bool = False) -> tuple[list[Any], list[str]]:
    """Legend handles and labels of the variants' lines, or of their markers alone."""
    style = {"linestyle": "none"} if points else {}
    handles = [Line2D([], [], **(look(number) | style)) for number in range(len(variants))]
    return handles, [short(variant) for variant in variants]


def short(variant: Variant) -> str:
    """The variant's label, its number of seeds, and how runs ended that did not complete."""
    seeds = f" (n={variant.begun})" if len(variant.rows) > 1 else ""
    return variant.label + seeds + (f", {variant.ended}" if variant.ended else "")


def beside(variant: Variant, width: int = 22) -> str:
    """The label wrapped to at most three lines, for the side of a row of panels."""
    return "\n".join(textwrap.wrap(short(variant), width, max_lines=3, placeholder="…"))


def rows_of_panels(
    axes: Sequence[Any], variants: Sequence[Variant], titles: Sequence[str], unit: str = "", x: str = "", **title: Any
) -> Iterator[tuple[Any, Variant, int]]:
    """Each of the axes with its variant and its column: a row for each variant, a column for each title.

    Titles are above the first row, `x` is below the last one, variants and the unit are beside the first column.
    """
    for place, ax in enumerate(axes):
        row, column = divmod(place, len(titles))
        if row == 0:
            ax.set_title(titles[column], **title)
        if column == 0:
            ax.set_ylabel(f"{beside(variants[row])}\n{unit}".strip(), fontsize=7)
        if row == len(variants) - 1:
            ax.set_xlabel(x)
        yield ax, variants[row], column


def lines_note(
    study: Study, variants: Sequence[Variant], named: Sequence[Variant], bands: bool, grey: bool = False
) -> str:
    """The note below curves: what lines and bands are, and how many variants are drawn and named.

    grey: the others are drawn in grey.
    """
    notes = []
    if bands:
        notes.append("Lines are means over n seeds, bands go from the least to the largest.")
    if len(study.variants) > len(study.followed):
        notes.append(f"{len(study.followed)} of {len(study.variants)} are drawn.")
    if len(named) < len(variants):
        others = "; the others are grey" if grey else ""
        notes.append(f"{len(named)} of {len(variants)} are named, from the lowest to the highest fvu{others}.")
    return " ".join(notes)
