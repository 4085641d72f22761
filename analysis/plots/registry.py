"""All figures by name. A further figure is a function that takes a Study, and a line here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.plots import features, groups, outcomes, training
from analysis.plots.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """A figure that can be drawn."""

    about: str
    """What it shows, in one line."""
    needs: str
    """The files it is drawn from."""
    draw: "Callable[[Study], Figure]"
    """Raises Missing where they are not there."""


PLOTS: dict[str, Plot] = {
    "training_curves": Plot("all loss terms and fvu over the training", "metrics.jsonl", training.training_curves),
    "held_out": Plot("fvu on held-out text over the tokens", "metrics.jsonl", training.held_out),
    "sparsity": Plot("L0 and dead features over the training", "metrics.jsonl", training.sparsity),
    "penalty_terms": Plot("every number that penalties log", "metrics.jsonl", training.penalty_terms),
    "schedules": Plot("learning rate, k, weights and thresholds, as used", "metrics.jsonl", training.schedules),
    "gradient_norms": Plot("each loss term's gradient on W_dec and W_enc", "metrics.jsonl", training.gradient_norms),
    "budgets": Plot("steps and tokens per run, and its final loss", "results.json", outcomes.budgets),
    "evaluation_metrics": Plot("each metric per run, with its target", "results.json", outcomes.evaluation_metrics),
    "by_number": Plot("probing, SCR and TPP for each number of features", "results.json", outcomes.by_number),
    "unlearning": Plot("the unlearning score per run, with its target", "results.json", outcomes.unlearning),
    "pareto": Plot("L0 against loss recovered, explained variance and fvu", "results.json", outcomes.pareto),
    "feature_metrics": Plot("three panels: neighbours, NMI, silhouette", "results.json", outcomes.feature_metrics),
    "recovery": Plot("true features found, split and merged (model=synthetic)", "results.json", outcomes.recovery),
    "similarity_matrices": Plot(
        "|cosine| of a block of features at the four phases", "monitors/*.npz", features.similarity_matrices
    ),
    "similarity_histograms": Plot(
        "|cosine| of pairs of features at the four phases", "monitors/*.npz", features.similarity_histograms
    ),
    "competition": Plot("trajectories of c_ij (ortho)", "monitors.jsonl", features.competition),
    "pair_correlation": Plot("correlation of pairs of features (ortho)", "monitors.jsonl", features.pair_correlation),
    "pair_similarity": Plot("|cosine| of the same pairs (ortho)", "monitors.jsonl", features.pair_similarity),
    "pairs_at_the_end": Plot(
        "|cosine| of pairs against overlap and correlation (ortho)", "monitors.jsonl", features.pairs_at_the_end
    ),
    "contrast": Plot("alignment, uniformity and retrieval (contrastive)", "monitors.jsonl", features.contrast),
    "group_mi": Plot("mutual information of groups (group layer)", "monitors.jsonl", groups.group_mi),
    "group_events": Plot("when groups adapt, and their sizes (group layer)", "monitors.jsonl", groups.group_events),
    "group_activity": Plot("energy and activity of groups (group layer)", "monitors.jsonl", groups.group_activity),
    "feature_statistics": Plot(
        "three panels: mean, maximum, spread (selective_ortho)", "monitors.jsonl", groups.feature_statistics
    ),
    "selective_groups": Plot("the features in group 1 (selective_ortho)", "monitors.jsonl", groups.selective_groups),
}
