import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import slow_group_layer as slow
import torch
from bounds import Rounding

from sae_sweeps.architectures.group_layer import GroupLayer, GroupLayerConfig
from sae_sweeps.config.content import content
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.typed import check_values
from sae_sweeps.errors import ConfigError
from sae_sweeps.kernels.features import DenseFeatures, TopKFeatures
from sae_sweeps.kernels.grouping import balanced_assignment, resized

EXAMPLES = json.loads((Path(__file__).parent / "worked_examples_group_layer.json").read_text())
OPTIONS = [
    dict(competition=True, temperature=0.7),
    dict(mask=2),
    dict(mask=0.5),
    dict(dropout=0.2),
    dict(residual=0.3),
]


def config(**changes):
    return GroupLayerConfig(**{**content(config_dir() / "group_layer" / "groups.yaml"), **changes})


def layer(d_sae=20, dtype=torch.float64, total_steps=10, **changes):
    values = {"group_size": 4, **changes}
    return GroupLayer(config(**values), 3, d_sae, total_steps, torch.Generator()).to(dtype)


def features(n=12, d_sae=20, seed=0, density=0.4):
    generator = torch.Generator().manual_seed(seed)
    f = torch.rand(n, d_sae, generator=generator, dtype=torch.float64)
    return (f * (torch.rand(n, d_sae, generator=generator) < density)).requires_grad_()


def top_k(f, k=6):
    values, indices = f.topk(k, dim=1, sorted=False)
    return TopKFeatures(values, indices, f.shape[1])


def context(f, groups, step=0, W_dec=None):
    f = DenseFeatures(f) if isinstance(f, torch.Tensor) else f
    return SimpleNamespace(feature_acts=f, groups=groups, step=step, sae=SimpleNamespace(W_dec=W_dec))


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def decoder(d_sae=20, d_in=6, seed=3):
    W = torch.randn(d_sae, d_in, generator=draw(seed), dtype=torch.float64)
    return W / W.norm(dim=1, keepdim=True)


def equal(rounding, found, expected, terms=0.0):
    """`found`, followed by `rounding`, equals what the loops find, which round as much."""
    rounding.assert_close(expected, found, factor=2, terms=terms)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


GROUPINGS = {
    "consecutive": None,
    "scattered": [i % 5 for i in range(20)],
    "one empty": [0] * 8 + [2] * 4 + [3] * 4 + [4] * 4,
    "uneven": [4] * 1 + [1] * 9 + [0] * 2 + [2] * 5 + [3] * 3,
}


@pytest.fixture(params=GROUPINGS.values(), ids=GROUPINGS.keys())
def grouping(request):
    def apply(groups):
        if request.param is not None:
            groups.regroup(torch.tensor(request.param))
        return groups

    return apply


def test_groups_are_consecutive_at_first_and_the_last_may_be_smaller():
    groups = layer(d_sae=10)
    assert groups.group_of_F.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2] and groups.sizes().tolist() == [4, 4, 2]
    assert groups.place_of_F.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_without_an_option_f_passes_as_it_is():
    for f in (DenseFeatures(features()), top_k(features())):
        for training in (True, False):
            assert layer()(f, draw(), training) is f
    assert config().active_at_inference() == []


@pytest.mark.parametrize("change", [lambda f: f, lambda f: f * 0, lambda f: f[:1]], ids=["random", "nothing", "one"])
def test_energies_equal_the_slow_reference(change, grouping):
    groups = grouping(layer())
    f = change(features().detach()).requires_grad_()
    with Rounding() as rounding:
        E = groups.energies(DenseFeatures(f))
        upstream = torch.rand(E.shape, generator=draw(), dtype=torch.float64)
        (grad,) = torch.autograd.grad(E, f, upstream)
    expected = slow.energies(f.tolist(), groups.group_of_F.tolist(), 5)
    equal(rounding, E, expected)
    by_hand = [
        [
            upstream[t, g].item() * f[t, i].item() / expected[t][g] if expected[t][g] else 0.0
            for i, g in enumerate(groups.group_of_F.tolist())
        ]
        for t in range(len(f))
    ]
    equal(rounding, grad, by_hand)


def test_energies_of_topk_features_are_the_same(grouping):
    groups, f = grouping(layer()), features(density=1.0)
    kept = top_k(f)
    values = kept.values.detach().requires_grad_()
    sparse = groups.energies(TopKFeatures(values, kept.indices, 20))
    (on_values,) = torch.autograd.grad(sparse.sum(), values)
    with Rounding() as rounding:
        dense = groups.energies(DenseFeatures(kept.dense()))
        (on_f,) = torch.autograd.grad(dense.sum(), f)
        on_kept = on_f.gather(1, kept.indices)
    equal(rounding, dense, sparse)
    equal(rounding, on_kept, on_values)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_competition_equals_the_slow_reference(temperature, grouping):
    groups = grouping(layer(competition=True, temperature=temperature))
    f, group = features(), groups.group_of_F.tolist()
    with Rounding() as rounding:
        out = groups(DenseFeatures(f), None, True).dense()
        upstream = torch.randn(out.shape, generator=draw(), dtype=torch.float64)
        (grad,) = torch.autograd.grad(out, f, upstream)
    equal(rounding, out, slow.competition(f.tolist(), group, 5, temperature))
    equal(rounding, grad, slow.competition_gradient(f.tolist(), group, 5, temperature, upstream.tolist()))


@pytest.mark.parametrize(("mask", "n_kept"), [(2, 2), (0.4, 2), (0.01, 1), (5, 5)])
def test_mask_equals_the_slow_reference(mask, n_kept, grouping):
    groups = grouping(layer(mask=mask))
    f, group = features(), groups.group_of_F.tolist()
    out = groups(DenseFeatures(f), None, True).dense()
    assert torch.equal(out, tensor(slow.mask(f.tolist(), group, 5, n_kept)))
    (grad,) = torch.autograd.grad(out.sum(), f)
    assert torch.equal(grad[f > 0], (out > 0)[f > 0].double())


@pytest.mark.parametrize("r", [0.3, 1.0])
def test_residual_equals_the_slow_reference(r, grouping):
    groups = grouping(layer(residual=r))
    f, group = features(), groups.group_of_F.tolist()
    with Rounding() as rounding:
        out = groups(DenseFeatures(f), None, True).dense()
        upstream = torch.randn(out.shape, generator=draw(), dtype=torch.float64)
        (grad,) = torch.autograd.grad(out, f, upstream)
    equal(rounding, out, slow.residual(f.tolist(), group, 5, r))
    equal(rounding, grad, slow.residual_gradient(group, 5, r, upstream.tolist()))


def test_residual_makes_features_dense_and_raises_l0():
    f = top_k(features(density=1.0), 2)
    out = layer(residual=0.3)(f, None, True)
    assert isinstance(out, DenseFeatures) and f.l0() == 2 < out.l0() <= 5 * 2


def test_dropout_leaves_out_whole_groups_of_a_token_and_keeps_the_mean():
    f = torch.ones(4000, 20, dtype=torch.float64)
    out = layer(dropout=0.2)(DenseFeatures(f), draw(), True).dense().reshape(4000, 5, 4)
    assert (out.std(2) == 0).all() and set(out.unique().tolist()) == {0.0, 1 / 0.8}
    kept = round(out.mean().item() * 0.8 * 20_000)  # of 20,000 groups, each with probability 0.8: within 5 deviations
    assert abs(kept - 16_000) < 5 * (20_000 * 0.8 * 0.2) ** 0.5
    plain = layer(dropout=0.2, dropout_train_only=False)
    assert set(plain(DenseFeatures(f), draw(), True).dense().unique().tolist()) == {0.0, 1.0}
    assert plain(DenseFeatures(f), None, False).dense().unique().tolist() == [0.8]


def test_the_generator_decides_the_dropout():
    groups, f = layer(dropout=0.5), features()
    one, same, other = (groups(DenseFeatures(f), draw(seed), True).dense() for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_options_act_in_the_order_told():
    groups = layer(competition=True, mask=3, residual=0.2, temperature=0.5)
    f, group = features(), groups.group_of_F.tolist()
    # energies are of f as it comes in: those of the masked groups still take their share of the softmax
    expected = [
        [v if m else 0.0 for v, m in zip(row, kept, strict=True)]
        for row, kept in zip(
            slow.competition(f.tolist(), group, 5, 0.5), slow.mask(f.tolist(), group, 5, 3), strict=True
        )
    ]
    expected = slow.residual(expected, group, 5, 0.2)
    with Rounding() as rounding:
        out = groups(DenseFeatures(f), None, True).dense()
    equal(rounding, out, expected)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_topk_features_give_the_same(option, grouping):
    groups, f = grouping(layer(**option)), features(density=1.0)
    kept = top_k(f)

    def of(form):
        out = groups(form, draw(), True)
        assert isinstance(out, DenseFeatures if "residual" in option else type(form))
        return [out.dense(), *torch.autograd.grad(out.dense().square().sum(), f, retain_graph=True)]

    rounding, sparse = Rounding(), of(kept)
    with rounding:
        dense = of(DenseFeatures(kept.dense()))
    for one, other in zip(sparse, dense, strict=True):
        equal(rounding, other, one)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_train_only_options_leave_inference_alone(option):
    name = next(key for key in option if key != "temperature")
    f = DenseFeatures(features())
    for train_only in (True, False):
        cfg = {**option, f"{name}_train_only": train_only}
        assert config(**cfg).active_at_inference() == ([] if train_only else [name])
        assert (layer(**cfg)(f, None, False) is f) == train_only
        assert layer(**cfg)(f, draw(), True) is not f


@pytest.mark.parametrize(
    "change",
    [lambda f: f, lambda f: f * 0, lambda f: f[:1], lambda f: f * 1e-30, lambda f: f * 1e15, lambda f: f * 0 + 1],
    ids=["random", "nothing", "one", "tiny", "huge", "even"],
)
@pytest.mark.parametrize("option", [*OPTIONS, dict(reversal=1.0)], ids=lambda o: "-".join(o))
def test_finite_in_float32_and_under_autocast(option, change):
    f = change(features().detach().float()).requires_grad_()
    groups = layer(dtype=torch.float32, **option)
    with torch.autocast("cpu", torch.bfloat16):
        out = groups(DenseFeatures(f), draw(), True)
        losses = [v * w for v, w in groups.extra_losses(context(out, groups)).values()]
        loss = sum(losses, start=(out.dense() * 1e-6).sum())
    assert loss.isfinite() and torch.autograd.grad(loss, f)[0].isfinite().all()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e["name"])
def test_frozen_worked_examples(example):
    groups = layer(5, **example["group_layer"])
    f = tensor(example["f"]).requires_grad_()
    if "reversal" in example:
        groups.head = torch.nn.Parameter(tensor(example["head"]))
    with Rounding() as rounding:
        if "reversal" in example:
            value, _ = groups.extra_losses(context(f, groups))["reversal"]
            grads = torch.autograd.grad(value, [groups.head, f])
            found = {"reversal": value, "grad_head": grads[0], "grad_f": grads[1]}
        else:
            out = groups(DenseFeatures(f), None, True).dense()
            (grad,) = torch.autograd.grad(out, f, tensor(example["upstream"]))
            found = {"energies": groups.energies(DenseFeatures(f)), "out": out, "grad_f": grad}
    for name, value in found.items():
        equal(rounding, value, example[name])


@pytest.mark.parametrize(
    "change",
    [lambda f: f, lambda f: f[:1], lambda f: f * 0, lambda f: torch.where(torch.arange(20) < 4, 0.3, f)],
    ids=["random", "batch of 1", "nothing fires", "constant group"],
)
def test_reversal_equals_the_slow_reference(change, grouping):
    groups = grouping(layer(reversal=0.5))
    f = change(features().detach()).requires_grad_()
    groups.head = torch.nn.Parameter(torch.randn(5, 5, generator=draw(), dtype=torch.float64))
    with Rounding() as rounding:
        value, weight = groups.extra_losses(context(f, groups))["reversal"]
        dhead, df = torch.autograd.grad(value, [groups.head, f])
    expected = slow.reversal(f.tolist(), groups.group_of_F.tolist(), 5, groups.head.tolist())
    assert weight == 0.5
    for found, wanted in zip((value, dhead, df), expected, strict=True):
        equal(rounding, found, wanted)


def test_reversal_trains_the_head_and_not_without_it():
    assert dict(layer().named_parameters()) == {} and layer().extra_losses(context(features(), layer())) == {}
    assert layer(reversal=0.1).head.shape == (5, 5)


def test_window_rolls():
    groups, seen, rounding = layer(window=7), [], Rounding()
    for n in (3, 2, 4, 9, 1):
        f = features(n, seed=n)
        seen += slow.energies(f.tolist(), groups.group_of_F.tolist(), 5)
        with rounding:
            recent = groups.recent(groups.energies(DenseFeatures(f)))
            groups.observe(context(f, groups))
        equal(rounding, recent, seen[-7:])
        assert int(groups.filled) == min(len(seen), 7)
        equal(rounding, groups.window_WG[7 - int(groups.filled) :], seen[-7:])


def test_similarity_reassigns_in_balance():
    groups, W = layer(adapt="similarity", adapt_every=2), decoder()
    before = groups.group_of_F.tolist()
    assert groups.adapt(context(features(), groups, 0, W)) == []
    groups.observe(context(features(), groups))
    (event,) = groups.adapt(context(features(), groups, 1, W))
    after = slow.balanced(W.tolist(), before, 5)
    assert groups.group_of_F.tolist() == after and event["sizes_after"] == event["sizes_before"] == [4] * 5
    moves = dict(zip(event["features"], event["to"], strict=True))
    assert moves == {i: g for i, g in enumerate(after) if g != before[i]} and event["moved"] == len(moves) > 0
    assert int(groups.filled) == 0, "energies of the former groups are forgotten"
    json.dumps(event)


def test_places_follow_the_groups():
    groups = layer()
    groups.regroup(torch.tensor([3, 0, 3, 1, 0, 3] + [2] * 14))
    assert groups.place_of_F.tolist() == [0, 0, 1, 0, 1, 2, *range(14)]


def test_similar_features_find_each_other():
    W = torch.eye(5, dtype=torch.float64).repeat(4, 1) + 0.1 * decoder(20, 5)
    groups = layer(adapt="similarity", adapt_every=1, total_steps=100)

    def tightness():
        centre = tensor(slow.centres(W.tolist(), groups.group_of_F.tolist(), 5))
        return (W * centre[groups.group_of_F]).sum().item()

    before = tightness()
    moved = [groups.adapt(context(features(), groups, step, W))[0]["moved"] for step in range(8)]
    assert tightness() > 1.3 * before and moved[0] > 0 == moved[-1]


def test_balanced_assignment_fills_every_place():
    similarity = torch.rand(50, 6, generator=draw())
    capacity = torch.tensor([20, 0, 10, 5, 5, 10])
    group = balanced_assignment(similarity, capacity)
    assert torch.equal(torch.bincount(group, minlength=6), capacity)
    assert torch.equal(balanced_assignment(torch.zeros(6, 3), torch.tensor([2, 2, 2])), torch.arange(6) // 2)


def test_mi_resizes_the_pairs_that_share_most():
    W = decoder()
    mi = torch.zeros(5, 5, dtype=torch.float64)
    for (g, h), value in {(0, 3): 2.0, (1, 3): 1.5, (1, 2): 1.0, (2, 4): 0.5}.items():
        mi[g, h] = mi[h, g] = value
    start = torch.arange(20) // 4
    group, moves = resized(start, mi, W, n_pairs=3, share=0.5, max_size=6)
    assert moves == [(3, 0, 2.0), (2, 1, 1.0)]
    assert torch.bincount(group).tolist() == [6, 6, 2, 2, 4]
    centre = slow.centres(W.tolist(), start.tolist(), 5)[0]
    near = sorted(range(12, 16), key=lambda i: -sum(a * b for a, b in zip(W[i].tolist(), centre, strict=True)))
    assert set((group == 0).nonzero().squeeze(1).tolist()) == {0, 1, 2, 3, *near[:2]}
    assert resized(start, mi, W, 3, 0.5, max_size=4)[1] == [], "no room"
    assert resized(start, mi * 0, W, 3, 0.5, 8)[1] == [], "nothing shared"
    group, moves = resized(torch.tensor([0] * 16 + [1, 2, 3, 4]), mi, W, 3, 0.5, 30)
    assert torch.bincount(group).tolist() == [16, 1, 1, 1, 1] and moves == [], "no group is emptied"


def test_adapting_by_mi_is_an_event():
    groups, f = layer(adapt="mi", adapt_every=1, adapt_pairs=1, adapt_share=0.25), features()
    f = torch.cat([f[:, :4], f[:, 4:8], f[:, :4] * 1.1 + 0.01 * f[:, 4:8], f[:, 12:]], 1)
    groups.observe(context(f, groups))
    mi = groups.mutual_information(groups.energies(DenseFeatures(f)))
    assert mi.argmax().item() in (2, 10)
    (event,) = groups.adapt(context(f, groups, 3, decoder()))
    assert event["kind"] == "mi" and event["pairs"][0][:2] == [2, 0] and event["moved"] == 1
    assert event["sizes_before"] == [4] * 5 and event["sizes_after"] == [5, 4, 3, 4, 4]
    assert groups.adapt(context(f, groups, 4, decoder()))[0]["moved"] == 0, "an empty window tells nothing"
    assert groups.adapt(context(f, groups, 9, decoder())) == [], "not after the last step"
    json.dumps(event)


@pytest.mark.parametrize("n_groups", [5, 100])
def test_monitor_is_small(n_groups):
    d_sae = 4 * n_groups
    groups, f = layer(d_sae), features(30, d_sae)
    record = groups.monitor(context(f, groups))["groups"]
    assert len(record["sizes"]) == len(record["mean_energy"]) == n_groups and ("mi" in record) == (n_groups == 5)
    assert len(record["mi_top_pairs"]) == min(32, n_groups * (n_groups - 1) // 2)
    mi = groups.mutual_information(groups.energies(DenseFeatures(f)))
    g, h, top = record["mi_top_pairs"][0]
    assert top == round(mi[g, h].item(), 6) == round(mi.max().item(), 6)  # of one computation, written with 6 digits
    assert record["mi_quantiles"]["1.0"] == top and record["mi_tokens"] == 30
    json.dumps(record)


def test_state_is_buffers_of_constant_shape():
    groups = layer(adapt="similarity", adapt_every=1)
    shapes = {name: b.shape for name, b in groups.named_buffers()}
    assert set(shapes) == {"group_of_F", "place_of_F", "window_WG", "filled"}
    groups.observe(context(features(), groups))
    groups.adapt(context(features(), groups, 0, decoder()))
    assert {name: b.shape for name, b in groups.named_buffers()} == shapes


def test_a_copy_of_the_state_goes_on_the_same():
    one, other = (layer(adapt="mi", adapt_every=2, competition=True, dropout=0.3, window=30) for _ in range(2))

    def go_on(groups, steps):
        out = []
        for step in steps:
            f = groups(DenseFeatures(features(seed=step)), draw(step), True)
            groups.observe(context(f, groups))
            out.append((f.dense().tolist(), groups.adapt(context(f, groups, step, decoder()))))
        return out

    go_on(one, range(5))
    other.load_state_dict(one.state_dict())
    assert go_on(one, range(5, 9)) == go_on(other, range(5, 9))
    assert not torch.equal(one.group_of_F, layer().group_of_F)


def test_yaml_files_have_every_field():
    for name in ("none", "groups"):
        node = content(config_dir() / "group_layer" / f"{name}.yaml")
        assert set(node) == {f.name for f in fields(GroupLayerConfig)} and node["name"] == name
    assert set(config(name="none").unused_keys()) == set(node) - {"name"}
    config(name="none", group_size=-1).check(5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"group_size": 0}, "group_layer.group_size=0"),
        ({"group_size": 2048}, "group_layer.group_size=2048"),
        ({"window": 1}, "group_layer.window=1"),
        ({"variance_floor": -1.0}, "group_layer.variance_floor"),
        ({"temperature": 0.0}, "group_layer.temperature"),
        ({"mask": 65}, "group_layer.mask=65"),
        ({"mask": 1.5}, "group_layer.mask=1.5"),
        ({"dropout": 1.0}, "group_layer.dropout=1"),
        ({"residual": -0.1}, "group_layer.residual"),
        ({"reversal": -0.1}, "group_layer.reversal"),
        ({"adapt": "kmeans"}, "group_layer.adapt=kmeans"),
        ({"adapt_every": 0}, "group_layer.adapt_every"),
        ({"adapt_share": 1.0}, "group_layer.adapt_share"),
        ({"adapt": "mi", "max_size": 32}, "group_layer.max_size=32"),
    ],
)
def test_bad_values_are_named(change, named):
    config().check(2048)
    with pytest.raises(ConfigError, match=named):
        check_values(config(**change), "group_layer")
        config(**change).check(2048)


def test_inert_keys():
    assert {"temperature", "mask_train_only", "adapt_every", "max_size"} <= set(config().unused_keys())
    every = config(competition=True, mask=2, dropout=0.1, residual=0.1, reversal=0.1, adapt="mi")
    assert every.unused_keys() == {}
    assert every.active_at_inference() == ["competition", "mask", "residual"]
