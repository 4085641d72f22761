"""Options that the bottleneck study's runs have together, in float32 and in mixed precision."""

import math

import pytest
import torch
from composed import D_IN, STEPS, batch_at, configured

from sae_sweeps.training.step import Training

BOTTLENECK = "architecture=standard penalty=bottleneck train.recon=norm group_layer.group_size=8"
SINGLE = [
    "group_layer.dropout=0.2", "group_layer.residual=0.1", "group_layer.mask=0.5", "group_layer.reversal=0.1",
    "group_layer.competition=true group_layer.temperature=10", "penalty.group_lasso_weight=0.01",
    "group_layer.adapt=similarity group_layer.adapt_every=5", "penalty.contrast=groups penalty.contrastive_weight=0.1",
    "group_layer.adapt=mi group_layer.adapt_every=5 group_layer.max_size=16", "penalty.contrastive_weight=0.1",
]  # fmt: skip
RUN_3 = "l1_penalty=0.1 lr=1e-4 group_layer.dropout=0.1"
RUN_4 = (
    "l1_penalty=0.2 lr_schedule=cosine penalty.group_lasso_weight=0.01 group_layer.dropout=0.2 "
    "group_layer.residual=0.1 group_layer.adapt=mi group_layer.adapt_every=5 group_layer.max_size=16"
)
RUN_5 = (
    "l1_penalty=0.2 lr_schedule=warm_restarts penalty.contrast=groups penalty.contrastive_weight=0.1 "
    "group_layer.adapt=similarity group_layer.adapt_every=5 group_layer.competition=true group_layer.temperature=10 "
    "group_layer.mask=0.5 group_layer.reversal=0.1"
)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [*SINGLE, RUN_3, RUN_4, RUN_5])
def test_they_train_together_and_in_mixed_precision(options, precision):
    run = configured(*BOTTLENECK.split(), *options.split(), f"train.precision={precision}")
    training, events, rows = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu")), [], []
    for step in range(STEPS):
        report = training.step(batch_at(step), step, logged=True, monitored=step % 10 == 0)
        rows.append(report.numbers)
        events += [record for record in report.monitors if record["monitor"] == "group_event"]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(parameter.isfinite().all() for _, parameter in training.named_parameters())
    assert rows[-1]["recon_loss"] < rows[0]["recon_loss"]
    assert len(events) == (STEPS // 5 - 1 if "adapt_every" in options else 0)
    assert ("penalty/contrastive" in rows[-1]) == ("contrastive_weight" in options)
    assert (rows[-1].get("reversal_loss", 0) > 0) == ("reversal" in options)
