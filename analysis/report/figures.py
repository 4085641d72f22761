"""Figures within a page: PNGs of a small palette, as many as the page has room for."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.plots.registry import PLOTS
from analysis.plots.study import Missing, Study
from analysis.plots.style import small_png, style

DEFAULT = (
    "effects", "pareto", "evaluation_metrics", "training_curves", "by_number", "unlearning_scores", "recovery",
    "penalty_and_reconstruction", "feature_metrics", "feature_separation", "sparsity", "penalty_terms", "schedules",
    "gradient_norms", "contrast", "group_mi", "group_events", "competition", "pair_correlation",
    "similarity_histograms", "selective_groups", "feature_statistics", "training_metrics", "sparsity_analysis",
    "similarity_matrices",
)  # fmt: skip
"""What a report shows, most wanted first: where room is short the last are left out."""
DPI = 165
"""Of the file: on a plain screen a quarter more than it is shown with."""
SCALE = 1.38
"""A figure of three panels fills the page."""
MANY = 100
"""Runs from which a report shows FEW figures: it has to be quick and small."""
FEW = ("effects", "pareto", "training_curves", "sparsity", "similarity_histograms")


@dataclass
class Picture:
    name: str
    about: str
    address: str
    """A data URI."""
    width: int
    """Pixels at which it is shown."""
    height: int


def pictures(study: Study, names: Sequence[str], room: int) -> tuple[list[Picture], list[str]]:
    """The figures that can be drawn and fit into `room` bytes; and a sentence on each that does not fit."""
    found, left_out = [], []
    with style():
        for name in names:
            try:
                fig = PLOTS[name].draw(study)
            except Missing:
                continue
            address = "data:image/png;base64," + base64.b64encode(small_png(fig, DPI)).decode()
            if len(address) > room:
                left_out.append(name)
                continue
            room -= len(address)
            width, height = (round(96 * SCALE * inches) for inches in fig.get_size_inches())
            found.append(Picture(name, PLOTS[name].about, address, width, height))
    return found, left_out
