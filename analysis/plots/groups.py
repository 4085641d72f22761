"""Figures of feature groups: mutual information, changes of membership, and the statistics that assign features."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.plots.lines import (
    Panel,
    draw_panels,
    legend_of,
    line_panels,
    lines_note,
    named_variants,
    over_steps,
    rows_of_panels,
    short,
)
from analysis.plots.study import Study, Variant, evenly
from analysis.plots.style import COLOURS, DASHES, finish, panels

SHOWN = 4
"""The most runs with panels of their own."""
STATISTICS = ("mean", "max", "std")
DECILES = {10: "largest of all features", 9: "nine of ten are below", 5: "median feature"}


def group_variants(study: Study) -> list[Variant]:
    missing = "no run has a group layer (group_layer=groups, penalty=bottleneck)"
    return study.having(lambda row: layer_records(study, row), missing)


def layer_records(study: Study, row: int) -> list[dict[str, Any]]:
    """The group layer's records of the monitor `groups`, a name that penalty=selective_ortho uses too."""
    return [record for record in study.monitors(row, "groups") if "mi_mean" in record]


def group_mi(study: Study) -> Figure:
    """Mean mutual information of pairs of groups over the training, and its matrix at the end of some runs."""
    variants = group_variants(study)
    named = named_variants(study, variants)
    last = {id(v): layer_records(study, v.rows[0])[-1] for v in variants}
    shown, left_out = study.sample([variant for variant in variants if "mi" in last[id(variant)]], SHOWN)
    fig, axes = panels(2 + len(shown), 3, (2.9, 2.4), right=0.75)

    def decile(variant: Variant) -> tuple[np.ndarray, np.ndarray]:
        return over_steps(layer_records(study, variant.rows[0]), ninth_decile)

    curves = [
        Panel("mean over pairs of groups", "MI (nats)", partial(study.monitored, monitor="groups", key="mi_mean")),
        Panel("nine tenths of the pairs are below", "MI (nats)", decile),
    ]
    bands = draw_panels(axes[:2], named, curves)
    if shown:
        matrices = [np.array(last[id(variant)]["mi"], dtype=float) for variant in shown]
        for mi in matrices:
            np.fill_diagonal(mi, np.nan)
        top = max(float(np.nanmax(mi)) if np.isfinite(mi).any() else 0.0 for mi in matrices) or 1.0
        for ax, variant, mi in zip(axes[2:], shown, matrices, strict=True):
            image = ax.imshow(mi, cmap="Greys", vmin=0, vmax=top, interpolation="nearest", rasterized=True)
            ax.set(xlabel="group", ylabel="group")
            ax.set_title(short(variant), fontsize=6)
        bar = fig.add_axes((1 - 0.7 / fig.get_figwidth(), 0.25, 0.12 / fig.get_figwidth(), 0.5))
        fig.colorbar(image, cax=bar, label="MI at the last record (nats)")
    note = lines_note(study, variants, named, bands)
    return finish(fig, *legend_of(named), note=" ".join(filter(None, [note, left_out and f"Matrices: {left_out}"])))


def ninth_decile(record: dict[str, Any]) -> float:
    """The recorded quantile of MI that is nearest to 0.9."""
    quantiles = {float(name): value for name, value in record["mi_quantiles"].items()}
    return quantiles[min(quantiles, key=lambda q: abs(q - 0.9))]


def group_events(study: Study) -> Figure:
    """The features moved and the resulting group sizes at each adaptation of groups."""
    missing = "no run adapted its groups (group_layer.adapt=similarity or mi)"
    variants = study.having(lambda row: study.monitors(row, "group_event"), missing)
    values: dict[str, Callable[[dict[str, Any]], float]] = {
        "features that changed their group": lambda event: event["moved"],
        "largest group": lambda event: max(event["sizes_after"]),
        "smallest group": lambda event: min(event["sizes_after"]),
    }

    def curve(variant: Variant, title: str) -> tuple[np.ndarray, np.ndarray]:
        return over_steps(study.monitors(variant.rows[0], "group_event"), values[title])

    shown = [Panel(title, "features", partial(curve, title=title), "zero") for title in values]
    return line_panels(study, variants, shown, 3, "Each marker is an event; first seed.", size=(2.8, 2.3))


def group_activity(study: Study) -> Figure:
    """Energy and share of active tokens of each group at the last record, groups in falling order."""

    def falling(variant: Variant, name: str) -> tuple[np.ndarray, np.ndarray]:
        values = np.sort(np.array(layer_records(study, variant.rows[0])[-1][name], dtype=float))[::-1]
        return np.arange(1, len(values) + 1), values[None]

    units = {"mean_energy": "mean energy (activation units)", "active_share": "share of tokens"}
    shown = [
        Panel(name.replace("_", " "), unit, partial(falling, name=name), "zero", "group, in falling order")
        for name, unit in units.items()
    ]
    note = "At the last record, first seed."
    return line_panels(study, group_variants(study), shown, 2, note, size=(3.4, 2.3))


def selections(study: Study, row: int) -> list[dict[str, Any]]:
    """The records of selective_ortho's groups."""
    return [record for record in study.monitors(row, "groups") if "deciles" in record]


def selective_variants(study: Study) -> list[Variant]:
    missing = "no run selects groups of features by statistics (penalty=selective_ortho)"
    return study.having(lambda row: selections(study, row), missing)


def feature_statistics(study: Study) -> Figure:
    """Three panels a run: how mean, maximum and spread of the features' activations grow; largest, 90 %, median."""
    variants, left_out = study.sample(selective_variants(study), SHOWN)
    fig, axes = panels(3 * len(variants), 3, (2.6, 1.75), left=0.3, sharex=True)
    titles = [f"{name} of the activation" for name in STATISTICS]
    for ax, variant, column in rows_of_panels(axes, variants, titles, "activation units", "training step"):
        records = selections(study, variant.rows[0])
        steps = [record["step"] for record in records]
        for number, (decile, label) in enumerate(DECILES.items()):
            values = [record["deciles"][STATISTICS[column]][decile] for record in records]
            ax.plot(steps, values, color=COLOURS[number], linestyle=DASHES[number], label=label)
    handles, labels = axes[0].get_legend_handles_labels()
    return finish(fig, handles, labels, note=f"Moving averages, first seed. {left_out}".strip())


def selective_groups(study: Study) -> Figure:
    """Size of group 1 over the training, and which of the first features are in it (black) at each record."""
    variants = selective_variants(study)
    named = named_variants(study, variants)
    shown, left_out = study.sample(variants, SHOWN)
    fig, axes = panels(1 + len(shown), 3, (3.1, 2.3))
    size = Panel(
        "size of group 1",
        "features",
        lambda v: over_steps(selections(study, v.rows[0]), lambda r: r["sizes"][0]),
        "zero",
    )
    draw_panels(axes[:1], named, [size])
    for ax, variant in zip(axes[1:], shown, strict=True):
        records = evenly(selections(study, variant.rows[0]), 60)
        member = np.array([record["first"] for record in records]).T
        steps = [record["step"] for record in records]
        ax.imshow(
            member, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest", rasterized=True,
            extent=(steps[0], max(steps[-1], steps[0] + 1), len(member), 0),
        )  # fmt: skip
        ax.set_title(short(variant), fontsize=6)
        ax.set(xlabel="training step", ylabel="feature")
    note = "Black: in group 1; the first features of the dictionary, first seed."
    return finish(fig, *legend_of(named), note=f"{note} {left_out}".strip())
