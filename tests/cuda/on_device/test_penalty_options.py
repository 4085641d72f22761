"""Options of penalties and of the group layer that no default has: a plain step waits nowhere, and its numbers are the
CPU's."""

import pytest
import torch
from plain_step import DEVICE, batch, made
from simulated_cuda import LOG

pytestmark = pytest.mark.slow
SPARSE = ["architecture=topk", "k=4", "architecture.aux_weight=0"]
DENSE = ["architecture=standard"]
GROUPS = ["group_layer=groups", "group_layer.group_size=8"]
RARELY = "group_layer.adapt_every=100"
CASES = {
    "ortho: mean, sigmoid": [*SPARSE, "penalty=ortho", "penalty.reduction=mean", "penalty.competition=sigmoid"],
    "ortho: momentum": [*DENSE, "penalty=ortho", "penalty.momentum=0.9", "penalty.overlap=cosine"],
    "ortho+contrastive": [*SPARSE, "penalty=ortho+contrastive"],
    "selective_ortho: k-means, not due": [
        *SPARSE, "penalty=selective_ortho", "penalty.grouping=kmeans", "penalty.regroup_every=100"
    ],
    "decorrelation: the most active": [*SPARSE, "penalty=decorrelation", "penalty.active_fraction=0.5"],
    "ortsae: small chunks": [*SPARSE, "penalty=ortsae", "penalty.chunk_size=5"],
    **{
        f"contrastive: similar by {key}": [
            *SPARSE, "penalty=contrastive", "penalty.positives=top5_similar", f"penalty.similar_by={key}"
        ]
        for key in ("x", "head", "feature_acts")
    },
    "contrastive: diversity": [*DENSE, "penalty=contrastive", "penalty.diversity_weight=0.1"],
    "bottleneck: all terms, tokens": [
        *SPARSE, *GROUPS, "penalty=bottleneck", "penalty.group_lasso_weight=0.1", "penalty.contrastive_weight=0.1"
    ],
    "bottleneck: between groups": [
        *DENSE, *GROUPS, "penalty=bottleneck", "penalty.contrastive_weight=0.1", "penalty.contrast=groups"
    ],
    "bottleneck: window of one batch": [*SPARSE, *GROUPS, "penalty=bottleneck", "group_layer.window=16"],
    **{
        f"groups: {option}": [*SPARSE, *GROUPS, "penalty=none", f"group_layer.{option}"]
        for option in ("competition=true", "mask=0.5", "dropout=0.1", "residual=0.1", "reversal=0.1")
    },
    **{
        f"groups: adapt={kind}, not due": [*SPARSE, *GROUPS, "penalty=none", f"group_layer.adapt={kind}", RARELY]
        for kind in ("similarity", "mi")
    },
}  # fmt: skip


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_a_plain_step_waits_nowhere_and_gives_the_cpus_numbers(words):
    exact = ["schedule=constant", "train.precision=float64", *words]
    on_device, on_cpu = made(exact, DEVICE), made([*exact, "train.kernels=reference"], torch.device("cpu"))
    for step in range(3):
        one, other = batch(step, DEVICE), batch(step, torch.device("cpu"))
        LOG.clear()
        if step == 2:  # neither logged nor monitored, nor one at which pairs are chosen
            on_device.step(one, step)
            assert not LOG.by_place()
            return
        numbers = on_device.step(one, step, logged=True).numbers
        expected = on_cpu.step(other, step, logged=True).numbers
        if "dropout" not in " ".join(words):  # which each device draws for itself
            for name, value in expected.items():
                assert numbers[name] == pytest.approx(value, rel=1e-8, abs=1e-12), name
