"""Properties of metrics: order, groups, short names, direction (which value is better), targets."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from sae_sweeps.config.evaluations import BUILTIN, LABELLED, PREFIXES, describe, known_metrics, plain_name, prefix_of

Column = tuple[str, str]
"""A column of a frame: run, config, metrics, one of STATISTICS or DIFFERENCES; then its name."""
STATISTICS = ("std", "n", "ci_low", "ci_high")
"""Columns of an aggregated metric beside its mean: std (n - 1), n, 95 % confidence interval of the mean."""
DIFFERENCES = ("difference", "difference_low", "difference_high")
"""A metric's difference to the baseline's, and its 95 % confidence interval where runs are aggregated."""
BUDGETS = {"tokens": "num_tokens", "steps": "total_steps"}
"""Metrics that have to agree among compared runs, each with the config key or run field for records without it."""
JUDGED = (
    "sae_top_1_test_accuracy", "tpp_threshold_10_total_metric", "scr_metric_threshold_10", "mean_absorption_score",
    "unlearning_score", "autointerp_score",
)  # fmt: skip
"""One metric of each evaluation of SAEBench beside core."""
JUDGED_ELSEWHERE = tuple(prefix + name for prefix in PREFIXES.values() for name in JUDGED)
"""The same on other data than SAEBench's."""
HEADLINES = ("fvu", "ce_loss_score", "l0", *JUDGED, *JUDGED_ELSEWHERE)
"""The metrics that `python -m sae_sweeps evaluate` prints."""
FIRST = (
    "fvu", "ce_loss_score", "l0", "dead_features", *JUDGED, *JUDGED_ELSEWHERE,
    "nearest_neighbour_cosine", "recovery_share", "feature_mi", "tokens_to_fvu", "seconds_to_fvu", "penalty_loss",
)  # fmt: skip
"""The metrics of a default text table, in its order; all others follow in the other formats."""
REPORTED_FIRST = ("steps", "final_loss")
"""The metrics before these where a run is imported: many records have no others."""
DIRECTIONS = {"recon_loss": "lower", "tokens_to_fvu": "lower", "seconds_to_fvu": "lower"}
"""What is better of the metrics of training: lower, higher, or one (nearest to 1). Each evaluation describes its own.

Others are not ranked: `final_loss` and `penalty_loss` contain the penalty weight that sweeps vary, `l0` is a choice.
"""
TARGETS = {
    "mean_absorption_score": ("lower", 0.01),
    "unlearning_score": ("higher", 0.1),
    "sae_top_1_test_accuracy": ("higher", 0.74),
}
"""Published targets on SAEBench's data: (lower or higher, value). Scores on built-in data have none."""
GROUPS = {
    "convergence": ("tokens_to_fvu", "seconds_to_fvu"),
    "budget": ("tokens", "steps", "*_steps"),
    "core": (
        "fvu*",
        "outlier_tokens",
        "ce_loss*",
        "kl_div*",
        "explained_variance*",
        "mse*",
        "cossim",
        "*_loss",
        "l2_norm_*",
        "l2_ratio",
        "relative_*",
    ),
    "sparsity": ("l0", "l1", "dead_features", "frac_alive", "freq_over_*", "normalized_freq_over_*"),
    "probing": ("sae_test_accuracy", "sae_top_*", "llm_test_accuracy", "llm_top_*"),
    "SCR/TPP": ("scr_*", "tpp_*"),
    "absorption": ("*absorption*", "*_num_split_features"),
    "unlearning": ("unlearning*",),
    "autointerp": ("autointerp*",),
    "hierarchy": ("hierarchy_*",),
    "geometry": (
        "nearest_neighbour*",
        "mean_abs_cosine",
        "average_max_*_cosine_sim",
        "composition_rate*",
        "distinct_features",
    ),
    "recovery": ("recovery_*",),
    "labels": ("nmi", "silhouette", "feature_mi*"),
    "penalty": ("penalty*",),
}
"""Headers above metrics, each with names or patterns; the first match wins, except for `penalty_loss`."""


@cache
def group(metric: str) -> str:
    """The header above a metric. Scores on other data than SAEBench's have a header of their own."""
    if prefix := prefix_of(metric):
        return {BUILTIN: "built-in data", LABELLED: "labelled data of your own"}[prefix]
    if metric == "penalty_loss":
        return "penalty"
    fits = (name for name, patterns in GROUPS.items() if any(fnmatchcase(metric, pattern) for pattern in patterns))
    return next(fits, "other")


@cache
def described(metric: str) -> tuple[str | None, str | None]:
    """The direction and the short name, as the evaluation that measures the metric describes them."""
    return describe(metric, known_metrics()) or _recorded.get(metric) or (DIRECTIONS.get(metric), None)


BETTER = ("lower", "higher", "one", None)
_recorded: dict[str, tuple[str | None, str | None]] = {}


def remember(descriptions: dict[str, Any]) -> None:
    """Add descriptions that a results.json has of metrics of evaluations from outside."""
    pairs = {metric: how for metric, how in descriptions.items() if isinstance(how, list) and len(how) == 2}
    new = {metric: (better, short) for metric, (better, short) in pairs.items() if better in BETTER}
    if not new.items() <= _recorded.items():
        _recorded.update(new)
        described.cache_clear()


def outside(metrics: Iterable[str]) -> dict[str, list[str | None]]:
    """How metrics of evaluations from outside are described, as `remember` takes it."""
    return {metric: list(_recorded[metric]) for metric in metrics if metric in _recorded}


def short_name(metric: str) -> str:
    """The metric's name for a header: itself where it has no shorter one."""
    short = described(plain_name(metric))[1]
    return metric if short is None else prefix_of(metric) + short


@cache
def metric_named(word: str) -> str | None:
    """The metric of this name or short name, or None for a word that is neither."""
    if prefix := prefix_of(word):
        metric = metric_named(plain_name(word))
        return metric and prefix + metric
    known = known_metrics()
    patterns = [pattern for name in ("core", "sparsity") for pattern in GROUPS[name]]
    names = {*FIRST, *DIRECTIONS, *(name for names in GROUPS.values() for name in names if "*" not in name)}
    if word in names or describe(word, known) or any(fnmatchcase(word, pattern) for pattern in patterns):
        return word
    for pattern, (_, short) in known.items():
        form, metric = short or "", pattern
        groups = list(enumerate(re.findall(r"\(.*?\)", pattern), 1))
        for number, group_ in groups:
            form = form.replace(f"\\{number}", f"(?P<of{number}>{group_[1:-1]})")
        if form and (found := re.fullmatch(form, word)):
            for number, group_ in groups:
                metric = metric.replace(group_, found[f"of{number}"], 1)
            return metric
    return None


def direction(metric: str) -> str | None:
    """lower, higher, one, or None for a metric that is not ranked."""
    return described(plain_name(metric))[0]


def badness(metric: str, value: float) -> float:
    """The value transformed so that smaller is better; unchanged for a metric without a direction."""
    return {"higher": -value, "one": abs(value - 1)}.get(direction(metric) or "", value)


def unfitness(l0: float | None, d_sae: float | None, d_in: float | None, steps: float | None = None) -> str | None:
    """Why an SAE is never marked best: it was not trained, is dead, or not sparse. None for an SAE that may be."""
    if steps == 0:
        return "never trained: 0 steps"
    if l0 is None or l0 != l0:
        return None
    if l0 == 0:
        return "dead: no feature fires (l0 0)"
    if d_sae and l0 > d_sae / 10:
        return f"not sparse: l0 {l0:,.4g} is above a tenth of d_sae {d_sae:,}"
    if d_in and l0 > d_in:
        return f"not sparse: l0 {l0:,.4g} is above d_in {d_in:,}"
    return None
