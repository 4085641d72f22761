"""Every option of every penalty and of the group layer trains on the simulated device as on the CPU."""

import os

import pytest
import torch
from composed import D_IN
from plain_step import DEVICE, batch, made

STEPS = 6
"""More than the 5 after which groups adapt."""
CASES: list[tuple[str, str, str]] = []
if os.environ.get("TEST_MATRIX") == "full":
    from test_every_combination import GROUPS, OPTIONS

    for penalty, options in OPTIONS.items():
        for number, option in enumerate(options):
            groups = f"{GROUPS} " if penalty == "bottleneck" else ""
            architecture = ("standard", "batch_topk k=4", "topk k=4")[number % 3]
            CASES.append((architecture, penalty, groups + option))


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "penalty", "option"), CASES)
def test_an_option_trains_as_on_the_cpu(architecture, penalty, option):
    """In float64, where rounding stays below 1e-8 over a few steps and a wrong term shows above 1e-6."""
    words = [*f"architecture={architecture} penalty={penalty} {option}".split(), "train.precision=float64"]
    words += ["schedule=constant", "lr=1e-3"]
    found = []
    for device, kernels in ((DEVICE, "auto"), (torch.device("cpu"), "reference")):
        training = made([*words, f"train.kernels={kernels}"], device)
        for step in range(STEPS):
            training.step(batch(step, device), step, logged=True, monitored=step == STEPS - 1)
        found.append({name: parameter.detach().cpu() for name, parameter in training.named_parameters()})
    assert found[0]["sae.W_dec"].shape[1] == D_IN
    for name, value in found[1].items():
        torch.testing.assert_close(
            found[0][name], value, rtol=1e-8, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
        )
