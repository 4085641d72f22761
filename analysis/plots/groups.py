"""Figures of feature groups: mutual information, changes of membership, and the statistics that assign features."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.plots.lines import Panel, beside, legend_of, line, line_panels, lines_note, named_variants, short
from analysis.plots.study import Missing, Study, Variant, evenly
from analysis.plots.style import COLOURS, DASHES, finish, from_zero, panels
from analysis.text import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 4
"""The most runs with panels of their own."""
STATISTICS = ("mean", "max", "std")
DECILES = {10: "largest of all features", 9: "nine of ten are below", 5: "median feature"}


def group_variants(study: Study) -> list[Variant]:
    variants = [variant for variant in study.followed if layer_records(study, variant.rows[0])]
    if not variants:
        raise Missing("no run has a group layer (group_layer=groups, penalty=bottleneck)")
    return variants


def layer_records(study: Study, row: int) -> list[dict[str, Any]]:
    """The group layer's records of the monitor `groups`, a name that penalty=selective_ortho uses too."""
    return [record for record in study.monitors(row, "groups") if "mi_mean" in record]


def group_mi(study: Study) -> "Figure":
    """Mean mutual information of pairs of groups over the training, and its matrix at the end of some runs."""
    variants = group_variants(study)
    named = named_variants(study, variants)
    shown, left_out = study.sample(
        [variant for variant in variants if "mi" in layer_records(study, variant.rows[0])[-1]], SHOWN
    )
    fig, axes = panels(2 + len(shown), 3, (2.9, 2.4), right=0.75)
    for number, variant in enumerate(named):
        if found := study.monitored(variant, "groups", "mi_mean"):
            line(axes[0], *found, number)
        records = layer_records(study, variant.rows[0])
        levels = [quantile(record, 0.9) for record in records]
        line(axes[1], np.array([record["step"] for record in records]), np.array([levels]), number)
    axes[0].set(title="mean over pairs of groups", xlabel="training step", ylabel="MI (nats)")
    axes[1].set(title="nine pairs of ten share less", xlabel="training step", ylabel="MI (nats)")
    if shown:
        last = [np.array(layer_records(study, variant.rows[0])[-1]["mi"], dtype=float) for variant in shown]
        for mi in last:
            np.fill_diagonal(mi, np.nan)
        top = max(float(np.nanmax(mi)) if np.isfinite(mi).any() else 0.0 for mi in last) or 1.0
        for ax, variant, mi in zip(axes[2:], shown, last, strict=True):
            image = ax.imshow(mi, cmap="Greys", vmin=0, vmax=top, interpolation="nearest", rasterized=True)
            ax.set(xlabel="group", ylabel="group")
            ax.set_title(clean(short(variant), 34), fontsize=7.5)
        bar = fig.add_axes((1 - 0.7 / fig.get_figwidth(), 0.25, 0.12 / fig.get_figwidth(), 0.5))
        fig.colorbar(image, cax=bar, label="MI at the last record (nats)")
    note = lines_note(study, variants, named)
    return finish(fig, *legend_of(named), note=" ".join(filter(None, [note, left_out and f"Matrices: {left_out}"])))


def quantile(record: dict[str, Any], wanted: float) -> float:
    """The recorded quantile of MI that is nearest to the one wanted."""
    quantiles = {float(name): value for name, value in record["mi_quantiles"].items()}
    return quantiles[min(quantiles, key=lambda q: abs(q - wanted))]


def group_events(study: Study) -> "Figure":
    """The features moved and the resulting group sizes at each adaptation of groups."""
    variants = [variant for variant in study.followed if study.monitors(variant.rows[0], "group_event")]
    if not variants:
        raise Missing("no run adapted its groups (group_layer.adapt=similarity or mi)")
    named = named_variants(study, variants)
    fig, axes = panels(2, 2, (3.4, 2.3))
    for number, variant in enumerate(named):
        events = study.monitors(variant.rows[0], "group_event")
        steps = np.array([event["step"] for event in events])
        line(axes[0], steps, np.array([[event["moved"] for event in events]]), number)
        sizes = np.array([[min(s), max(s)] for s in (event["sizes_after"] for event in events)])
        line(axes[1], steps, sizes[:, 1][None], number)
        axes[1].plot(steps, sizes[:, 0], color=COLOURS[number % len(COLOURS)], linestyle=":", linewidth=1)
    axes[0].set(title="features that changed their group", xlabel="training step", ylabel="features per event")
    axes[1].set(title="largest and (dotted) smallest group", xlabel="training step", ylabel="features")
    from_zero(axes[0])
    from_zero(axes[1])
    return finish(fig, *legend_of(named), note="Each marker is an event; first seed.")


def group_activity(study: Study) -> "Figure":
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


def selective_variants(study: Study) -> list[Variant]:
    variants = [a for a in study.followed if any("deciles" in r for r in study.monitors(a.rows[0], "groups"))]
    if not variants:
        raise Missing("no run selects groups of features by statistics (penalty=selective_ortho)")
    return variants


def feature_statistics(study: Study) -> "Figure":
    """Three panels a run: how mean, maximum and spread of the features' activations grow; largest, 90 %, median."""
    variants, left_out = study.sample(selective_variants(study), SHOWN)
    fig, axes = panels(3 * len(variants), 3, (2.6, 1.75), left=0.3, sharex=True)
    for place, ax in enumerate(axes):
        variant, name = variants[place // 3], STATISTICS[place % 3]
        records = [r for r in study.monitors(variant.rows[0], "groups") if "deciles" in r]
        steps = [record["step"] for record in records]
        for number, (decile, label) in enumerate(DECILES.items()):
            values = [record["deciles"][name][decile] for record in records]
            ax.plot(steps, values, color=COLOURS[number], linestyle=DASHES[number], label=label)
        if place < 3:
            ax.set_title(f"{name} of the activation")
        if place % 3 == 0:
            ax.set_ylabel(f"{beside(variant)}\nactivation units", fontsize=7)
        if place >= 3 * (len(variants) - 1):
            ax.set_xlabel("training step")
    handles, labels = axes[0].get_legend_handles_labels()
    return finish(fig, handles, labels, note=f"Moving averages, first seed. {left_out}".strip())


def selective_groups(study: Study) -> "Figure":
    """Size of group 1 over the training, and which of the first features are in it (black) at each record."""
    variants = selective_variants(study)
    named = named_variants(study, variants)
    shown, left_out = study.sample(variants, SHOWN)
    fig, axes = panels(1 + len(shown), 3, (3.1, 2.3))
    for number, variant in enumerate(named):
        records = [r for r in study.monitors(variant.rows[0], "groups") if "deciles" in r]
        line(axes[0], np.array([r["step"] for r in records]), np.array([[r["sizes"][0] for r in records]]), number)
    axes[0].set(title="size of group 1", xlabel="training step", ylabel="features")
    from_zero(axes[0])
    for ax, variant in zip(axes[1:], shown, strict=True):
        records = evenly([r for r in study.monitors(variant.rows[0], "groups") if "deciles" in r], 60)
        member = np.array([record["first"] for record in records]).T
        steps = [record["step"] for record in records]
        ax.imshow(
            member, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest", rasterized=True,
            extent=(steps[0], max(steps[-1], steps[0] + 1), len(member), 0),
        )  # fmt: skip
        ax.set_title(clean(short(variant), 34), fontsize=7.5)
        ax.set(xlabel="training step", ylabel="feature")
    note = "Black: in group 1; the first features of the dictionary, first seed."
    return finish(fig, *legend_of(named), note=f"{note} {left_out}".strip())
