"""Every architecture, penalty, precision and way of the group layer trains, resumes, is exported and evaluated on the
simulated device, where tensors of two devices that meet are an error.

The quick tests take each choice once, the slow ones every two choices together, `make test-matrix` all combinations.
"""

import os
from dataclasses import replace
from functools import cache

import pytest
import torch
from bounds import Rounding
from composed import D_IN, choices, configured, save_checkpoint
from pairwise import Row, cover, full
from plain_step import DEVICE, SIZE, SMALL, batch
from simulated_cuda import LOG
from waits import KNOWN

from sae_sweeps.architectures import saelens
from sae_sweeps.config.run import RunConfig
from sae_sweeps.evaluation.core import evaluate_activations
from sae_sweeps.evaluation.geometry import decoder_geometry
from sae_sweeps.evaluation.held_out import sample
from sae_sweeps.kernels.rounded import at_hand
from sae_sweeps.runs.export import export, live_sae, trained_sae
from sae_sweeps.storage.files import write_json
from sae_sweeps.storage.run_folder import TRAINED, RunFolder
from sae_sweeps.training.checkpoint import load_checkpoint
from sae_sweeps.training.step import Training

CPU = torch.device("cpu")
GROUPS = "group_layer=groups group_layer.group_size=8"
FACTORS = {
    "architecture": choices("architecture"),
    "penalty": choices("penalty"),
    "train.precision": ["float32", "bfloat16"],
    "group_layer": ["group_layer=none", GROUPS, f"{GROUPS} group_layer.residual=0.1"],
}


def allowed(row: Row) -> bool:
    return not (row["penalty"] == "bottleneck" and row["group_layer"] == "group_layer=none")


def each_choice(rows: list[Row]) -> list[Row]:
    """A few of the rows, in which every choice of every factor is found."""
    missing, chosen = {item for row in rows for item in row.items()}, []
    while missing:
        chosen.append(max(rows, key=lambda row: len(missing & row.items())))
        missing -= chosen[-1].items()
    return chosen


PAIRS = cover(FACTORS, allowed)
QUICK = each_choice(PAIRS)
FULL = os.environ.get("TEST_MATRIX") == "full"
ROWS = list(full(FACTORS, allowed)) if FULL else PAIRS
SEEN: dict[str, set[str]] = {}
"""Where a plain step of each row waited, of the rows that this process has run."""


def cases(rows: list[Row]) -> list:
    slow = [pytest.mark.slow]
    return [pytest.param(row, marks=[] if row in QUICK else slow, id="-".join(row.values())) for row in rows]


@cache
def run_of(row: tuple[tuple[str, str], ...]) -> RunConfig:
    words = [value if key == "group_layer" else f"{key}={value}" for key, value in row]
    return configured(*SMALL, *" ".join(words).split(), *SIZE.get(dict(row)["architecture"], []))


@pytest.fixture
def run(row) -> RunConfig:
    return run_of(tuple(row.items()))


def made(run: RunConfig, device: torch.device) -> Training:
    return Training(run, 1.0, torch.zeros(D_IN, device=device), device)


def plain(run: RunConfig) -> RunConfig:
    """The same run by the plain formulas."""
    return replace(run, train=replace(run.train, kernels="reference"))


@pytest.mark.parametrize("row", cases(ROWS))
def test_trains_resumes_and_is_evaluated(row, run, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    training = made(run, DEVICE)
    start = plain_step(training)
    numbers = training.step(batch(0, DEVICE), 0, logged=True, monitored=True).numbers
    assert all(isinstance(value, float | int) for value in numbers.values())
    save_checkpoint(training, start, folder.checkpoint)
    now = batch(start, DEVICE)
    LOG.clear()
    training.step(now, start)
    waits, places = set(LOG.by_function()), LOG.by_place()

    again = made(run, DEVICE)
    assert load_checkpoint(again, folder.checkpoint) == start
    again.step(now, start)
    for (name, module), other in zip(training.modules().items(), again.modules().values(), strict=True):
        for key, value in module.state_dict().items():
            assert torch.equal(value.cpu(), other.state_dict()[key].cpu()), f"{name}.{key} after resuming"
    for weight in (one for sae in (training.sae, again.sae) for one in (sae.W_enc, sae.W_dec)):
        used = at_hand(weight).detach().cpu()
        assert torch.equal(used, weight.detach().cpu().to(used.dtype)), "a copy that is not the weight's"

    save_checkpoint(training, start + 1, folder.checkpoint)
    write_json(folder.path / TRAINED, {"provenance": {}, "warnings": []})
    if run.why_not_saelens() is None:
        export(run, training, folder)
    live, loaded = live_sae(run, training), trained_sae(run, folder)
    assert live.device == DEVICE and loaded.device == CPU
    monkeypatch.setattr(saelens, "choose", lambda requested, device: None)  # the plain formulas on the CPU too
    assert evaluated(live) == evaluated(live.to(CPU)) and evaluated(loaded) == evaluated(loaded.to(DEVICE))
    assert all(torch.equal(live.weights[name].cpu(), weight) for name, weight in loaded.weights.items())

    SEEN[repr(row)] = waits
    assert not waits - KNOWN, f"a plain step waits for the device at {places}"


@pytest.mark.slow
def test_what_is_listed_still_waits():
    for row in ROWS:
        if repr(row) not in SEEN:
            training = made(run_of(tuple(row.items())), DEVICE)
            step = plain_step(training)
            training.step(batch(0, DEVICE), 0)
            now = batch(step, DEVICE)
            LOG.clear()
            training.step(now, step)
            SEEN[repr(row)] = set(LOG.by_function())
    assert set.union(*SEEN.values()) == KNOWN


def plain_step(training: Training) -> int:
    """The first step after step 0 at which no pairs of features are recorded."""
    return min(step for step in range(1, training.total_steps) if step not in training.watched_pairs.due)


def evaluated(sae) -> str:
    """Its numbers on some activations; as text, in which nan equals itself."""
    x = torch.cat([batch(step, sae.device).x for step in (10, 11)])
    result = evaluate_activations({"": sae}, [x[:16], x[16:]])[""]
    columns = {name: column.tolist() for name, column in result.features.items()}
    held_out = sample(x.cpu(), 20, sae.device).measure(sae)
    return repr([result.metrics, columns, decoder_geometry(sae.weights["W_dec"]), held_out])


@pytest.mark.parametrize("row", cases(ROWS if FULL else QUICK))
def test_loss_and_gradients_are_those_of_the_cpu(row, run):
    """By the device's kernels and by the plain formulas on the CPU. In float64 what rounding makes of a step stays
    below 1e-9, as in tests/training/test_kernels.py; a wrong term shows above 1e-6."""
    run = replace(run, train=replace(run.train, precision="float64"))
    found, expected = loss_and_gradients(made(run, DEVICE)), loss_and_gradients(made(plain(run), CPU))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-9, atol=1e-9, check_dtype=False, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("architecture", ["topk", "batch_topk", "matryoshka"])
def test_the_kernels_are_within_rounding_of_the_plain_formulas(architecture):
    run = run_of((("architecture", architecture), ("penalty", "none"), ("train.precision", "float32")))
    rounding = Rounding()
    training = made(plain(run), CPU)
    with rounding:
        expected = loss_and_gradients(training)
    found = loss_and_gradients(made(run, DEVICE))
    for name, value in expected.items():
        rounding.assert_close(found[name], value, factor=2, name=name, terms=1e-3)


def loss_and_gradients(training: Training) -> dict[str, torch.Tensor]:
    """The loss of the first step, its weighted parts, and the gradient on each parameter that has one, on the CPU."""
    terms, parameters = training.forward(batch(0, training.device), 0), dict(training.named_parameters())
    grads = torch.autograd.grad(terms.loss, list(parameters.values()), allow_unused=True)
    parts = {name: torch.as_tensor(value * weight) for name, (value, weight) in terms.parts.items()}
    found = parts | {"loss": terms.loss} | dict(zip(parameters, grads, strict=True))
    return {name: value.detach().cpu() for name, value in found.items() if value is not None}
