"""Each architecture's loss and gradient against loops over tokens in float64, and what it exports."""

import json
import math
from pathlib import Path

import pytest
import torch
from bounds import Rounding, assert_within, close, unit_roundoff

from sae_sweeps.architectures import saelens
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.architectures.batch_topk import BatchTopK, BatchTopKConfig
from sae_sweeps.architectures.context import Context
from sae_sweeps.architectures.gated import Gated, GatedConfig
from sae_sweeps.architectures.jumprelu import JumpReLU, JumpReLUConfig
from sae_sweeps.architectures.l0_control import L0Control
from sae_sweeps.architectures.matryoshka import Matryoshka, MatryoshkaConfig
from sae_sweeps.architectures.p_anneal import FLOOR, PAnneal, PAnnealConfig, powers
from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.architectures.standard import Standard, StandardConfig
from sae_sweeps.architectures.topk import TopK, TopKConfig
from sae_sweeps.config.typed import check_values
from sae_sweeps.errors import ConfigError
from sae_sweeps.kernels.features import DenseFeatures

D_IN, D_SAE, TOTAL = 4, 12, 40
L1 = dict(d_sae=D_SAE, l1_penalty=0.1, l1_warmup=0.0, target_l0=None)
K = dict(d_sae=D_SAE, k=3, k_start=None, k_aux=None, aux_weight=0.0)
CASES = {
    "topk": (TopK, TopKConfig("topk", **K)),
    "batch_topk": (BatchTopK, BatchTopKConfig("batch_topk", **K, threshold_decay=0.5)),
    "matryoshka": (
        Matryoshka,
        MatryoshkaConfig("matryoshka", **K, threshold_decay=0.5, prefix_fractions=[0.25, 0.5]),
    ),
    "jumprelu": (
        JumpReLU,
        JumpReLUConfig(
            "jumprelu", D_SAE, l0_weight=0.3, l0_warmup=0.0, target_l0=None, bandwidth=0.8, initial_threshold=0.3,
            threshold_speed=2.0,
        ),
    ),
    "gated": (Gated, GatedConfig("gated", **L1)),
    "standard": (Standard, StandardConfig("standard", **L1)),
    "p_anneal": (
        PAnneal,
        PAnnealConfig("p_anneal", **L1, p_final=0.5, anneal_start=0.0, anneal_end=0.5, p_steps=4),
    ),
}  # fmt: skip


def made(name, seed=0, **changes):
    """The SAE in float64, with weights that are no special point."""
    cls, cfg = CASES[name]
    cfg = type(cfg)(**{**vars(cfg), **changes})
    generator = torch.Generator().manual_seed(seed)
    sae = cls(cfg, D_IN, TOTAL, 1000, generator).double()
    with torch.no_grad():
        for parameter in sae.parameters():
            if parameter is not sae.W_dec:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator).double()
    return sae


def tokens(n=7, seed=1):
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def forward(sae, x, step=0):
    z = sae.pre_activations(x)
    f = sae.activate(z, step)
    if isinstance(f, DenseFeatures):  # features are float32 in training
        f = DenseFeatures(f.values.to(x.dtype))
    x_hat = sae.decode(f)
    number = torch.arange(len(x), dtype=torch.int32)
    batch = Batch(x, number, number * 0, number, number.to(torch.int8) * 0)
    return Context(sae, batch, x, z, f, x - x_hat, step, TOTAL, 0)


def total_loss(sae, x, step=0):
    ctx = forward(sae, x, step)
    parts = sae.extra_losses(ctx)
    return ctx.reconstruction(ctx.error) + sum(value * weight for value, weight in parts.values()), ctx


def z_of(sae, row):
    return [sum((row[d] - sae.b_dec[d]) * sae.W_enc[d, i] for d in range(D_IN)) + sae.b_enc[i] for i in range(D_SAE)]


def decoded(sae, f, n=None):
    """x_hat from the first n features."""
    return sum((f[i] * sae.W_dec[i] for i in range(len(f) if n is None else n)), start=sae.b_dec)


def slow_loss(name, sae, x, step=0):
    """The same loss, token by token, straight from the formulas (kept features by explicit sorting)."""
    Z = [z_of(sae, row) for row in x]
    k = getattr(sae.cfg, "k", 0)
    if name == "topk":
        kept = [set(sorted(range(D_SAE), key=lambda i, z=z: -z[i].item())[:k]) for z in Z]
    else:
        order = sorted(((t, i) for t in range(len(x)) for i in range(D_SAE)), key=lambda at: -Z[at[0]][at[1]].item())
        chosen = set(order[: k * len(x)])
        kept = [{i for i in range(D_SAE) if (t, i) in chosen} for t in range(len(x))]
    loss = x.new_zeros(())
    for t, row in enumerate(x):
        z = Z[t]
        if name in ("topk", "batch_topk", "matryoshka"):
            f = [z[i].relu() * (i in kept[t]) for i in range(D_SAE)]
        elif name == "gated":
            f = [
                (sae.r_mag[i].exp() * (z[i] - sae.b_enc[i]) + sae.b_mag[i]).relu() * bool(z[i] > 0)
                for i in range(D_SAE)
            ]
        else:
            f = [z[i].relu() for i in range(D_SAE)]
        loss = loss + (row - decoded(sae, f)).square().sum()
        if name == "matryoshka":
            for m in (3, 6):
                loss = loss + (row - decoded(sae, f, m)).square().sum()
        elif name == "gated":
            gate = [z[i].relu() for i in range(D_SAE)]
            frozen = sum((gate[i] * sae.W_dec[i].detach() for i in range(D_SAE)), start=sae.b_dec.detach())
            loss = loss + sae.cfg.l1_penalty * sum(gate) + (row - frozen).square().sum()
        elif name == "standard":
            loss = loss + sae.cfg.l1_penalty * sum(f)
        elif name == "p_anneal":
            p = sae.p_at(step)
            for value in f:
                if value > FLOOR:
                    loss = loss + sae.cfg.l1_penalty * value**p
                elif value > 0:
                    loss = loss + sae.cfg.l1_penalty * value * FLOOR ** (p - 1)
    return loss / len(x)


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("name", [name for name in CASES if name != "jumprelu"])
def test_loss_and_gradient_equal_the_formulas(name, n):
    sae, x = made(name), tokens(n)
    parameters = dict(sae.named_parameters())
    found = following(total_loss(sae, x, step=10)[0], parameters)
    rounding = Rounding(torch.float32)  # features are float32 in training
    with rounding:
        expected = following(slow_loss(name, sae, x, step=10), parameters)
    for label, value in expected.items():
        rounding.assert_close(found[label], value, name=label)


def following(loss, parameters):
    """The loss, and its gradient on each parameter, 0 where it has none."""
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), grads, strict=True)
    return {"loss": loss} | {name: torch.zeros_like(p) if grad is None else grad for (name, p), grad in pairs}


@pytest.mark.parametrize("target", [None, 2.0])
def test_jumprelu_s_straight_through_gradient(target):
    """By hand: f = z H(z - theta), theta = unit exp(speed * t), rectangle of width eps."""
    sae, x = made("jumprelu", target_l0=target), tokens()
    total_loss(sae, x)  # the first batch sets unit and baseline
    with torch.no_grad():
        sae.log_threshold += 0.1 * torch.randn(D_SAE, generator=torch.Generator().manual_seed(5)).double()
    with Rounding() as rounding:
        loss, ctx = total_loss(sae, x)
        grad_theta, grad_b = torch.autograd.grad(loss, [sae.log_threshold, sae.b_enc])
    unit, baseline = float(sae.unit), float(sae.baseline)
    theta = [unit * math.exp(2.0 * t.item()) for t in sae.log_threshold]
    eps = 0.8 * unit
    n_active, on_theta, z_grad = 0, [0.0] * D_SAE, torch.zeros(len(x), D_SAE).double()
    Z = [[v.item() for v in z_of(sae, row)] for row in x]
    f = [[z if z > max(theta[i], 0) else 0.0 for i, z in enumerate(row)] for row in Z]
    errors = [x[t] - decoded(sae, f[t]).detach() for t in range(len(x))]
    recon = sum(float(e.square().sum()) for e in errors) / len(x)
    n_active = sum(value > 0 for row in f for value in row) / len(x)
    share = n_active / D_SAE if target is None else (n_active / target - 1) ** 2
    slope = 1 / D_SAE if target is None else 2 * (n_active / target - 1) / target
    rounding.assert_close(recon + 0.3 * baseline * share, loss, factor=2)
    for t in range(len(x)):
        for i in range(D_SAE):
            on_f = -2 * float(errors[t] @ sae.W_dec[i].detach()) / len(x)
            z_grad[t, i] = on_f * (f[t][i] > 0)
            if abs(Z[t][i] - theta[i]) < eps / 2:
                on_theta[i] += -(theta[i] / eps) * on_f - 0.3 * baseline * slope / eps / len(x)
    expected = [g * th * 2.0 for g, th in zip(on_theta, theta, strict=True)]
    rounding.assert_close(expected, grad_theta, factor=2)
    rounding.assert_close(z_grad.sum(0), grad_b, factor=2)


def test_jumprelu_starts_at_the_target():
    sae = made("jumprelu", target_l0=3.0)
    x = tokens(400)
    assert float(forward(sae, x).feature_acts.l0()) == pytest.approx(3.0, rel=0.1)


def test_batch_topk_keeps_as_many_as_topk_in_the_mean_and_learns_its_threshold():
    sae, x = made("batch_topk"), tokens(50)
    ctx = forward(sae, x)
    assert int((ctx.feature_acts.values > 0).sum()) <= 150 and float(ctx.feature_acts.l0()) == pytest.approx(3, rel=0.1)
    smallest = ctx.feature_acts.values[ctx.feature_acts.values > 0].min().item()
    sae.observe(ctx)
    assert float(sae.threshold) == smallest
    sae.observe(forward(sae, tokens(50, seed=9)))
    other = forward(sae, tokens(50, seed=9)).feature_acts.values
    close(sae.threshold, (smallest + other[other > 0].min().item()) / 2, n=4)


def test_k_grows_for_every_kind_of_topk():
    for name in ("topk", "batch_topk", "matryoshka"):
        sae = made(name, k_start=1)
        assert [sae.k_at(step) for step in (0, TOTAL - 1)] == [1, 3] and sae.numbers(0)["k"] == 1


def test_p_falls_in_steps_and_the_term_does_not_jump():
    sae, x = made("p_anneal"), tokens(30)
    assert [sae.p_at(step) for step in (0, 4, 5, 10, 20, 39)] == [1, 1, 0.875, 0.75, 0.5, 0.5]
    before = None
    for step in range(25):
        ctx = forward(sae, x, step)
        value, weight = sae.extra_losses(ctx)["sparsity"]
        now = float(value.detach()) * weight
        if before is not None:  # one sum of 30 x 12 powers over another, all positive
            close(now, before, n=2 * (30 * D_SAE + 8))
        before = now
        sae.observe(ctx)
    assert float(sae.rescale) != 1 and sae.numbers(20)["p"] == 0.5


@pytest.mark.parametrize("p", [1.0, 0.5, 0.1])
def test_powers_are_finite_at_zero_and_continuous_at_the_floor(p):
    f = torch.tensor([0.0, FLOOR / 2, FLOOR, FLOOR * (1 + 1e-9), 2.0], dtype=torch.float64, requires_grad=True)
    value = powers(f, p)
    value.sum().backward()
    assert f.grad.isfinite().all() and value[0].item() == 0
    close(value[2], FLOOR**p, n=16)
    assert_within(value[3], FLOOR**p, (p * 1e-9 + 32 * unit_roundoff(f.dtype)) * FLOOR**p)  # f is 1e-9 further up
    close(value[4], 2.0**p, n=16)


def test_l0_control_moves_the_coefficient_towards_the_target():
    control = L0Control(10.0, 100)
    for _ in range(70):  # stays at 40 while a fall to 10 is wanted
        control.observe(torch.tensor(40.0))
    too_dense = control.factor()
    assert too_dense > 1
    for _ in range(100):
        control.observe(torch.tensor(2.0))
    assert control.factor() < too_dense
    off = L0Control(None, 100)
    off.observe(torch.tensor(3.0))
    assert off.factor() == 1


@pytest.mark.parametrize("name", CASES)
def test_what_is_exported_does_what_the_sae_does(name, tmp_path):
    """Saved, loaded, and in raw units though trained on 4 x; training's own features where training encodes alike."""
    sae = made(name).float()
    x = tokens(64).float()
    for step in range(3):
        sae.observe(forward(sae, 4 * tokens(64, seed=2).float(), step))
    weights, settings = sae.export(4.0)
    saelens.save(ExportedSAE(sae.exports_as, weights, **settings), tmp_path / "sae")
    loaded = saelens.load(tmp_path / "sae")
    f = loaded.encode(x)
    with Rounding() as rounding:
        z = sae.pre_activations(4 * x)
        if name in ("batch_topk", "matryoshka"):
            expected = z.relu() * (z > sae.threshold)
        else:
            expected = forward(sae, 4 * x, TOTAL - 1).feature_acts.dense()
        x_hat = expected @ sae.W_dec + sae.b_dec
    # no feature is so close to where it would jump that rounding decides
    edge = {
        "topk": lambda: z.topk(4, dim=1).values[:, 2:].mean(1, keepdim=True),
        "batch_topk": lambda: sae.threshold,
        "matryoshka": lambda: sae.threshold,
        "jumprelu": lambda: sae.threshold(),
        "gated": lambda: 0.0,
    }
    if name in edge:
        assert (z - edge[name]()).abs().min() > 2 * rounding.bound(z).max()
    rounding.assert_close(f * 4, expected, factor=2)
    rounding.assert_close(loaded.decode(f) * 4, x_hat, factor=2)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("standard", {"target_l0": 0.0}), ("standard", {"target_l0": 50.0}),
        ("standard", {"target_l0": 3.0, "l1_penalty": 0.0}), ("batch_topk", {"threshold_decay": 1.0}),
        ("matryoshka", {"prefix_fractions": []}), ("matryoshka", {"prefix_fractions": [0.5, 0.5]}),
        ("matryoshka", {"prefix_fractions": [0.5, 1.0]}), ("jumprelu", {"bandwidth": 0.0}),
        ("jumprelu", {"l0_weight": -1.0}), ("jumprelu", {"threshold_speed": 0.0}), ("p_anneal", {"p_final": 0.0}),
        ("p_anneal", {"anneal_start": 0.9}), ("p_anneal", {"p_steps": 0}), ("gated", {"l1_penalty": -1.0}),
    ],
)  # fmt: skip
def test_values_that_cannot_be_meant_are_refused(name, changes):
    _, cfg = CASES[name]
    with pytest.raises(ConfigError, match=r"^[^\n]+[.]$"):
        changed = type(cfg)(**{**vars(cfg), **changes})
        check_values(changed, "architecture")
        changed.check(D_IN)


def test_a_dictionary_no_larger_than_k_keeps_everything():
    sae = made("batch_topk", k=D_SAE)
    ctx = forward(sae, tokens())
    assert torch.equal(ctx.feature_acts.values, ctx.pre_acts.relu())


EXAMPLES = json.loads((Path(__file__).parent / "worked_examples.json").read_text())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["name"])
def test_frozen_worked_examples(example):
    """B = 4, d_sae = 5, d_in = 3: loss and gradients as first computed by the slow reference."""
    cls, cfg = CASES[example["name"]]
    config = type(cfg)(example["name"], **example["config"])
    sae = cls(config, 3, example["total_steps"], 1000, torch.Generator()).double()
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.tensor(example["parameters"][name], dtype=torch.float64))
    with Rounding() as rounding:
        loss, _ = total_loss(sae, torch.tensor(example["x"], dtype=torch.float64), example["step"])
        found = following(loss, dict(sae.named_parameters()))
    for name, expected in (example["gradients"] | {"loss": example["loss"]}).items():
        rounding.assert_close(expected, found[name], factor=2, name=name)
