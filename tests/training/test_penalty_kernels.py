"""Penalties by the compiled loops and in plain torch: whole runs of steps end at the same numbers."""

import pytest
import torch
from composed import D_IN, STEPS, batch_at, configured

from sae_sweeps.training.step import Training

PENALTIES = {
    "ortho": ["base_threshold=0.1"],
    "ortho, sigmoid": ["base_threshold=0.1", "penalty.competition=sigmoid"],
    "decorrelation": ["lambda2_max=0.01"],
    "selective_ortho": [],
    "ortsae": [],
}


def trained(words):
    run = configured(*words, "train.precision=float64")
    training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
    rows = [training.step(batch_at(step), step, logged=True).numbers for step in range(STEPS)]
    return rows, training


@pytest.mark.parametrize("architecture", ["topk", "batch_topk", "standard"])
@pytest.mark.parametrize("case", PENALTIES)
def test_runs_end_at_the_same_numbers(case, architecture):
    """In float64, where what rounding makes of thirty steps stays far below what a wrong term would show."""
    words = [f"penalty={case.partition(',')[0]}", f"architecture={architecture}", *PENALTIES[case]]
    fast, training = trained(words)
    reference, _ = trained([*words, "train.kernels=reference"])
    assert training.sae.kernels is not None
    assert any(row["penalty_loss"] > 0 for row in fast)
    for name in ("loss", "penalty_loss", "fvu"):
        assert fast[-1][name] == pytest.approx(reference[-1][name], rel=1e-9)
