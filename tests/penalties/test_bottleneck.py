import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import slow_bottleneck as slow
import slow_contrastive
import torch
from bounds import Rounding
from omegaconf import OmegaConf

from sae_sweeps.architectures.batch import Batch
from sae_sweeps.architectures.context import Context
from sae_sweeps.architectures.group_layer import GroupLayer, GroupLayerConfig
from sae_sweeps.config.content import content
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.typed import check_values
from sae_sweeps.errors import ConfigError
from sae_sweeps.kernels.features import DenseFeatures, TopKFeatures
from sae_sweeps.penalties.bottleneck import Bottleneck, BottleneckConfig

EXAMPLES = json.loads((Path(__file__).parent / "worked_examples_bottleneck.json").read_text())
ALL = dict(lambda2_max=0.8, group_lasso_weight=0.3, l2_weight=0.01, contrastive_weight=0.4)
BETWEEN_GROUPS = dict(contrastive_weight=0.4, contrast="groups")
FLOOR = 1e-6


def config(**changes):
    values = dict(
        name="bottleneck", lambda2_max=0.0, group_lasso_weight=0.0, l2_weight=0.0, contrastive_weight=0.0,
        temperature=0.1, contrast="tokens",
    )  # fmt: skip
    return BottleneckConfig(**{**values, **changes})


def group_layer(d_sae, dtype=torch.float64, **changes):
    cfg = GroupLayerConfig(**{**content(config_dir() / "group_layer" / "groups.yaml"), **changes})
    return GroupLayer(cfg, 3, d_sae, 10, torch.Generator()).to(dtype)


def context(f, groups, W_enc=None, W_dec=None, sequence=None, position=None, step=0, top_k=None):
    n, d_sae = f.shape
    x = torch.zeros(n, 3, dtype=f.dtype)
    sequence = torch.arange(n) // 4 if sequence is None else torch.as_tensor(sequence)
    position = torch.arange(n) % 4 if position is None else torch.as_tensor(position)
    features = DenseFeatures(f)
    if top_k:
        values, indices = f.topk(top_k, dim=1, sorted=False)
        features = TopKFeatures(values, indices, d_sae)
    batch = Batch(x, position, sequence, position, torch.zeros(n, dtype=torch.int8))
    generator = torch.Generator().manual_seed(9)
    if W_enc is None:
        W_enc = torch.randn(3, d_sae, generator=generator, dtype=f.dtype).requires_grad_()
        W_dec = torch.randn(d_sae, 3, generator=generator, dtype=f.dtype).requires_grad_()
    sae = SimpleNamespace(W_enc=W_enc, W_dec=W_dec, d_sae=d_sae)
    return Context(sae, batch, x, f, features, x, step, 10, 0, groups)


def features(n=12, d_sae=20, seed=0, density=0.4):
    generator = torch.Generator().manual_seed(seed)
    f = torch.rand(n, d_sae, generator=generator, dtype=torch.float64)
    return f * (torch.rand(n, d_sae, generator=generator) < density)


def gradients(loss, ctx, f):
    found = torch.autograd.grad(loss, [f, ctx.sae.W_enc, ctx.sae.W_dec], allow_unused=True)
    return [
        torch.zeros_like(t) if g is None else g for g, t in zip(found, (f, ctx.sae.W_enc, ctx.sae.W_dec), strict=True)
    ]


def check(cfg, groups, f, earlier=(), **kwargs):
    """One step against the slow reference; `earlier` are the features of earlier batches."""
    f = f.detach().requires_grad_()
    ctx = context(f, groups, **kwargs)
    rounding = Rounding()
    with rounding:
        result = Bottleneck(cfg, 3, f.shape[1], 10, torch.Generator())(ctx)
        found = gradients(result.loss, ctx, f)
    group = groups.group_of_F.tolist()
    before = [row for g in earlier for row in slow.energies(g.tolist(), group, groups.n_groups)]
    positives = slow_contrastive.adjacent(ctx.batch.sequence.tolist(), ctx.batch.position.tolist())
    weights = dict(
        mi=cfg.lambda2_max, group_lasso=cfg.group_lasso_weight, l2=cfg.l2_weight, contrastive=cfg.contrastive_weight
    )
    terms, value, *expected = slow.bottleneck(
        f.tolist(), ctx.sae.W_enc.tolist(), ctx.sae.W_dec.tolist(), group, groups.n_groups, positives, before,
        groups.cfg.window, FLOOR, weights, cfg.temperature, cfg.contrast,
    )  # fmt: skip
    rounding.assert_close(value, result.loss, factor=2)
    assert set(result.terms) == {name for name in weights if weights[name]}
    for name, term in result.terms.items():
        rounding.assert_close(terms[name], term, factor=2, name=name, terms=1.0)  # of two equal tokens all cancels
    with rounding:
        found[0] = found[0] * (f != 0) if kwargs.get("top_k") else found[0]
    for one, other in zip(found, expected, strict=True):
        other = torch.tensor(other, dtype=torch.float64)
        if kwargs.get("top_k") and one is found[0]:  # a feature that is not among the k has no gradient
            other *= f != 0
        rounding.assert_close(other, one, factor=2)
    return result


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    "weights",
    [*({key: value} for key, value in ALL.items()), ALL, BETWEEN_GROUPS, ALL | BETWEEN_GROUPS],
    ids=lambda w: "+".join(w),
)
@pytest.mark.parametrize("group_size", [4, 7])
def test_equals_the_slow_reference(weights, group_size):
    check(config(**weights), group_layer(20, group_size=group_size), features())


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e["name"])
def test_frozen_worked_examples(example):
    W_enc, W_dec = (torch.tensor(example[W], dtype=torch.float64, requires_grad=True) for W in ("W_enc", "W_dec"))
    groups = group_layer(5, **example["group_layer"])
    module, rounding = Bottleneck(config(**example["config"]), 3, 5, 10, torch.Generator()), Rounding()
    for step, expected in enumerate(example["steps"]):
        f = torch.tensor(expected["f"], dtype=torch.float64, requires_grad=True)
        ctx = context(f, groups, W_enc, W_dec, example["sequence"], example["position"], step)
        with rounding:
            result = module(ctx)
            grads = gradients(result.loss, ctx, f)
            groups.observe(ctx)
        rounding.assert_close(expected["value"], result.loss, factor=2)
        for name, term in result.terms.items():
            rounding.assert_close(expected["terms"][name], term, factor=2, name=name)
        for name, found in zip(("f", "W_enc", "W_dec"), grads, strict=True):
            rounding.assert_close(expected[f"grad_{name}"], found, factor=2, name=name)
        wanted = torch.tensor(expected["window"], dtype=torch.float64)
        assert int(groups.filled) == len(wanted)
        rounding.assert_close(wanted, groups.window_WG[-len(wanted) :], factor=2)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("window", [5, 12, 17, 40])
def test_the_window_holds_the_last_tokens_of_earlier_batches_and_of_this_one(window):
    groups = group_layer(20, group_size=4, window=window)
    seen = []
    for step in range(4):
        f = features(seed=step)
        check(config(lambda2_max=1.0), groups, f, seen, step=step)
        groups.observe(context(f, groups, step=step))
        seen.append(f)
        assert int(groups.filled) == min(window, 12 * (step + 1))


@pytest.mark.usefixtures("form")
def test_only_the_last_tokens_of_the_batch_have_a_gradient():
    groups = group_layer(20, group_size=4, window=5)
    f = features().requires_grad_()
    (grad,) = torch.autograd.grad(Bottleneck(config(lambda2_max=1.0), 3, 20, 10, None)(context(f, groups)).loss, f)
    assert not grad[:7].any() and grad[7:].any()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("top_k", [3, 8])
@pytest.mark.parametrize("contrast", ["tokens", "groups"])
def test_topk_features_give_the_same(top_k, contrast):
    values, indices = features(density=1.0).topk(top_k, dim=1)
    f = torch.zeros(12, 20, dtype=torch.float64).scatter(1, indices, values)
    check(config(**ALL, contrast=contrast), group_layer(20, group_size=4), f, top_k=top_k)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    "change",
    {
        "nothing fires": lambda f: f * 0,
        "a group never fires": lambda f: f * (torch.arange(20) >= 4),
        "one feature always fires": lambda f: f + (torch.arange(20) == 3).double(),
        "one group with constant energy": lambda f: torch.where(torch.arange(20) < 4, 0.37, f),
        "two groups alike": lambda f: torch.cat([f[:, :4], f[:, :4], f[:, 8:]], 1),
        "one token fires": lambda f: f * (torch.arange(len(f)) == 2)[:, None],
        "all tokens alike": lambda f: f * 0 + 1,
        "two tokens": lambda f: f[:2],
        "batch of 1": lambda f: f[:1],
        "one feature fires": lambda f: f * (torch.arange(20) == 3),
        "one of each group": lambda f: f * (torch.arange(20) % 4 == 0),
        "one group fires": lambda f: f * (torch.arange(20) < 4),
    }.items(),
    ids=lambda change: change[0],
)
@pytest.mark.parametrize("contrast", ["tokens", "groups"])
def test_edges(change, contrast):
    f = change[1](features())
    check(config(**ALL, contrast=contrast), group_layer(20, group_size=4), f)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("contrast", ["tokens", "groups"])
def test_an_empty_group_and_one_of_a_single_feature(contrast):
    groups = group_layer(20, group_size=4)
    groups.regroup(torch.tensor([0] * 7 + [2] * 8 + [3] + [4] * 4))
    check(config(**ALL, contrast=contrast), groups, features())
    assert groups.sizes().tolist() == [7, 0, 8, 1, 4]


@pytest.mark.usefixtures("form")
def test_between_groups_a_feature_alone_in_its_group_is_no_anchor_but_a_negative():
    groups, f = group_layer(20, group_size=4), features().requires_grad_()
    groups.regroup(torch.tensor([0] * 10 + [1] * 9 + [2]))
    (grad,) = torch.autograd.grad(between_groups(groups, f), f)
    assert grad[:, 19].any()
    assert between_groups(group_layer(20, group_size=1), f) == 0


@pytest.mark.usefixtures("form")
def test_between_groups_features_that_fire_nowhere_take_no_part():
    alive = torch.arange(20) % 4 > 0
    f = features()
    of_all = between_groups(group_layer(20, group_size=4), f * alive)
    torch.testing.assert_close(of_all, between_groups(group_layer(15, group_size=3), f[:, alive]), rtol=0, atol=0)


@pytest.mark.usefixtures("form")
def test_between_groups_in_tiles_is_the_same(monkeypatch):
    groups, f = group_layer(20, group_size=4), features()
    monkeypatch.setattr("sae_sweeps.kernels.info_nce.TILE", 3)
    check(config(**BETWEEN_GROUPS), groups, f)


def test_between_groups_the_loss_is_least_where_groups_fire_apart():
    groups = group_layer(20, group_size=4)
    apart = torch.eye(5, dtype=torch.float64).repeat_interleave(4, 1)
    across = torch.eye(5, dtype=torch.float64).repeat(1, 4)
    assert between_groups(groups, apart) < between_groups(groups, features()) < between_groups(groups, across)


def between_groups(groups, f):
    return Bottleneck(config(**BETWEEN_GROUPS), 3, f.shape[1], 10, None)(context(f, groups)).loss


@pytest.mark.usefixtures("form")
def test_a_faint_group_shares_no_information_and_gets_no_gradient():
    groups = group_layer(20, group_size=4)
    f = features()
    f[:, :4] *= 1e-6
    f.requires_grad_()
    (grad,) = torch.autograd.grad(Bottleneck(config(lambda2_max=1.0), 3, 20, 10, None)(context(f, groups)).loss, f)
    assert not grad[:, :4].any() and grad[:, 4:].any()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("size", [1e-20, 1e-4, 1e6])
@pytest.mark.parametrize("top_k", [None, 6])
@pytest.mark.parametrize("contrast", ["tokens", "groups"])
def test_float32_under_autocast_is_finite_and_the_same(size, top_k, contrast):
    results = []
    for enabled in (False, True):
        groups = group_layer(20, torch.float32, group_size=4, window=16)
        f = (features().float() * size).requires_grad_()
        W = torch.ones(3, 20).requires_grad_()
        ctx = context(f, groups, W, W.T, top_k=top_k)
        groups.observe(ctx)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = Bottleneck(config(**ALL, contrast=contrast), 3, 20, 10, None)(ctx).loss
        results.append([loss, *torch.autograd.grad(loss, [f, W])])
    for one, other in zip(*results, strict=True):
        assert one.dtype == torch.float32 and one.isfinite().all()
        assert torch.equal(one, other)


def test_weights_stand_inside():
    assert config(**ALL).peak_weight() == 1 and config(l2_weight=0.01).peak_weight() == 1
    assert config().peak_weight() == 0
    assert set(config().unused_keys()) == {"temperature", "contrast"} and config(**ALL).unused_keys() == {}


def test_yaml_has_every_field_and_asks_for_groups():
    node = OmegaConf.load(config_dir() / "penalty" / "bottleneck.yaml")
    assert set(node.penalty) == {f.name for f in fields(BottleneckConfig)}
    assert node.defaults == [{"override /group_layer": "groups"}]


@pytest.mark.parametrize("key", [*ALL, "temperature"])
def test_bad_values_are_named(key):
    check_values(config(**ALL), "penalty")
    with pytest.raises(ConfigError, match=key):
        check_values(config(**{key: -0.1}), "penalty")
    with pytest.raises(ConfigError, match="penalty.contrast=features: must be one of tokens, groups"):
        check_values(config(contrast="features"), "penalty")


def test_what_it_needs_of_the_run():
    def run(name="groups", sampling="contiguous_windows"):
        return SimpleNamespace(group_layer=SimpleNamespace(name=name), train=SimpleNamespace(sampling=sampling))

    cfg = config(**ALL)
    assert cfg.sampling() == "contiguous_windows"
    cfg.check_run(run())
    config(lambda2_max=1.0).check_run(run(sampling="tokens"))
    with pytest.raises(ConfigError, match="group_layer=none"):
        cfg.check_run(run(name="none"))
    config(**BETWEEN_GROUPS).check_run(run(sampling="tokens"))
    with pytest.raises(ConfigError, match="train.sampling=tokens"):
        cfg.check_run(run(sampling="tokens"))
