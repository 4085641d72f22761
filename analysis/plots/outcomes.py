"""Figures of results: metrics, budgets, Pareto fronts."""

import math
import re
from collections.abc import Iterable
from statistics import mean, stdev

from matplotlib.figure import Figure

from analysis.metrics import FIRST, TARGETS, direction
from analysis.plots.bars import bar_panels
from analysis.plots.groups import layer_records
from analysis.plots.lines import legend_of, lines_note, named_variants
from analysis.plots.study import Missing, Study, Variant, evenly
from analysis.plots.style import GREY, Room, finish, log_scale, look, panels
from sae_sweeps.config.evaluations import BUILTIN, LABELLED, PREFIXES, plain_name, prefix_of

BETTER = {"higher": "higher is better", "lower": "lower is better", "one": "nearest to 1 is best"}
LEGACY = "explained_variance_legacy"
"""What SAEBench called explained variance before; drawn where a run has only that."""
EVALUATED = (
    "kl_div_score", "explained_variance", LEGACY, "cossim", "nmi", "feature_mi", "silhouette", "mean_abs_cosine",
    "hierarchy_coarse_top_1_accuracy", "hierarchy_fine_top_1_accuracy",
)  # fmt: skip
"""The metrics that are drawn after those of FIRST."""
DATA = {"": "SAEBench's data", BUILTIN: "built-in data", LABELLED: "labelled data of your own"}
NO_BARS = ("tokens_to_fvu", "seconds_to_fvu", "penalty_loss")
FRONTS = (("ce_loss_score", "loss recovered"), ("explained_variance", "explained variance"), ("fvu", "fvu"))
BUDGETS = (("steps", "training steps"), ("final_loss", "final total loss"), ("tokens", "training tokens"))
RECOVERY = ("recovery_mmcs", "recovery_matched", "recovery_share", "recovery_split", "recovery_merged")
FINAL = {"sparsity_loss": "final sparsity loss", "recon_loss": "final L2 loss", "mi": "final MI loss"}
SPARSITY = {"l0": "L0\nactive features per token", "l1": "L1\nof the activations"}
SEPARATION = {
    "nearest_neighbour_cosine": "nearest neighbour\ncosine of decoder rows",
    "nmi": "NMI\nof features and labels",
    "silhouette": "silhouette\nof labels in feature space",
}
SERIES = {
    "sparse probing": (r"(?:sae|llm)_top_(\d+)_test_accuracy", "features of the probe", "accuracy"),
    "SCR": (r"scr_metric_threshold_(\d+)", "features ablated", "SCR score"),
    "TPP": (r"tpp_threshold_(\d+)_total_metric", "features ablated", "TPP score"),
    "hierarchy, coarse": (r"hierarchy_coarse_top_(\d+)_accuracy", "features of the probe", "accuracy"),
    "hierarchy, fine": (r"hierarchy_fine_top_(\d+)_accuracy", "features of the probe", "accuracy"),
}
"""Metrics with a number in their name: pattern, what the number is, unit."""


def headed(name: str) -> str:
    """A metric's name in two lines at most, and which way is better."""
    words = name if len(name) <= 24 or "_" not in name[8:] else f"{name[: (cut := name.index('_', 8))]}\n{name[cut:]}"
    better = BETTER.get(direction(name) or "")
    return f"{words}\n({better})" if better else words


def targets_of(names: list[str]) -> dict[str, tuple[float, str]]:
    """Metric -> (target, above or below), for SAEBench's data; metrics of built-in data have no target."""
    return {
        name: (target, "above" if better == "higher" else "below")
        for name in names
        if name in TARGETS
        for better, target in (TARGETS[name],)
    }


def metric_bars(study: Study, titles: Iterable[tuple[str, str]], missing: str) -> Figure:
    """Bars of those of the metrics (name, title) that any run has. Raises Missing with the sentence where none has."""
    measured = set(study.metric_names())
    names = [(name, title) for name, title in titles if name in measured]
    if not names:
        raise Missing(missing)
    return bar_panels(study, names, targets_of([name for name, _ in names]))


def evaluation_metrics(study: Study) -> Figure:
    old = any(study.values(v, LEGACY) and not study.values(v, "explained_variance") for v in study.variants)
    wanted = dict.fromkeys((*FIRST, *(prefix + name for prefix in ("", *PREFIXES.values()) for name in EVALUATED)))
    names = [(name, headed(name)) for name in wanted if name not in NO_BARS and (name != LEGACY or old)]
    return metric_bars(study, names, "no run has been evaluated")


def unlearning_scores(study: Study) -> Figure:
    names = [(name, headed(name)) for name in ("unlearning_score", BUILTIN + "unlearning_score")]
    return metric_bars(study, names, "no run has an unlearning score (eval.evaluations=[unlearning])")


def sparsity_analysis(study: Study) -> Figure:
    return metric_bars(study, SPARSITY.items(), "no run has been evaluated (eval=core)")


def feature_separation(study: Study) -> Figure:
    return metric_bars(study, SEPARATION.items(), "no run has measured its features (eval.evaluations=[separation])")


def recovery(study: Study) -> Figure:
    return metric_bars(study, [(name, headed(name)) for name in RECOVERY], "only model=synthetic has true features")


def training_metrics(study: Study) -> Figure:
    recorded = {name for nulls in study.full["run", "nulls"] for name in nulls or ()}
    names = [(n, title) for n, title in BUDGETS if n in recorded or any(map(math.isfinite, study.column(n)))]
    if not names:
        raise Missing("no run is complete")
    return bar_panels(study, names)


def feature_metrics(study: Study) -> Figure:
    """The last logged sparsity, reconstruction and MI loss of each completed run, each before its weight."""

    def values(variant: Variant, name: str) -> list[float]:
        if name != "mi":
            return study.final_values(variant, name)
        found = (layer_records(study, row) for row in variant.rows if study.state(row) == "completed")
        return [records[-1]["mi_mean"] for records in found if records]

    names = [(name, title) for name, title in FINAL.items() if any(values(v, name) for v in study.followed)]
    if not names:
        raise Missing("no run is complete and has logged its losses")
    return bar_panels(study, names, values=values)


def by_number(study: Study) -> Figure:
    """Metrics for each number of features: a line for each variant; the language model itself in grey dashes."""
    found: dict[tuple[str, str], dict[int, list[str]]] = {}
    for name in study.metric_names():
        plain = plain_name(name)
        for title, (pattern, _, _) in SERIES.items():
            if match := re.fullmatch(pattern, plain):
                where = DATA[prefix_of(name)]
                found.setdefault((title, where), {}).setdefault(int(match[1]), []).append(name)
    found = {key: numbers for key, numbers in found.items() if len(numbers) > 1}
    if not found:
        raise Missing("no run has probed, or ablated, several numbers of features")
    variants = [
        a for a in study.variants if any(study.values(a, n) for ns in found.values() for m in ns.values() for n in m)
    ]
    named = named_variants(study, variants)
    means = " Means over n seeds." * any(len(variant.rows) > 1 for variant in named)
    fig, axes = panels(len(found))
    for ax, ((title, where), numbers) in zip(axes, found.items(), strict=True):
        for number, variant in enumerate(named):
            for model in (False, True):
                points = [
                    (n, study.mean(variant, metric))
                    for n, metrics in sorted(numbers.items())
                    for metric in metrics
                    if ("llm_" in metric) == model
                ]
                points = [point for point in points if point[1] == point[1]]
                if not points or (model and number):
                    continue
                shape = {"color": GREY, "linestyle": "--", "label": "the language model"} if model else look(number)
                ax.plot(*zip(*points, strict=True), **shape)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="lower right")
        log_scale(ax, "x")
        ticks = sorted(numbers)
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.set(title=f"{title} ({where})", xlabel=SERIES[title][1], ylabel=SERIES[title][2])
    return finish(fig, *legend_of(named), note=f"{lines_note(study, variants, named, False)}{means}".strip())


# Fronts --------------------------------------------------------------------------------------------------------------


def pareto(study: Study) -> Figure:
    """Each variant's L0 against what it explains, means and deviations over seeds; the dashed line is the front."""
    measured = study.metric_names()
    names = [(name, title) for name, title in FRONTS if name in measured]
    if "l0" not in measured or not names:
        raise Missing("no run has both L0 and a measure of reconstruction")
    variants = [variant for variant in study.variants if study.values(variant, "l0")]
    named = front_variants(study, variants, names[0][0])
    fig, axes = panels(len(names), size=(3.2, 2.6), room=Room(left=0.85))
    for ax, (name, title) in zip(axes, names, strict=True):
        points = [(x, y) for variant in variants for x, y in points_of(study, variant, name)]
        if len(named) < len(variants):
            ax.plot(*zip(*points, strict=True), "o", color=GREY, markersize=2.5, alpha=0.6, zorder=1)
        for number, variant in enumerate(named):
            shape = look(number) | {"linestyle": "none"}
            if spread := spread_of(study, variant, name):
                across, up = spread
                ax.errorbar(
                    *points_of(study, variant, name)[0], xerr=across, yerr=up, **shape, markersize=5, zorder=3,
                    elinewidth=1, capsize=2,
                )  # fmt: skip
        best = front(points, direction(name) or "higher")
        if best:
            x, y = zip(*best, strict=True)
            ax.step(x, y, where="post", color="black", linewidth=1, linestyle="--", zorder=2)
            ax.plot(x, y, "o", color="black", fillstyle="none", markersize=9, markeredgewidth=0.7)
        if points and max(x for x, _ in points) > 8 * max(1e-9, min(x for x, _ in points)):
            log_scale(ax, "x")
        better = BETTER[direction(name) or "higher"]
        ax.set(title=f"{title} ({better})", xlabel="L0 (active features per token)", ylabel=name)
    note = "Rings and the dashed line are the front: no variant is as sparse and better than one on it."
    if any(len(pairs_of(study, variant, names[0][0])) > 1 for variant in named):
        note += " Bars are standard deviations over seeds."
    if len(named) < len(variants):
        note += f" {len(named)} of {len(variants)} are named, those on the front first."
    return finish(fig, *legend_of(named, points=True), note=note)


def points_of(study: Study, variant: Variant, name: str) -> list[tuple[float, float]]:
    """L0 and the metric, means over the variant's runs that have both; empty where none has.

    L0 to three digits: runs of one k differ in the fifth, by a few tokens of fewer positive features.
    """
    pairs = pairs_of(study, variant, name)
    return [(float(f"{mean(x for x, _ in pairs):.3g}"), mean(y for _, y in pairs))] if pairs else []


def spread_of(study: Study, variant: Variant, name: str) -> tuple[float, float] | None:
    """The standard deviations over seeds of L0 and the metric, 0 for a single run; None where no run has both."""
    pairs = pairs_of(study, variant, name)
    if not pairs:
        return None
    return (stdev(x for x, _ in pairs), stdev(y for _, y in pairs)) if len(pairs) > 1 else (0.0, 0.0)


def pairs_of(study: Study, variant: Variant, name: str) -> list[tuple[float, float]]:
    l0, values = study.column("l0"), study.column(name)
    return [(l0[row], values[row]) for row in variant.rows if l0[row] == l0[row] and values[row] == values[row]]


def front(points: list[tuple[float, float]], better: str = "higher") -> list[tuple[float, float]]:
    """The Pareto front of points (L0, value), by rising L0: no other point is at least as good in both."""
    sign = 1 if better == "higher" else -1
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (point[0], -sign * point[1])):
        if not best or sign * y > sign * best[-1][1]:
            best.append((x, y))
    return best


def front_variants(study: Study, variants: list[Variant], name: str) -> list[Variant]:
    """All variants up to 10; beyond it at most 8 of those on the front."""
    if len(variants) <= 10:
        return variants
    best = set(
        front([point for variant in variants for point in points_of(study, variant, name)], direction(name) or "higher")
    )
    return evenly([variant for variant in variants if best & set(points_of(study, variant, name))], 8)
