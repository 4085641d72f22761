"""What is known of metrics: their order, what is better, which row is best."""

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from sae_sweeps.evaluation.result import BUILTIN

if TYPE_CHECKING:
    import pandas as pd

Column = tuple[str, str]
"""A column of a frame: run, config or metrics; then its name."""

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


def direction(metric: str) -> str | None:
    """lower, higher, one, or None for a metric that is not ranked."""
    metric = metric.removeprefix(BUILTIN)
    if metric in DIRECTIONS:
        return DIRECTIONS[metric]
    return next((better for pattern, better in DIRECTIONS.items() if fnmatchcase(metric, pattern)), None)


def badness(metric: str, value: float) -> float:
    """The value turned so that smaller is better; as it is for a metric that is not ranked."""
    return {"higher": -value, "one": abs(value - 1)}.get(direction(metric) or "", value)


def best_rows(frame: "pd.DataFrame", column: Column) -> set[int]:
    """Row numbers that hold the best value of a ranked metric; none when all values are equal."""
    kind, name = column
    if kind != "metrics" or direction(name) is None:
        return set()
    scores = {row: badness(name, value) for row, value in enumerate(frame[column]) if value == value}
    best = min(scores.values(), default=None)
    rows = {row for row, score in scores.items() if score == best}
    return rows if len(rows) < len(scores) else set()
