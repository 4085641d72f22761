"""Figures of relations between features: similarity, competition, correlation, contrast."""

from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.plots.lines import beside, legend_of, legend_of_points, line, lines_note, named_variants
from analysis.plots.study import PHASES, Missing, Study, Variant, evenly
from analysis.plots.style import COLOURS, DASHES, GREY, Room, add_below, finish, log_scale, look, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATRICES = 5
"""The most runs whose matrices are drawn."""
WATCHED = 5
"""The most runs whose pairs are drawn."""
CLASSES = ("high", "median", "low")
"""Overlap of the watched pairs at a quarter of the training, in the order in which `ortho` lists them."""


def similarity_matrices(study: Study) -> "Figure":
    """|w_i . w_j| of the fixed block at the four phases; darker is more alike, the diagonal left out."""
    variants, left_out = sample_by_fvu(with_snapshots(study), study, MATRICES)
    blocks = {row: seriated(blocks_of(study, row)) for variant in variants for row in variant.rows[:1]}
    top = max(float(np.quantile(block, 0.999)) for found in blocks.values() for block in found.values())
    room = Room(left=0.05, right=0.05, bottom=0.05, top=0.2)
    fig, axes = panels(4 * len(variants), 4, (1.7, 1.85), room, left=0.45, right=0.75)
    image = None
    for place, ax in enumerate(axes):
        variant, percent = variants[place // 4], PHASES[place % 4]
        found = blocks[variant.rows[0]].get(percent)
        ax.set(xticks=[], yticks=[])
        ax.set_box_aspect(1)
        if found is None:
            ax.text(0.5, 0.5, "not reached", ha="center", va="center", transform=ax.transAxes, fontsize=7)
        else:
            image = ax.imshow(pooled(found), cmap="Greys", vmin=0, vmax=top, interpolation="nearest", rasterized=True)
        if place < 4:
            ax.set_title(f"{percent} % of the training")
        if place % 4 == 0:
            ax.set_ylabel(beside(variant), fontsize=7)
    if image is not None:
        bar = fig.add_axes((1 - 0.7 / fig.get_figwidth(), 0.2, 0.12 / fig.get_figwidth(), 0.6))
        fig.colorbar(image, cax=bar, label="|cosine| of decoder rows", extend="max")
    n = max(len(block) for found in blocks.values() for block in found.values())
    note = (
        f"The same {n} features at each phase, ordered by similarity at the last; a dot is the largest of a few pairs."
    )
    return finish(fig, note=f"{note} First seed. {left_out}".strip())


def blocks_of(study: Study, row: int) -> dict[int, np.ndarray]:
    return {percent: study.snapshot(row, percent, "block")[0] for percent in study.phases(row)}


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


def similarity_histograms(study: Study) -> "Figure":
    """Histograms of the pairs' |cosine| at the four phases."""
    variants = with_snapshots(study)
    named = named_variants(study, variants)
    fig, axes = panels(4, 2, (3.4, 2.1), sharex=True, sharey=True)
    for ax, percent in zip(axes, PHASES, strict=True):
        for number, variant in enumerate(named):
            kept = (row for row in variant.rows if percent in study.phases(row))
            found = [study.snapshot(row, percent, "histogram", "edges") for row in kept]
            if found:
                shares = np.stack([histogram / max(histogram.sum(), 1) for histogram, _ in found])
                edges = found[0][1]
                line(ax, (edges[1:] + edges[:-1]) / 2, np.where(shares > 0, shares, np.nan), number)
        ax.set_title(f"{percent} % of the training")
    log_scale(axes[0], "y")
    for ax in axes[::2]:
        ax.set_ylabel("share of the pairs")
    for ax in axes[2:]:
        ax.set_xlabel("|cosine| of decoder rows")
    note = lines_note(study, variants, named)
    return finish(fig, *legend_of(named), note=f"{note} Bins of 0.02.".strip())


def competition(study: Study) -> "Figure":
    """c_ij of the watched pairs: a thin line for each, the mean of each class thick. A row of panels for each run."""
    return watched_pairs(study, "c", "competition c_ij", (-0.03, 1.03))


def pair_correlation(study: Study) -> "Figure":
    """Correlation of the activations of the watched pairs."""
    return watched_pairs(study, "correlation", "correlation of f_i and f_j", None)


def pair_similarity(study: Study) -> "Figure":
    """|w_i . w_j| of the watched pairs."""
    return watched_pairs(study, "abs_cosine", "|cosine| of w_i and w_j", None)


def watched_pairs(study: Study, what: str, unit: str, limits: tuple[float, float] | None) -> "Figure":
    variants = [variant for variant in study.followed if (study.monitors(variant.rows[0], "competition"))]
    if not variants:
        raise Missing("no run watched pairs of features (penalty=ortho, from a quarter of the training)")
    variants, left_out = sample_by_fvu(variants, study, WATCHED)
    room = Room(left=0.1, right=0.1, bottom=0.15, top=0.25)
    fig, axes = panels(3 * len(variants), 3, (2.3, 1.6), room, left=0.75, sharey=True, sharex=True)
    add_below(fig, 0.25)
    for place, ax in enumerate(axes):
        variant, kind = variants[place // 3], place % 3
        steps, values, overlap = pairs_of(study.monitors(variant.rows[0], "competition"), what)
        size = -(-values.shape[1] // 3)
        inside = slice(kind * size, (kind + 1) * size)
        if values[:, inside].size:
            ax.plot(steps, values[:, inside], color=COLOURS[kind], linewidth=0.5, alpha=0.45)
            ax.plot(steps, values[:, inside].mean(1), color=COLOURS[kind], linestyle=DASHES[kind], linewidth=2)
            at_first = overlap[0, inside]
            ax.set_title(f"{CLASSES[kind]} overlap ({at_first.min():.2g} to {at_first.max():.2g})", fontsize=7.5)
        if limits:
            ax.set_ylim(*limits)
        if kind == 0:
            ax.set_ylabel(f"{beside(variant)}\n{unit}", fontsize=7)
        if place >= 3 * (len(variants) - 1):
            ax.set_xlabel("training step")
    note = f"Pairs chosen by their overlap at a quarter of the training, first seed; thick: their mean. {left_out}"
    return finish(fig, note=note.strip())


def pairs_of(records: list[dict[str, Any]], what: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps [n], values [n, pairs] and overlap [n, pairs] of the records of `competition`."""
    size = len(records[-1]["pairs"])
    records = evenly([record for record in records if len(record["pairs"]) == size], 120)
    nan = float("nan")
    numbers = [np.array([[nan if v is None else v for v in r[name]] for r in records]) for name in (what, "overlap")]
    return np.array([record["step"] for record in records]), numbers[0], numbers[1]


def pairs_at_the_end(study: Study) -> "Figure":
    """|cosine| of the watched pairs against their overlap and their correlation, at the end."""
    variants = [variant for variant in study.followed if study.monitors(variant.rows[0], "competition")]
    if not variants:
        raise Missing("no run watched pairs of features (penalty=ortho, from a quarter of the training)")
    named = named_variants(study, variants)
    fig, axes = panels(2, 2, (3.4, 2.5), sharey=True)
    for ax, (name, unit) in zip(axes, (("overlap", "overlap n_ij"), ("correlation", "correlation")), strict=True):
        for number, variant in enumerate(named):
            last = study.monitors(variant.rows[0], "competition")[-1]
            shape = look(number) | {"linestyle": "none"}
            ax.plot(last[name], last["abs_cosine"], **shape, alpha=0.6)
        ax.set(xlabel=f"{unit} of the pair")
    axes[0].set_ylabel("|cosine| of w_i and w_j")
    return finish(fig, *legend_of_points(named), note="Watched pairs at the last record, first seed.")


def contrast(study: Study) -> "Figure":
    """Alignment, uniformity and retrieval of positives; dotted grey is retrieval by chance."""
    variants = [variant for variant in study.followed if study.monitors(variant.rows[0], "contrastive")]
    if not variants:
        raise Missing("no run has a contrastive head (penalty=contrastive)")
    named = named_variants(study, variants)
    units = {
        "alignment": "mean cosine of positives",
        "uniformity": "log potential (lower: more even)",
        "retrieval": "share of anchors",
    }
    fig, axes = panels(3)
    for ax, (name, unit) in zip(axes, units.items(), strict=True):
        for number, variant in enumerate(named):
            for key in (name, "chance") if name == "retrieval" else (name,):
                found = monitored(study, variant, "contrastive", key)
                if found is None:
                    continue
                if key == "chance":
                    ax.plot(found[0], found[1].mean(0), color=GREY, linestyle=":", linewidth=1)
                else:
                    line(ax, *found, number)
        ax.set(title=name, xlabel="training step", ylabel=unit)
    note = lines_note(study, variants, named)
    return finish(fig, *legend_of(named), note=f"{note} Dotted: what chance retrieves.".strip())


def monitored(study: Study, variant: Variant, monitor: str, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps [n] and values [seeds, n] of a monitor's number, at the steps that all runs of the variant share."""
    found = []
    for row in variant.rows:
        numbers = {r["step"]: r[key] for r in study.monitors(row, monitor) if isinstance(r.get(key), int | float)}
        if numbers:
            found.append(numbers)
    if not found:
        return None
    steps = sorted(set.intersection(*map(set, found)))
    if not steps:
        found, steps = found[:1], sorted(found[0])
    return np.array(steps), np.array([[numbers[step] for step in steps] for numbers in found])


def with_snapshots(study: Study) -> list[Variant]:
    variants = [variant for variant in study.followed if study.phases(variant.rows[0])]
    if not variants:
        raise Missing("no run has come to a quarter of its training")
    return variants


def sample_by_fvu(variants: list[Variant], study: Study, n: int) -> tuple[list[Variant], str]:
    """At most n variants, evenly from the lowest to the highest fvu, and a sentence where some are left out."""
    if len(variants) <= n:
        return variants, ""
    return evenly(study.ranked(variants), n), f"{n} of {len(variants)} runs, from the lowest to the highest fvu."
