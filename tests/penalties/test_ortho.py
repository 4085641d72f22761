import itertools
import json
import math
from pathlib import Path

import numba
import pytest
import torch
from bounds import Rounding, assert_within, close
from slow_reference import ortho as slow_ortho

from sae_sweeps.config.typed import check_values
from sae_sweeps.errors import ConfigError
from sae_sweeps.kernels import coactivation, coactivation_cpu, coactivation_tiles, sparse, sparse_numba
from sae_sweeps.kernels.active_lists import active_lists
from sae_sweeps.kernels.coactivation import competing_cosines
from sae_sweeps.kernels.features import DenseFeatures, PairFeatures, TopKFeatures
from sae_sweeps.kernels.pairs import per_token
from sae_sweeps.kernels.threads import compiled, over_blocks
from sae_sweeps.penalties import ortho
from sae_sweeps.penalties.ortho import Ortho, OrthoConfig

EXAMPLES = json.loads((Path(__file__).parent / "worked_examples.json").read_text())["ortho"]


WAYS = ("loops", "loops with tiles", "listed", "rows", "tiles")


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Each of the ways in which the sum is taken."""
    take(request.param, monkeypatch)


def take(way, monkeypatch):
    monkeypatch.setattr(coactivation_cpu, "DENSE_SHARE", 0 if "with" in way else 1)
    taken = {"loops with tiles": "loops", "listed": "plain", "rows": "plain"}.get(way, way)
    monkeypatch.setattr(ortho, "pairwise", lambda kernels, W: taken)
    monkeypatch.setattr(coactivation, "MEETING_COST", 1e9 if way == "rows" else 0)
    monkeypatch.setattr(coactivation_cpu, "PANEL", 100 if way == "loops" else 2**23)
    monkeypatch.setattr(coactivation_cpu, "COLUMNS", 4)
    monkeypatch.setattr(coactivation_cpu, "TILE_COLUMNS", 24)
    for module in (coactivation, coactivation_cpu, coactivation_tiles):
        monkeypatch.setattr(module, "TILE", 16)


def config(**changes):
    values = dict(
        name="ortho", lambda2_max=1.0, threshold="constant", base_threshold=0.3, momentum=0.0, competition="linear",
        tau=0.1, overlap="jaccard", reduction="sum",
    )  # fmt: skip
    return OrthoConfig(**{**values, **changes})


def penalty(cfg, d_sae=5, total_steps=10):
    return Ortho(cfg, 3, d_sae, total_steps, torch.Generator())


def random_case(d_sae=40, d_in=6, n_tokens=25, density=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    W /= W.norm(dim=1, keepdim=True)
    f = torch.rand(n_tokens, d_sae, generator=generator, dtype=torch.float64)
    f *= torch.rand(n_tokens, d_sae, generator=generator) < density
    return W.requires_grad_(), f


def value_and_gradient(cfg, W, f, context, **kwargs):
    module = penalty(cfg, len(W))
    ctx = context(W, f, **kwargs)
    module.observe(ctx)
    result = module(ctx)
    (grad,) = torch.autograd.grad(result.loss, W)
    return result.loss.item(), grad, result.terms["competing_pairs"]


def bounds(cfg, W, f, context, **kwargs):
    """What rounding may make of the value and the gradient: of the sums in plain torch, in the dtype of W."""
    with pytest.MonkeyPatch.context() as patch, Rounding() as rounding:
        take("rows", patch)
        module = penalty(cfg, len(W))
        ctx = context(W, f, **kwargs)
        module.observe(ctx)
        loss = module(ctx).loss
        (grad,) = torch.autograd.grad(loss, W)
    return rounding.bound(loss), rounding.bound(grad)


def check(found, expected, bound):
    """Value and gradient, both of which have rounded."""
    for one, other, most in zip(found[:2], expected[:2], bound, strict=True):
        assert_within(one, other, 2 * most)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e["name"])
def test_frozen_worked_examples(example, context):
    W = torch.tensor(example["W_dec"], dtype=torch.float64, requires_grad=True)
    f = torch.tensor(example["f"], dtype=torch.float64)
    cfg = config(**example["config"])
    module = penalty(cfg, total_steps=example["total_steps"])
    followed, rounding = penalty(cfg, total_steps=example["total_steps"]), Rounding()
    for step, expected in enumerate(example["steps"]):
        ctx = context(W, f, step=step, total_steps=example["total_steps"])
        module.observe(ctx)
        result = module(ctx)
        (grad,) = torch.autograd.grad(result.loss, W)
        with pytest.MonkeyPatch.context() as patch, rounding:
            take("rows", patch)
            followed.observe(ctx)
            loss = followed(ctx).loss
            (followed_grad,) = torch.autograd.grad(loss, W)
        rounding.assert_close(expected["threshold"], followed.threshold, factor=2)
        assert torch.equal(module.threshold, followed.threshold)
        assert_within(result.loss, expected["value"], 2 * rounding.bound(loss))
        assert result.terms["competing_pairs"] == expected["competing_pairs"]
        assert_within(grad, torch.tensor(expected["grad"], dtype=torch.float64), 2 * rounding.bound(followed_grad))


@pytest.mark.parametrize(
    ("competition", "overlap", "reduction", "threshold"),
    itertools.product(
        ("linear", "sigmoid"), ("jaccard", "min", "cosine", "batch"), ("sum", "per_feature", "mean"), (0.02, 0.08)
    ),
)
def test_equals_the_slow_reference(competition, overlap, reduction, threshold, way, context):
    W, f = random_case()
    cfg = config(competition=competition, overlap=overlap, reduction=reduction, base_threshold=threshold)
    value, grad, pairs = value_and_gradient(cfg, W, f, context)
    expected, expected_grad, expected_pairs = slow_ortho(
        W.tolist(), f.tolist(), threshold=threshold, competition=competition, overlap=overlap, reduction=reduction
    )
    assert pairs == expected_pairs > 0
    check((value, grad), (expected, torch.tensor(expected_grad, dtype=torch.float64)), bounds(cfg, W, f, context))


@pytest.mark.parametrize(
    "case",
    {
        "nothing fires": lambda f: f * 0,
        "one never fires": lambda f: f * (torch.arange(40) != 3),
        "one always fires": lambda f: f + (torch.arange(40) == 3),
        "all fire always": lambda f: f + 1,
        "batch of 1": lambda f: f[:1],
        "no pair meets": lambda f: torch.eye(25, 40, dtype=torch.float64),
    }.items(),
    ids=lambda case: case[0],
)
def test_edges(way, case, context):
    W, f = random_case()
    f = case[1](f)
    value, grad, pairs = value_and_gradient(config(), W, f, context)
    expected, expected_grad, expected_pairs = slow_ortho(W.tolist(), f.tolist(), threshold=0.3)
    assert pairs == expected_pairs
    check((value, grad), (expected, torch.tensor(expected_grad, dtype=torch.float64)), bounds(config(), W, f, context))


@pytest.mark.parametrize("k", [7, 30])
def test_the_lists_are_the_same_from_pairs(k):
    """k = 30 takes features whose value is 0: those are not active, and the pairs' own order does not serve."""
    _, f = random_case(density=0.5)
    values, indices = f.topk(k, dim=1)
    order = indices.argsort(dim=1)
    values, indices = values.gather(1, order), indices.gather(1, order)
    assert bool((values > 0).all()) == (k == 7)
    pairs = per_token(indices, 40, sparse_numba)
    columns, dense = torch.tensor([39, 3, 3, 0]), torch.zeros_like(f).scatter(1, indices, values)
    for listed in (TopKFeatures(values, indices, 40), PairFeatures(values.flatten(), pairs)):
        assert torch.equal(listed.columns(columns), dense[:, columns])
    for one, other in zip(
        active_lists(TopKFeatures(values, indices, 40, pairs), len(f)),
        active_lists(DenseFeatures(dense), len(f)),
        strict=True,
    ):
        assert one.tolist() == other.tolist()


def test_orthogonal_rows_have_no_gradient(context):
    W = torch.eye(5, 5, dtype=torch.float64, requires_grad=True)
    f = torch.ones(4, 5, dtype=torch.float64)
    value, grad, pairs = value_and_gradient(config(), W, f, context)
    assert value == 0 and pairs == 10 and not grad.any()


def test_topk_features_give_the_same(context):
    W, f = random_case(density=1.0)
    values, indices = f.topk(7, dim=1)
    kept = torch.zeros_like(f).scatter(1, indices, values)
    dense = value_and_gradient(config(base_threshold=0.1), W, kept, context)
    sparse = value_and_gradient(config(base_threshold=0.1), W, f, context, top_k=7)
    assert dense[0] == sparse[0] and dense[2] == sparse[2]
    assert torch.equal(dense[1], sparse[1])


@pytest.mark.parametrize("competition", ["linear", "sigmoid"])
@pytest.mark.parametrize("overlap", ["jaccard", "min", "cosine", "batch"])
def test_all_ways_agree_in_float32_under_autocast(competition, overlap, context, monkeypatch):
    results = []
    for name in WAYS:
        take(name, monkeypatch)
        W, f = random_case(d_in=37)
        W = W.detach().float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            cfg = config(base_threshold=0.1, competition=competition, overlap=overlap)
            results.append(value_and_gradient(cfg, W, f.float(), context))
    bound = bounds(cfg, W, f.float(), context)
    for value, grad, pairs in results:
        assert grad.dtype == torch.float32 and pairs == results[0][2] > 0
        check((value, grad), results[0], bound)


def wide_case():
    """More features than one thread takes at once, a few of them active almost always, most hardly ever."""
    generator = torch.Generator().manual_seed(4)
    W = torch.randn(300, 21, generator=generator)
    rate = 0.9 / torch.arange(1, 301)
    return W.requires_grad_(), torch.rand(200, 300, generator=generator) * (
        torch.rand(200, 300, generator=generator) < rate
    )


def test_the_number_of_threads_does_not_matter(context, monkeypatch):
    monkeypatch.setattr(coactivation_cpu, "DENSE_SHARE", 1)
    results = []
    for n in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n: n)
        W, f = wide_case()
        results.append(value_and_gradient(config(base_threshold=0.01), W, f, context))
    for value, grad, pairs in results[1:]:
        assert (value, pairs) == (results[0][0], results[0][2]) and torch.equal(grad, results[0][1])


def test_features_with_many_partners_go_by_tiles_the_others_by_pairs(context, monkeypatch):
    """The default choice mixes the two; the sum is that of either alone."""
    chunks = []
    monkeypatch.setattr(coactivation_cpu, "TILE", 16)
    weigh = coactivation_cpu._weigh
    monkeypatch.setattr(coactivation_cpu, "_weigh", lambda *words: (chunks.append(words[3]), weigh(*words)))
    W, f = wide_case()
    mixed = value_and_gradient(config(base_threshold=0.01), W, f, context)
    assert 0 < len({row for chunk in chunks for row in chunk.tolist()}) < 300
    take("listed", monkeypatch)
    listed = value_and_gradient(config(base_threshold=0.01), W, f, context)
    assert mixed[2] == listed[2]
    check(mixed, listed, bounds(config(base_threshold=0.01), W, f, context))


def test_a_second_backward_pass_gives_the_same(way, context):
    W, f = random_case()
    loss = penalty(config(), len(W))(context(W, f)).loss
    (first,) = torch.autograd.grad(2 * loss, W, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(4 * loss, W)
    assert torch.equal(first, kept) and torch.equal(second, 2 * first) and bool(first.any())


@pytest.mark.parametrize("few", [0, 16])
def test_the_gradient_joins_that_of_the_reconstruction(few, monkeypatch):
    """Added in place where both are in one loss; alone, it is the same."""
    monkeypatch.setattr(coactivation_cpu, "FEW", few)
    monkeypatch.setattr(coactivation_cpu, "COLUMNS", 4)
    W, f = random_case(density=1.0)
    values, indices = f.topk(7, dim=1)
    pairs = per_token(indices, 40, sparse_numba)
    features = TopKFeatures(values, indices, 40, pairs)
    competition = penalty(config(base_threshold=0.1)).pair_competition()
    x = torch.ones(len(f), 6, dtype=torch.float64)
    found = []
    for joined in (False, True):
        error, squares = sparse.residual(pairs, values.flatten(), W, torch.zeros(6, dtype=torch.float64), x)
        value, _ = competing_cosines(W, features, len(f), competition, "loops", error if joined else None)
        (alone,) = torch.autograd.grad(3 * value, W, retain_graph=True)
        (of_both,) = torch.autograd.grad(squares.sum() + 3 * value, W, retain_graph=True)
        found.append((alone, of_both))
        (again,) = torch.autograd.grad(squares.sum() + 3 * value, W)
        assert torch.equal(of_both, again)
    (alone, of_both), (alone_joined, of_both_joined) = found
    assert torch.equal(alone, alone_joined) and bool(alone.any())
    close(of_both_joined, of_both, 3, magnitude=(of_both - alone).abs() + alone.abs())


@pytest.mark.parametrize("exact", [1, 7, 25])
def test_tiles_take_a_threshold_that_is_a_tensor_and_tokens_in_parts(exact, context, monkeypatch):
    """As on a GPU, where the threshold is not read and counts of many tokens are added up from exact parts."""
    W, f = random_case()
    take("rows", monkeypatch)
    expected = value_and_gradient(config(), W, f, context)
    take("tiles", monkeypatch)
    monkeypatch.setattr(coactivation_tiles, "EXACT", exact)
    monkeypatch.setattr(ortho, "asynchronous", lambda tensor: True)
    found = value_and_gradient(config(), W, f, context)
    assert found[2] == expected[2] > 0
    check(found, expected, bounds(config(), W, f, context))


def test_a_weight_that_is_not_a_number_makes_the_value_one_too(way, context):
    W, f = random_case()
    with torch.no_grad():
        W[f.sum(0).argmax(), 0] = torch.nan
    value, _, pairs = value_and_gradient(config(base_threshold=0.01), W, f, context)
    assert math.isnan(value) and pairs > 0


def test_an_error_in_a_thread_is_the_callers(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    def work(first, beyond):
        raise ValueError(f"rows {first} to {beyond}")

    with pytest.raises(ValueError, match="rows"):
        over_blocks(work, 10, 2)


def test_loops_are_compiled_without_a_cache_where_nothing_can_be_written(monkeypatch):
    njit = numba.njit

    def unwritable(cache=False, **words):
        def refuse(function):
            raise RuntimeError("cannot cache function: no locator available")

        return refuse if cache else njit(**words)

    monkeypatch.setattr(numba, "njit", unwritable)
    assert compiled()(lambda a: a + 1)(2) == 3


@pytest.mark.parametrize(
    ("kind", "expected"), [("decreasing", [0.3, 0.15]), ("constant", [0.3, 0.3]), ("increasing", [0.3, 0.45])]
)
def test_threshold_follows_its_schedule(kind, expected):
    assert [config(threshold=kind).threshold_at(p) for p in (0.0, 0.5)] == pytest.approx(expected)


def test_momentum_is_state_that_moves_towards_the_schedule(context):
    W, f = random_case()
    module = penalty(config(threshold="decreasing", momentum=0.9), 40)
    seen = []
    for step in range(3):
        module.observe(context(W, f, step=step))
        seen.append(float(module.threshold))
    t = [0.3 * (1 - step / 10) for step in range(3)]
    first = 0.9 * t[0] + 0.1 * t[0]
    second = 0.9 * first + 0.1 * t[1]
    assert seen == pytest.approx([first, second, 0.9 * second + 0.1 * t[2]])
    assert "threshold" in module.state_dict()


def test_threshold_zero_is_floored(context):
    W, f = random_case()
    value, _, pairs = value_and_gradient(config(base_threshold=0.0), W, f, context)
    assert pairs > 0 and value == value


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lambda2_max": -1.0}, "lambda2_max"),
        ({"base_threshold": 1.5}, "base_threshold"),
        ({"momentum": 1.0}, "penalty.momentum"),
        ({"tau": 0.0}, "penalty.tau"),
        ({"overlap": "dice"}, "penalty.overlap=dice"),
    ],
)
def test_bad_values_are_named(change, named):
    with pytest.raises(ConfigError, match=named):
        check_values(config(**change), "penalty")


def test_a_threshold_that_no_overlap_exceeds_is_told():
    assert config(base_threshold=1.0).never_acts()
    assert config(base_threshold=1.0, competition="sigmoid").never_acts() is None
    assert config(base_threshold=0.5, threshold="increasing").plan_warnings()
    assert config().never_acts() is None and config().plan_warnings() == []


def test_idle_penalty_is_told_afterwards():
    rows = [{"penalty/competing_pairs": 0}] * 2 + [{"penalty/competing_pairs": 5}] * 8
    assert "20%" in config().result_warnings(rows)[0]
    assert config().result_warnings(rows[2:]) == []
