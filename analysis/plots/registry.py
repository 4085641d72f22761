"""All figures by name. A further figure is a function that takes a Study, and a line here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from analysis.plots import features, groups, outcomes, training
from analysis.plots.effects import effects
from analysis.plots.study import Study


@dataclass(frozen=True)
class Plot:
    """A figure that can be drawn."""

    about: str
    """What it shows, in one line."""
    needs: str
    """The files it is drawn from."""
    draw: Callable[[Study], Figure]
    """Raises Missing where they are not there."""


METRICS, RESULTS, MONITORS = "metrics.jsonl", "results.json or imported notes", "monitors.jsonl"
SNAPSHOTS = "monitors/*.npz"

PLOTS: dict[str, Plot] = {
    "effects": Plot("each variant's difference to its baseline, with its interval over seeds", RESULTS, effects),
    "training_curves": Plot("all loss terms and fvu over the training", METRICS, training.training_curves),
    "held_out": Plot("fvu on held-out text over the tokens", METRICS, training.held_out),
    "sparsity": Plot("L0 and dead features over the training", METRICS, training.sparsity),
    "penalty_and_reconstruction": Plot(
        "the weighted penalty beside the reconstruction loss, and its share",
        METRICS,
        training.penalty_and_reconstruction,
    ),
    "penalty_terms": Plot("every number that penalties log", METRICS, training.penalty_terms),
    "schedules": Plot("learning rate, k, weights and thresholds, as used", METRICS, training.schedules),
    "gradient_norms": Plot("each loss term's gradient on W_dec and W_enc", METRICS, training.gradient_norms),
    "training_metrics": Plot("training steps, final loss and tokens per run", RESULTS, outcomes.training_metrics),
    "evaluation_metrics": Plot("each metric per run, with its target", RESULTS, outcomes.evaluation_metrics),
    "sparsity_analysis": Plot("L0 and L1 per run", RESULTS, outcomes.sparsity_analysis),
    "by_number": Plot("probing, SCR and TPP for each number of features", RESULTS, outcomes.by_number),
    "unlearning_scores": Plot("the unlearning score per run, with its target", RESULTS, outcomes.unlearning_scores),
    "pareto": Plot("L0 against loss recovered, explained variance and fvu", RESULTS, outcomes.pareto),
    "feature_metrics": Plot("three panels: final sparsity, L2 and MI loss", METRICS, outcomes.feature_metrics),
    "feature_separation": Plot("three panels: neighbours, NMI, silhouette", RESULTS, outcomes.feature_separation),
    "recovery": Plot("true features found, split and merged (model=synthetic)", RESULTS, outcomes.recovery),
    "similarity_matrices": Plot(
        "|cosine| of a block of features at the four phases", SNAPSHOTS, features.similarity_matrices
    ),
    "similarity_histograms": Plot(
        "|cosine| of pairs of features at the four phases", SNAPSHOTS, features.similarity_histograms
    ),
    "competition": Plot(
        "trajectories of c_ij of the watched pairs (ortho)",
        MONITORS,
        partial(features.trajectories, what="c", limits=(-0.03, 1.03)),
    ),
    "pair_correlation": Plot(
        "correlation of the watched pairs", MONITORS, partial(features.trajectories, what="correlation")
    ),
    "pair_similarity": Plot(
        "|cosine| of the watched pairs", MONITORS, partial(features.trajectories, what="abs_cosine")
    ),
    "pair_means": Plot("means of the watched pairs, run beside run", MONITORS, features.pair_means),
    "pairs_at_the_end": Plot(
        "|cosine| of the watched pairs against overlap and correlation", MONITORS, features.pairs_at_the_end
    ),
    "contrast": Plot("alignment, uniformity and retrieval (contrastive)", MONITORS, features.contrast),
    "group_mi": Plot("mutual information of groups (group layer)", MONITORS, groups.group_mi),
    "group_events": Plot("when groups adapt, and their sizes (group layer)", MONITORS, groups.group_events),
    "group_activity": Plot("energy and activity of groups (group layer)", MONITORS, groups.group_activity),
    "feature_statistics": Plot(
        "three panels: mean, maximum, spread (selective_ortho)", MONITORS, groups.feature_statistics
    ),
    "selective_groups": Plot("the features in group 1 (selective_ortho)", MONITORS, groups.selective_groups),
}
OLDER = {"unlearning": "unlearning_scores", "budgets": "training_metrics"}
"""Names that figures had before."""
