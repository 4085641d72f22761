"""`train.matmul`: how a GPU takes products of float32 matrices."""

import pytest
import torch
from composed import D_IN, batch_at, configured

from sae_sweeps.config.identity import canonical
from sae_sweeps.kernels.matmul import float32_products
from sae_sweeps.training.step import Training


@pytest.mark.parametrize("kind", ["float32", "tf32"])
def test_the_setting_holds_within_alone(kind):
    before = torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(ZeroDivisionError), float32_products(torch.device("cuda", 0), kind):
        assert torch.backends.cuda.matmul.allow_tf32 == (kind == "tf32")
        raise ZeroDivisionError
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_a_step_takes_its_runs_setting(monkeypatch):
    seen = []
    monkeypatch.setattr("sae_sweeps.training.step.float32_products",
                        lambda device, kind: seen.append(kind) or float32_products(device, kind))  # fmt: skip
    training = Training(configured("train.matmul=tf32"), 1.0, torch.zeros(D_IN), torch.device("cpu"))
    training.step(batch_at(0), 0)
    assert seen == ["tf32"]


def test_the_run_id_knows_tf32_and_not_the_default():
    assert "matmul" not in canonical(configured("architecture=topk"))["train"]
    assert canonical(configured("train.matmul=tf32"))["train"]["matmul"] == "tf32"
