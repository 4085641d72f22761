"""What is known of metrics: order, groups, short names, what is better, targets, which row is best."""

import re
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING

from sae_sweeps.config.evaluations import BUILTIN

if TYPE_CHECKING:
    pass

Column = tuple[str, str]
"""A column of a frame: run, config, metrics, one of STATISTICS or DIFFERENCES; then its name."""
STATISTICS = ("std", "n", "ci_low", "ci_high")
"""Beside a metric's mean where runs are folded: spread (n - 1), runs, a 95 % confidence interval of the mean."""
DIFFERENCES = ("difference", "difference_low", "difference_high")
"""A metric's difference to the baseline's, and its 95 % confidence interval where runs are folded."""
BUDGETS = {"tokens": "num_tokens", "steps": "total_steps"}
"""Metrics that have to agree among compared runs, each with the config key or run field for records without it."""
JUDGED = (
    "sae_top_1_test_accuracy", "tpp_threshold_10_total_metric", "scr_metric_threshold_10", "mean_absorption_score",
    "unlearning_score", "autointerp_score",
)  # fmt: skip
"""One metric of each evaluation of SAEBench beside core."""
HEADLINES = ("fvu", "ce_loss_score", "l0", *JUDGED, *(BUILTIN + name for name in JUDGED))
"""The metrics that `python -m sae_sweeps evaluate` prints."""
FIRST = (
    "fvu", "ce_loss_score", "l0", "dead_features", *JUDGED, *(BUILTIN + name for name in JUDGED),
    "nearest_neighbour_cosine", "recovery_share", "feature_mi", "tokens_to_fvu", "seconds_to_fvu", "penalty_loss",
)  # fmt: skip
"""The metrics of a default text table, in its order; all others follow in the other formats."""
DIRECTIONS = {
    "fvu": "lower",
    "explained_variance": "higher",
    "explained_variance_correct": "higher",
    "explained_variance_legacy": "higher",
    "mse": "lower",
    "mse_per_token": "lower",
    "cossim": "higher",
    "l2_ratio": "one",
    "relative_reconstruction_bias": "one",
    "ce_loss_score": "higher",
    "ce_loss_with_sae": "lower",
    "kl_div_score": "higher",
    "kl_div_with_sae": "lower",
    "recon_loss": "lower",
    "dead_features": "lower",
    "frac_alive": "higher",
    "nearest_neighbour_cosine*": "lower",
    "mean_abs_cosine": "lower",
    "recovery_mmcs*": "higher",
    "recovery_matched*": "higher",
    "recovery_share*": "higher",
    "recovery_split*": "lower",
    "recovery_merged*": "lower",
    "nmi": "higher",
    "silhouette": "higher",
    "feature_mi*": "higher",
    "composition_rate": "lower",  # composition_rate_random is what chance gives, and no one's merit
    "distinct_features": "higher",
    "tokens_to_fvu": "lower",
    "seconds_to_fvu": "lower",
    "mean_absorption*": "lower",
    "hierarchy_coarse_*_accuracy": "higher",
    "hierarchy_fine_*_accuracy": "higher",
    "mean_full_absorption*": "lower",
    "sae_test_accuracy": "higher",
    "sae_top_*_test_accuracy": "higher",
    "scr_metric_threshold_*": "higher",
    "tpp_threshold_*_total_metric": "higher",
    "unlearning_score": "higher",
    "autointerp_score": "higher",
}
"""What is better, by metric name or pattern: lower, higher, or one (nearest to 1).

Others are not ranked: `final_loss` and `penalty_loss` contain the penalty weight that sweeps vary, `l0` is a choice.
"""
TARGETS = {
    "mean_absorption_score": ("lower", 0.01),
    "unlearning_score": ("higher", 0.1),
    "sae_top_1_test_accuracy": ("higher", 0.74),
}
"""What the field aims at on SAEBench's data: below, or above. A `builtin_` score is another measure and has none."""
GROUPS = {
    "convergence": ("tokens_to_fvu", "seconds_to_fvu"),
    "budget": ("tokens", "steps"),
    "core": ("fvu", "ce_loss*", "kl_div*", "explained_variance*", "mse*", "cossim", "*_loss", "l2_*", "relative_*"),
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
"""Headers above metrics, each with names or patterns; the first that fits wins, `penalty_loss` apart."""
SHORT = {
    r"ce_loss_score": "ce_score",
    r"kl_div_score": "kl_score",
    r"explained_variance(\w*)": r"expl_var\1",
    r"relative_reconstruction_bias": "recon_bias",
    r"dead_features": "dead",
    r"(sae|llm)_test_accuracy": r"\1_all",
    r"sae_top_(\d+)_test_accuracy": r"top\1",
    r"llm_top_(\d+)_test_accuracy": r"llm_top\1",
    r"scr_metric_threshold_(\d+)": r"scr\1",
    r"scr_(dir\d)_threshold_(\d+)": r"scr\2_\1",
    r"tpp_threshold_(\d+)_total_metric": r"tpp\1",
    r"tpp_threshold_(\d+)_(un)?intended_diff_only": r"tpp\1_\2intended",
    r"mean_absorption_score": "absorption",
    r"mean_full_absorption_score": "full_absorption",
    r"mean_absorption_fraction_score": "absorption_fraction",
    r"mean_num_split_features": "splits",
    r"(unlearning|autointerp)_score": r"\1",
    r"nearest_neighbour_cosine(\w*)": r"nn_cos\1",
    r"mean_abs_cosine": "abs_cos",
    r"average_max_(en|de)coder_cosine_sim": r"max_\1c_cos",
}
"""Names for headers that people read, by pattern of the whole name."""


@cache
def group(metric: str) -> str:
    """The header above a metric. Scores on built-in data stand apart from SAEBench's."""
    if metric.startswith(BUILTIN):
        return "built-in data"
    if metric == "penalty_loss":
        return "penalty"
    fits = (name for name, patterns in GROUPS.items() if any(fnmatchcase(metric, pattern) for pattern in patterns))
    return next(fits, "other")


@cache
def short_name(metric: str) -> str:
    """The metric's name for a header: itself where nothing shorter says the same."""
    prefix = BUILTIN if metric.startswith(BUILTIN) else ""
    rest = metric.removeprefix(BUILTIN)
    for pattern, name in SHORT.items():
        if match := re.fullmatch(pattern, rest):
            return prefix + match.expand(name)
    return metric


@cache
def direction(metric: str) -> str | None:
    """lower, higher, one, or None for a metric that is not ranked."""
    metric = metric.removeprefix(BUILTIN)
    if metric in DIRECTIONS:
        return DIRECTIONS[metric]
    return next((better for pattern, better in DIRECTIONS.items() if fnmatchcase(metric, pattern)), None)


def badness(metric: str, value: float) -> float:
    """The value turned so that smaller is better; as it is for a metric that is not ranked."""
    return {"higher": -value, "one": abs(value - 1)}.get(direction(metric) or "", value)


def unfitness(l0: float | None, d_sae: float | None, d_in: float | None) -> str | None:
    """Why an SAE's scores are no merit: nothing fires, or so much that it is not sparse. None for a fit one."""
    if l0 is None or l0 != l0:
        return None
    if l0 == 0:
        return "dead: no feature fires (l0 0)"
    if d_sae and l0 > d_sae / 10:
        return f"not sparse: l0 {l0:,.4g} is above a tenth of d_sae {d_sae:,}"
    if d_in and l0 > d_in:
        return f"not sparse: l0 {l0:,.4g} is above d_in {d_in:,}"
    return None
