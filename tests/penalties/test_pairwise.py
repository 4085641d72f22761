"""Strict and selective orthogonality, adaptive sharing, decorrelation and OrtSAE against loops in float64."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from bounds import Rounding, assert_within
from slow_reference import all_pairs, decorrelation, divided, ortsae, squared_cosines

from sae_sweeps.config.typed import check_values
from sae_sweeps.errors import ConfigError
from sae_sweeps.kernels import correlations
from sae_sweeps.kernels.features import DenseFeatures
from sae_sweeps.kernels.gram import squared_products, squared_products_between
from sae_sweeps.penalties.adaptive_sharing import AdaptiveSharing, AdaptiveSharingConfig
from sae_sweeps.penalties.decorrelation import Decorrelation, DecorrelationConfig, most_active
from sae_sweeps.penalties.ortsae import OrtSAE, OrtSAEConfig
from sae_sweeps.penalties.selective_ortho import (
    SelectiveOrtho,
    SelectiveOrthoConfig,
    batch_statistics,
    firing_rates,
    larger_cluster,
)
from sae_sweeps.penalties.strict_ortho import StrictOrtho, StrictOrthoConfig
from sae_sweeps.schedules import piecewise

REDUCTIONS = ("sum", "per_feature", "mean")
EXAMPLES = json.loads((Path(__file__).parent / "worked_examples_pairwise.json").read_text())


def strict(**changes):
    return StrictOrthoConfig(**{"name": "strict_ortho", "lambda2_max": 1.0, "reduction": "sum", **changes})


def adaptive(**changes):
    values = dict(lambda2_max=1.0, reduction="sum", breakpoints=[0.0, 1.0], alphas=[0.5, 0.0], tau=0.3, decay=0.5)
    return AdaptiveSharingConfig(name="adaptive_sharing", **{**values, **changes})


def selective(**changes):
    values = dict(
        lambda2_max=1.0, reduction="sum", grouping="relative_threshold", statistic="mean", alpha=0.5, decay=0.5,
        regroup_every=2,
    )  # fmt: skip
    return SelectiveOrthoConfig(name="selective_ortho", **{**values, **changes})


def decorrelated(**changes):
    values = dict(lambda2_max=1.0, reduction="sum", active_fraction=1.0, variance_floor=1e-6)
    return DecorrelationConfig(name="decorrelation", **{**values, **changes})


def orthogonal(**changes):
    return OrtSAEConfig(**{"name": "ortsae", "lambda2_max": 1.0, "chunk_size": 3, **changes})


def made(cls, cfg, d_sae, d_in=3, total_steps=10):
    return cls(cfg, d_in, d_sae, total_steps, torch.Generator()).double()


def random_case(d_sae=12, d_in=5, n_tokens=9, density=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    W /= W.norm(dim=1, keepdim=True)
    f = torch.rand(n_tokens, d_sae, generator=generator, dtype=torch.float64)
    f *= torch.rand(n_tokens, d_sae, generator=generator) < density
    return W.requires_grad_(), f.requires_grad_()


def close(rounding, actual, expected, terms=0.0):
    """`actual`, followed by `rounding`, equals what the loops find, which round as much."""
    rounding.assert_close(expected, actual, factor=2, terms=terms)


def gradient(loss, tensor):
    (grad,) = torch.autograd.grad(loss, tensor, allow_unused=True)
    return torch.zeros_like(tensor) if grad is None else grad


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("d_in", [3, 12, 30])
def test_gram_sums_equal_the_loops_on_either_side(d_in):
    W, _ = random_case(d_in=d_in)
    expected, grad = squared_cosines(W.tolist(), all_pairs(12))
    with Rounding() as rounding:
        total = squared_products(W)
        found = gradient(total, W)
    close(rounding, total, expected)
    close(rounding, found, grad)
    first = torch.arange(12) % 3 == 0
    pairs = [(i, j) for i in range(12) for j in range(12) if first[i] and not first[j]]
    expected, grad = squared_cosines(W.tolist(), pairs)
    with Rounding() as rounding:
        total = squared_products_between(W, first, ~first)
        found = gradient(total, W)
    close(rounding, total, expected)
    close(rounding, found, grad)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("d_sae", [1, 2, 12])
def test_strict(reduction, d_sae, context):
    W, f = random_case(d_sae=d_sae)
    with Rounding() as rounding:
        value = made(StrictOrtho, strict(reduction=reduction), d_sae)(context(W, f)).loss
        found = gradient(value, W)
    expected, grad = squared_cosines(W.tolist(), all_pairs(d_sae), reduction=reduction)
    close(rounding, value, expected)
    close(rounding, found, grad)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("fvu", [0.0, 0.2, 0.3, 0.45, 0.7])
def test_adaptive(reduction, fvu, context):
    """g is whole up to tau = 0.3, gone at 0.6; alpha falls from 0.5 to 0."""
    W, f = random_case()
    penalty = made(AdaptiveSharing, adaptive(reduction=reduction), 12)
    ctx = context(W, f, step=4)
    x = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ctx.x = x
    with Rounding() as rounding:
        ctx.error = (x - x.mean(0)) * fvu**0.5
        penalty.observe(ctx)
        value = penalty(ctx)
        found = gradient_of(value.loss, W)
    g = min(1.0, max(0.0, (0.6 - fvu) / 0.3))
    expected, grad = squared_cosines(W.tolist(), all_pairs(12), reduction=reduction, factor=(1 - 0.3) * g)
    close(rounding, value.loss, expected)
    close(rounding, found, grad)
    assert value.loss.requires_grad == (g > 0)  # a lifted constraint costs nothing
    close(rounding, value.terms["constraint"], g)
    with rounding:
        ctx.error = ctx.error * 0  # decay 0.5: the second update is half of the average
        penalty.observe(ctx)
    close(rounding, penalty.error.value, fvu / 2)


def test_adaptive_learns_nothing_from_a_batch_without_variance(context):
    W, f = random_case(n_tokens=1)
    penalty = made(AdaptiveSharing, adaptive(), 12)
    penalty.observe(context(W, f))
    assert float(penalty.error.value) == 0 and penalty(context(W, f)).loss.isfinite()


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.4, 1.0])
def test_alpha_is_piecewise_linear(progress):
    penalty = made(AdaptiveSharing, adaptive(breakpoints=[0.25, 0.75], alphas=[0.8, 0.2]), 3)
    assert penalty.cfg.alpha_at(progress) == pytest.approx(piecewise(progress, [0.25, 0.75], [0.8, 0.2]))
    assert penalty.cfg.alpha_at(0.5) == pytest.approx(0.5)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("statistic", ["mean", "max", "std", "frequency"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_selective_by_threshold(reduction, statistic, alpha, context):
    W, f = random_case(density=0.5)
    with torch.no_grad():
        f[:, 0], f[:, 1] = 0, 1  # never fires, always fires
    penalty = made(SelectiveOrtho, selective(reduction=reduction, statistic=statistic, alpha=alpha), 12)
    ctx = context(W, f)
    with Rounding() as rounding:
        penalty.observe(ctx)
        value = penalty(ctx)
        found = gradient(value.loss, W)
    columns = list(zip(*f.tolist(), strict=True))
    mean = [sum(c) / 9 for c in columns]
    values = {
        "mean": mean,
        "max": [max(c) for c in columns],
        "std": [(sum((v - m) ** 2 for v in c) / 9) ** 0.5 for c, m in zip(columns, mean, strict=True)],
        "frequency": [sum(v > 0 for v in c) / 9 for c in columns],
    }[statistic]
    first = {i for i in range(12) if values[i] > alpha * max(values)}
    pairs = [(i, j) for i in first for j in range(12) if j not in first]
    expected, grad = squared_cosines(W.tolist(), pairs, reduction=reduction)
    close(rounding, value.loss, expected)
    close(rounding, found, grad)
    assert int(value.terms["group_1"]) == len(first) and int(value.terms["group_2"]) == 12 - len(first)


def test_selective_statistics_move(context):
    W, f = random_case()
    penalty = made(SelectiveOrtho, selective(decay=0.75), 12)
    means, rounding = [], Rounding()
    for step in range(6):
        _, f = random_case(seed=step)
        means.append(f.mean(0).detach())
        with rounding:
            penalty.observe(context(W, f, step=step))
    expected = means[0]
    for number, mean in enumerate(means[1:], 2):  # a plain mean of the first four, then a decaying one
        rate = max(1 / number, 0.25)
        expected = expected + rate * (mean - expected)
    close(rounding, penalty.statistics.value[0], expected)


def test_statistics_of_the_k_largest_are_those_of_the_dense_features(context):
    W, f = random_case(d_sae=30, n_tokens=20, density=0.5)
    topk = context(W, f.detach(), top_k=20).feature_acts  # some of them 0
    dense = DenseFeatures(topk.dense())
    tokens = torch.arange(20) % 3 == 0
    with Rounding() as rounding:
        expected, rates = batch_statistics(dense, 20), firing_rates(dense, tokens)
    close(rounding, expected, batch_statistics(topk, 20))
    close(rounding, rates, firing_rates(topk, tokens))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_empty_group_costs_nothing(reduction, context):
    W, f = random_case()
    penalty = made(SelectiveOrtho, selective(reduction=reduction), 12)
    penalty.observe(context(W, f * 0))  # nothing exceeds half of 0
    value = penalty(context(W, f * 0))
    assert int(value.terms["group_1"]) == 0 and value.loss == 0 and gradient(value.loss, W).abs().max() == 0


def test_selective_by_clusters(context):
    W, f = random_case()
    with torch.no_grad():
        f[:, 3:6] += 5
    penalty = made(SelectiveOrtho, selective(grouping="kmeans"), 12)
    penalty.observe(context(W, f))
    assert penalty.first.nonzero().flatten().tolist() == [3, 4, 5]
    penalty.observe(context(W, f.flip(1), step=1))  # regrouped at steps 0, 2, 4, ...
    assert penalty.first.nonzero().flatten().tolist() == [3, 4, 5]
    assert not larger_cluster(torch.ones(3, 12), 0).any()  # all the same: one group


@pytest.mark.usefixtures("form")
def test_selective_by_corpus(context):
    W, f = random_case()
    with torch.no_grad():
        f.zero_()
        f[:4, :6] = 1.0
        f[4:, 6:] = 1.0
        f[0, 7] = 1.0
    ctx = context(W, f)
    ctx.batch.role[:4], ctx.batch.role[4:8] = 2, 1  # forget, retain; the last token is neither
    penalty = made(SelectiveOrtho, selective(grouping="corpus"), 12)
    penalty.observe(ctx)
    assert penalty.first.nonzero().flatten().tolist() == list(range(6))
    ctx.batch.role[:] = 0  # no role, nothing learned
    before = penalty.first.clone()
    penalty.observe(ctx)
    assert torch.equal(before, penalty.first)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("active_fraction", [1.0, 0.25])
@pytest.mark.parametrize(("d_sae", "n_tokens"), [(12, 9), (5, 20), (12, 1)])
def test_decorrelation(reduction, active_fraction, d_sae, n_tokens, context):
    W, f = random_case(d_sae=d_sae, n_tokens=n_tokens, density=0.6)
    with torch.no_grad():
        f[:, 0], f[:, 1] = 0, 1  # neither varies
    cfg = decorrelated(reduction=reduction, active_fraction=active_fraction)
    with Rounding() as rounding:
        value = Decorrelation(cfg, 3, d_sae, 10, torch.Generator())(context(W.float(), f.double()))
        found = gradient(value.loss, f)
    expected, grad, n = decorrelation(f.tolist(), reduction=reduction, active_fraction=active_fraction)
    close(rounding, value.loss, expected)
    close(rounding, found, grad)
    assert int(value.terms["features"]) == n


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("active_fraction", [1.0, 0.25])
@pytest.mark.parametrize(("d_sae", "n_tokens", "k"), [(12, 9, 4), (5, 20, 3), (12, 1, 4), (30, 9, 30), (200, 150, 8)])
def test_decorrelation_of_the_k_largest(reduction, active_fraction, d_sae, n_tokens, k, context, monkeypatch):
    """Over the active pairs, and over matrices as elsewhere; in float64."""
    W, f = random_case(d_sae=d_sae, n_tokens=n_tokens, density=0.6)
    with torch.no_grad():
        f[:, 0], f[:, 1] = 0, 2 - 1e-3 * f[:, 1]  # one never fires, one always and below the floor
    cfg = decorrelated(reduction=reduction, active_fraction=active_fraction)
    ctx = context(W.float(), f, top_k=k)
    ctx.feature_acts.values = ctx.feature_acts.values.detach().requires_grad_()
    found = []
    for cost in (0, 1e9):
        monkeypatch.setattr(correlations, "COST", cost)
        with Rounding() as rounding:  # of the matrices; compiled loops are not followed
            value = Decorrelation(cfg, 3, d_sae, 10, torch.Generator())(ctx)
            grad = gradient(value.loss, ctx.feature_acts.values)
        found.append((value.loss.detach(), grad, int(value.terms["features"])))
    (loss, grad, n), (matrix_loss, matrix_grad, matrix_n) = found
    assert n == matrix_n
    kept = torch.zeros_like(f).scatter(1, ctx.feature_acts.indices, ctx.feature_acts.values).detach()
    with Rounding() as lists:
        total, slope = over_entries(kept, cfg)
        total, slope = (
            divided(t, reduction, d_sae, n * (n - 1) / 2) for t in (total, slope.gather(1, ctx.feature_acts.indices))
        )
    close(lists, total, loss, terms=1.0)  # |K|^2 and n, and the parts of the slope, may cancel
    close(lists, slope, grad, terms=1.0)
    for one, other in ((matrix_loss, total), (matrix_grad, slope)):
        assert_within(one, other, rounding.bound(one) + lists.bound(other), terms=1.0)
    if d_sae < 50:
        expected, slope, _ = decorrelation(kept.tolist(), reduction=reduction, active_fraction=active_fraction)
        close(rounding, matrix_loss, expected)
        close(rounding, matrix_grad, torch.tensor(slope, dtype=torch.float64).gather(1, ctx.feature_acts.indices))


def over_entries(f, cfg):
    """Sum of squared correlations and its gradient by the formulas of kernels/correlations.py, in dense matrices."""
    mean = f.mean(0)
    square = (f - mean).square().sum(0)
    chosen = torch.zeros(f.shape[1], dtype=torch.bool)
    chosen[most_active((f > 0).sum(0), cfg.active_fraction)] = True
    varies = chosen & (square > cfg.variance_floor * len(f))
    weight = torch.where(varies, 1 / torch.where(varies, square, 1), 0)
    shift = (f * (mean * weight)).sum(1) - (mean.square() * weight).sum() / 2
    K = (f * weight) @ f.T - shift[:, None] - shift
    Kf = K @ f
    s = (f * Kf).sum(0) * weight
    return (K.square().sum() - varies.sum()) / 2, 2 * weight * (Kf - s * (f - mean))


def test_a_feature_below_the_variance_floor_gets_no_gradient(context):
    W, f = random_case(density=1.0)
    with torch.no_grad():
        f[:, 2] = 1 + 1e-4 * f[:, 2]
    grad = gradient(Decorrelation(decorrelated(), 3, 12, 10, torch.Generator())(context(W, f)).loss, f)
    assert grad[:, 2].abs().max() == 0 and grad[:, 3].abs().max() > 0


def test_the_most_active_are_chosen_by_firings_then_number():
    fires = torch.tensor([1, 1, 2, 1])
    assert most_active(fires, 0.25).tolist() == [2] and most_active(fires, 0.5).tolist() == [0, 2]
    assert most_active(fires, 0.01).tolist() == [2]


@pytest.mark.parametrize("chunk_size", [2, 5, 12, 100])
def test_ortsae(chunk_size, context):
    W, f = random_case()
    with torch.no_grad():
        W *= 1 + torch.arange(12)[:, None] / 10  # of cosines, so the norm has no say
    ctx = context(W, f, step=3)
    order = torch.randperm(12, generator=ctx.generator())
    with Rounding() as rounding:
        value = made(OrtSAE, orthogonal(chunk_size=chunk_size), 12)(ctx).loss
        found = gradient(value, W)
    expected, grad = ortsae(W.tolist(), [chunk.tolist() for chunk in order.split(chunk_size)])
    close(rounding, value, expected)
    close(rounding, found, grad)


def test_ortsae_draws_other_chunks_at_each_step_and_for_each_seed(context):
    W, f = random_case()
    penalty = made(OrtSAE, orthogonal(), 12)
    at = {step: float(penalty(context(W, f, step=step)).loss.detach()) for step in (0, 0, 1, 2)}
    assert len(set(at.values())) == 3
    other = context(W, f)
    other.seed = 1
    assert float(penalty(other).loss.detach()) != at[0]
    assert float(penalty(context(W, f)).loss.detach()) == at[0]


def test_ortsae_of_features_that_point_apart_is_nothing(context):
    W = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], requires_grad=True)
    value = OrtSAE(orthogonal(), 3, 2, 10, torch.Generator())(context(W, torch.ones(1, 2))).loss
    assert value == 0 and gradient(value, W).isfinite().all()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["name"])
def test_frozen_worked_examples(example, context):
    """B = 4, d_sae = 5, d_in = 3: value, gradient and state at each step as first computed by the slow reference."""
    kinds = {
        "strict_ortho": (StrictOrtho, strict),
        "adaptive_sharing": (AdaptiveSharing, adaptive),
        "selective_ortho": (SelectiveOrtho, selective),
        "decorrelation": (Decorrelation, decorrelated),
        "ortsae": (OrtSAE, orthogonal),
    }
    cls, config = kinds[example["penalty"]]
    W = torch.tensor(example["W_dec"], dtype=torch.float64, requires_grad=True)
    penalty, rounding = made(cls, config(**example["config"]), 5), Rounding()
    for step, now in enumerate(example["steps"]):
        f = torch.tensor(now["f"], dtype=torch.float64, requires_grad=True)
        ctx = context(W, f, step=step, total_steps=4)
        ctx.x = torch.tensor(now["x"], dtype=torch.float64)
        ctx.error = torch.tensor(now["error"], dtype=torch.float64)
        ctx.batch.role[:] = torch.tensor(now["role"])
        with rounding:
            penalty.observe(ctx)
            value = penalty(ctx)
            found = {name: gradient_of(value.loss, tensor) for name, tensor in (("W_dec", W), ("f", f))}
        close(rounding, value.loss, now["value"])
        for name, grad in found.items():
            close(rounding, grad, now[f"grad_{name}"])
        for name, expected in now["state"].items():
            close(rounding, dict(penalty.named_buffers())[name], expected)


def gradient_of(loss, tensor):
    if not loss.requires_grad:
        return torch.zeros_like(tensor)
    (grad,) = torch.autograd.grad(loss, tensor, retain_graph=True, allow_unused=True)
    return torch.zeros_like(tensor) if grad is None else grad


@pytest.mark.parametrize(
    "config",
    [
        strict(lambda2_max=-1.0), strict(reduction="max"), adaptive(tau=0.0), adaptive(alphas=[0.1]),
        adaptive(decay=1.0), selective(grouping="mine"), selective(statistic="median"), selective(alpha=1.0),
        selective(regroup_every=0), decorrelated(active_fraction=0.0), decorrelated(variance_floor=-1.0),
        orthogonal(chunk_size=1),
    ],
)  # fmt: skip
def test_values_that_cannot_be_meant_are_refused(config):
    with pytest.raises(ConfigError, match=r"^[^\n]+[.]$"):
        check_values(config, "penalty")
        config.check()


@pytest.mark.parametrize(
    ("cls", "cfg"),
    [(StrictOrtho, strict()), (AdaptiveSharing, adaptive()), (SelectiveOrtho, selective(alpha=0.7)),
     (Decorrelation, decorrelated()), (OrtSAE, orthogonal())],
)  # fmt: skip
@pytest.mark.parametrize("top_k", [None, 3])
def test_under_autocast_the_sums_keep_their_precision(cls, cfg, top_k, context):
    W, f = random_case(d_sae=40, n_tokens=30)
    values = []
    for enabled in (False, True):
        penalty = cls(cfg, 5, 40, 10, torch.Generator())
        ctx = context(W.detach().float(), f.detach().float(), top_k=top_k)
        ctx.x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            penalty.observe(ctx)
            values.append(float(penalty(ctx).loss))
    assert values[0] == values[1] > 0


def test_warnings_say_what_a_user_should_hear():
    rows = [{"penalty/group_1": 0, "penalty/group_2": 5}] * 2 + [{"penalty/group_1": 2, "penalty/group_2": 3}] * 8
    assert selective().result_warnings(rows) == ["one of the two groups was empty in 20% of the logged steps"]
    assert selective().result_warnings(rows[2:]) == []
    assert "next to nothing" in selective(reduction="mean").plan_warnings()[0]
    idle = [{"penalty/features": 1}] * 2 + [{"penalty/features": 9}] * 8
    assert "20%" in decorrelated().result_warnings(idle)[0]
    lifted = [{"penalty/constraint": 0.0}] * 6 + [{"penalty/constraint": 1.0}] * 4
    assert "60%" in adaptive().result_warnings(lifted)[0] and adaptive().result_warnings(lifted[4:]) == []


def test_every_choice_of_a_grouping_and_reduction_is_tried():
    assert {"relative_threshold", "kmeans", "corpus"} == {
        example["config"].get("grouping", "relative_threshold")
        for example in EXAMPLES
        if example["penalty"] == "selective_ortho"
    }
    seen = {(example["penalty"], example["config"].get("reduction", "sum")) for example in EXAMPLES}
    assert set(itertools.product(("strict_ortho", "decorrelation"), ("sum",))) <= seen
