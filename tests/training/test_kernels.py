"""Steps of training by the fast kernels beside those by the plain dense formulas."""

import pytest
import torch
from composed import D_IN, batch_at, configured

from sae_sweeps.training.step import Training


def trained(words, kernels, steps=12):
    run = configured(*words.split(), f"train.kernels={kernels}", "train.dead_after_tokens=128")
    training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
    rows = [training.step(batch_at(step), step, True, True).numbers for step in range(steps)]
    return training, rows


STEPS = [
    "architecture=topk k=4",
    "architecture=topk k=40 k_start=4 architecture.aux_weight=1",
    "architecture=topk k=4 penalty=ortho+contrastive+bottleneck",
    "architecture=topk k=4 penalty=decorrelation group_layer=groups group_layer.group_size=8 group_layer.dropout=0.2",
    "architecture=topk k=4 group_layer=groups group_layer.group_size=8 group_layer.residual=0.2",
    "architecture=batch_topk k=4",
    "architecture=matryoshka k=4",
    "architecture=standard l1_penalty=0.3",
    "architecture=p_anneal l1_penalty=0.3",
    "architecture=gated l1_penalty=0.3",
    "architecture=jumprelu target_l0=4",
]


@pytest.mark.parametrize("words", STEPS)
def test_whole_steps_equal_those_of_the_plain_formulas(words):
    fast, fast_rows = trained(words, "auto")
    plain, plain_rows = trained(words, "reference")
    assert fast.sae.kernels is not None and plain.sae.kernels is None
    for mine, theirs in zip(fast_rows, plain_rows, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-3, abs=1e-5)
    for (name, mine), (_, theirs) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")
