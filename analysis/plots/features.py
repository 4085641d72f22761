"""Figures of relations between features: similarity, watched pairs, contrast."""

from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.grouped import grouped
from analysis.plots.lines import Panel, legend_of, line_panels, named_variants, rows_of_panels
from analysis.plots.study import PHASES, Missing, Study, Variant, evenly, shared_steps
from analysis.plots.style import COLOURS, DASHES, GREY, Room, add_below, finish, log_scale, look, panels

MATRICES = 5
"""The most runs whose matrices are drawn."""
WATCHED = 5
"""The most runs whose pairs are drawn."""
CLASSES = ("highest", "median", "lowest")
"""Overlap of the watched pairs when they were chosen, in the order in which the monitors list them."""
PAIR_NUMBERS = {
    "overlap": ("overlap n_ij", "overlap"),
    "abs_cosine": ("|cosine|", "|cosine| of w_i and w_j"),
    "correlation": ("correlation", "correlation of f_i and f_j"),
    "c": ("competition c_ij", "c_ij"),
}
"""What the monitors record of pairs: title and unit."""

Records = list[dict[str, Any]]


def similarity_matrices(study: Study) -> Figure:
    """|w_i . w_j| of the fixed block at the four phases; darker is more alike, the diagonal left out."""
    sampled, left_out = study.sample(with_snapshots(study), MATRICES)
    kept = {variant.rows[0]: blocks_of(study, variant.rows[0]) for variant in sampled}
    blocks = {row: seriated(found) for row, found in kept.items() if found}
    variants = [variant for variant in sampled if variant.rows[0] in blocks]
    if not variants:
        raise Missing("no snapshot of the runs reads back")
    top = max(float(np.quantile(block, 0.999)) for found in blocks.values() for block in found.values())
    room = Room(left=0.05, right=0.05, bottom=0.05, top=0.2)
    fig, axes = panels(4 * len(variants), 4, (1.7, 1.85), room, left=0.45, right=0.75)
    image = None
    for ax, variant, column in rows_of_panels(axes, variants, [f"{percent} % of the training" for percent in PHASES]):
        found = blocks[variant.rows[0]].get(PHASES[column])
        ax.set(xticks=[], yticks=[])
        ax.set_box_aspect(1)
        if found is None:
            ax.text(0.5, 0.5, "not reached", ha="center", va="center", transform=ax.transAxes, fontsize=7)
        else:
            image = ax.imshow(pooled(found), cmap="Greys", vmin=0, vmax=top, interpolation="nearest", rasterized=True)
    if image is not None:
        bar = fig.add_axes((1 - 0.7 / fig.get_figwidth(), 0.2, 0.12 / fig.get_figwidth(), 0.6))
        fig.colorbar(image, cax=bar, label="|cosine| of decoder rows", extend="max")
    n = max(len(block) for found in blocks.values() for block in found.values())
    note = (
        f"The same {n} features at each phase, ordered by similarity at the last; a dot is the largest of a few pairs."
    )
    return finish(fig, note=f"{note} First seed. {left_out}".strip())


def blocks_of(study: Study, row: int) -> dict[int, np.ndarray]:
    found = {percent: study.snapshot_or_none(row, percent, "block") for percent in PHASES}
    return {percent: arrays[0] for percent, arrays in found.items() if arrays}


def seriated(cosines: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """|cosine| [n, n] by percent of the training, 0 on the diagonal, with similar features adjacent.

    The order is that of the last matrix's Fiedler vector (the second eigenvector of its graph Laplacian)."""
    blocks = {percent: np.abs(block.astype(np.float64)) for percent, block in cosines.items()}
    for block in blocks.values():
        np.fill_diagonal(block, 0)
    last = np.nan_to_num(blocks[max(blocks)]) ** 2
    order = np.arange(len(last))
    if len(last) > 2:
        order = np.linalg.eigh(np.diag(last.sum(0)) - last)[1][:, 1].argsort(kind="stable")
    return {percent: np.nan_to_num(block[np.ix_(order, order)]) for percent, block in blocks.items()}


def pooled(block: np.ndarray, size: int = 128) -> np.ndarray:
    """The block [n, n] max-pooled to at most [size, size], so that no similar pair is lost."""
    step = -(-len(block) // size)
    short = -len(block) % step
    wide = np.pad(block, ((0, short), (0, short)))
    return wide.reshape(len(wide) // step, step, -1, step).max((1, 3))


def similarity_histograms(study: Study) -> Figure:
    """Histograms of the pairs' |cosine| at the four phases."""

    def shares(variant: Variant, percent: int) -> tuple[np.ndarray, np.ndarray] | None:
        kept = [study.snapshot_or_none(row, percent, "histogram", "edges") for row in variant.rows]
        found = [arrays for arrays in kept if arrays]
        if not found:
            return None
        edges = found[0][1]
        values = np.stack([histogram / max(histogram.sum(), 1) for histogram, _ in found])
        return (edges[1:] + edges[:-1]) / 2, np.where(values > 0, values, np.nan)

    shown = [
        Panel(f"{p} % of the training", "share of the pairs", partial(shares, percent=p), x="|cosine| of decoder rows")
        for p in PHASES
    ]
    variants = with_snapshots(study)
    fig = line_panels(study, variants, shown, 2, "Bins of 0.02.", size=(3.4, 2.1), sharex=True, sharey=True)
    log_scale(fig.axes[0], "y")
    return fig


def with_snapshots(study: Study) -> list[Variant]:
    return study.having(study.phases, "no run has come to a quarter of its training")


# Watched pairs --------------------------------------------------------------------------------------------------------


def by_moment(study: Study, row: int) -> dict[int, Records]:
    """The records of a run's watched pairs by the percent of the training at which these were chosen.

    Earlier runs, and no others, have the monitor `competition` alone: pairs that `ortho` chose at 25 %.
    """
    found = grouped((record["chosen"], record) for record in study.monitors(row, "pairs"))
    older = study.monitors(row, "competition")
    return found or ({25: older} if older else {})


def watching(study: Study, what: str = "abs_cosine") -> list[Variant]:
    """The variants whose watched pairs have that number."""
    missing = "no run watched pairs of features (train.monitor_every, from 2 % of the training)"
    if what == "c":
        missing = "no run has a penalty that lets pairs compete (penalty=ortho)"
    return study.having(lambda row: any(what in r[-1] for r in by_moment(study, row).values()), missing)


def of_class(records: Records, what: str, place: int) -> dict[int, np.ndarray]:
    """Step -> the number [pairs] of the pairs of CLASSES[place]."""
    size = len(records[-1]["pairs"])
    third = -(-size // 3)
    kept = evenly([record for record in records if len(record["pairs"]) == size and what in record], 120)
    return {r["step"]: np.array(r[what][place * third : (place + 1) * third], dtype=float) for r in kept}


def trajectories(study: Study, what: str, limits: tuple[float, float] | None = None) -> Figure:
    """A row of panels for each run, a panel for each class: a thin line for each pair, their mean thick."""
    variants, left_out = study.sample(watching(study, what), WATCHED)
    room = Room(left=0.1, right=0.1, bottom=0.15, top=0.3)
    fig, axes = panels(3 * len(variants), 3, (2.3, 1.65), room, left=0.75, sharey=True, sharex=True)
    add_below(fig, 0.25)
    moments: dict[int, int] = {}
    titles = [f"{label} overlap" for label in CLASSES]
    for ax, variant, place in rows_of_panels(axes, variants, titles, PAIR_NUMBERS[what][1], "training step", pad=8):
        records_of = by_moment(study, variant.rows[0])
        for percent, records in records_of.items():
            found = of_class(records, what, place)
            if not found or not next(iter(found.values())).size:
                continue
            colour = moments.setdefault(percent, len(moments))
            steps, values = list(found), np.array(list(found.values()))
            ax.plot(steps, values, color=COLOURS[colour], linewidth=0.5, alpha=0.4)
            ax.plot(steps, values.mean(1), color=COLOURS[colour], linestyle=DASHES[colour], linewidth=2)
            first = next(iter(of_class(records, "overlap", place).values()))
            side = {"ha": "right", "x": 1} if percent != min(records_of) else {"ha": "left", "x": 0}
            words = f"{first.min():.2g} to {first.max():.2g}"
            ax.text(y=1.02, s=words, transform=ax.transAxes, fontsize=6, color=COLOURS[colour], **side)
        if limits:
            ax.set_ylim(*limits)
    handles = [Line2D([], [], color=COLOURS[n], linestyle=DASHES[n], linewidth=2) for n in moments.values()]
    names = [f"pairs chosen at {percent} % of the training" for percent in moments]
    note = f"Each run's own pairs; above a panel their overlap when chosen; thick: their mean. First seed. {left_out}"
    return finish(fig, handles, names, note=note.strip())


def pair_means(study: Study) -> Figure:
    """Means over the pairs that were chosen first, a row for each number and a panel for each class."""

    def mean(variant: Variant, what: str, place: int) -> tuple[np.ndarray, np.ndarray] | None:
        chosen = [by_moment(study, row) for row in variant.rows]
        first = [of_class(moments[min(moments)], what, place) for moments in chosen if moments]
        return shared_steps([{step: float(v.mean()) for step, v in found.items() if v.size} for found in first])

    variants = watching(study)
    names = [what for what in PAIR_NUMBERS if what != "c" or any(mean(v, "c", 0) for v in variants)]
    shown = [
        Panel(f"{PAIR_NUMBERS[what][0]}, {label} overlap", "mean of the pairs", partial(mean, what=what, place=place))
        for what in names
        for place, label in enumerate(CLASSES)
    ]
    moments = sorted({min(by_moment(study, variant.rows[0])) for variant in variants})
    note = f"Each run's own pairs, chosen at {' or '.join(map(str, moments))} % of the training."
    return line_panels(study, variants, shown, 3, note)


def pairs_at_the_end(study: Study) -> Figure:
    """|cosine| of the watched pairs against their overlap and their correlation, at the end."""
    named = named_variants(study, watching(study))
    fig, axes = panels(2, 2, (3.4, 2.5), sharey=True)
    for ax, name in zip(axes, ("overlap", "correlation"), strict=True):
        for number, variant in enumerate(named):
            for records in by_moment(study, variant.rows[0]).values():
                shape = look(number) | {"linestyle": "none"}
                ax.plot(records[-1][name], records[-1]["abs_cosine"], **shape, alpha=0.6)
        ax.set_xlabel(f"{PAIR_NUMBERS[name][0]} of the pair")
    axes[0].set_ylabel(PAIR_NUMBERS["abs_cosine"][1])
    return finish(fig, *legend_of(named, points=True), note="Watched pairs at the last record, first seed.")


# Contrast -------------------------------------------------------------------------------------------------------------


def contrast(study: Study) -> Figure:
    """Alignment, uniformity and retrieval of positives; dotted grey is retrieval by chance."""
    missing = "no run has a contrastive head (penalty=contrastive)"
    variants = study.having(lambda row: study.monitors(row, "contrastive"), missing)
    units = {
        "alignment": "mean cosine of positives",
        "uniformity": "log potential (lower: more even)",
        "retrieval": "share of anchors",
    }
    shown = [
        Panel(name, unit, partial(study.monitored, monitor="contrastive", key=name)) for name, unit in units.items()
    ]
    fig = line_panels(study, variants, shown, note="Dotted: what chance retrieves.")
    for variant in named_variants(study, variants):
        if found := study.monitored(variant, "contrastive", "chance"):
            fig.axes[2].plot(found[0], found[1].mean(0), color=GREY, linestyle=":", linewidth=1)
    return fig
