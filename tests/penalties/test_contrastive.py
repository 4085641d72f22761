import json
import math
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import slow_contrastive as slow
import torch
from bounds import Rounding, assert_within
from omegaconf import OmegaConf

from sae_sweeps.architectures.batch import Batch
from sae_sweeps.architectures.context import Context
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.typed import check_values
from sae_sweeps.errors import ConfigError
from sae_sweeps.kernels.features import DenseFeatures, TopKFeatures
from sae_sweeps.kernels.info_nce import neighbours
from sae_sweeps.penalties.contrastive import Contrastive, ContrastiveConfig, concentration

EXAMPLES = json.loads((Path(__file__).parent / "worked_examples_contrastive.json").read_text())


def config(**changes):
    values = dict(
        name="contrastive", lambda2_max=0.1, positives="adjacent", head_dim=4, temperature=0.1, diversity_weight=0.0,
        similar_by="feature_acts",
    )  # fmt: skip
    return ContrastiveConfig(**{**values, **changes})


def penalty(cfg, d_sae, seed=0):
    return Contrastive(cfg, 3, d_sae, 10, torch.Generator().manual_seed(seed)).double()


def context(f, x=None, sequence=None, position=None, role=None, top_k=None):
    n = len(f)
    x = torch.zeros(n, 3, dtype=f.dtype) if x is None else x
    sequence, position, role = (
        torch.zeros(n, dtype=torch.int32) if t is None else torch.as_tensor(t, dtype=torch.int32)
        for t in (sequence, position if position is not None else torch.arange(n), role)
    )
    features = DenseFeatures(f)
    if top_k:
        values, indices = f.topk(top_k, dim=1, sorted=False)
        features = TopKFeatures(values, indices, f.shape[1])
    batch = Batch(x, position, sequence, position, role.to(torch.int8))
    return Context(None, batch, x, f, features, x, 0, 10, 0)


def random_case(n=12, d_sae=20, seed=0, density=0.3):
    generator = torch.Generator().manual_seed(seed)
    f = torch.rand(n, d_sae, generator=generator, dtype=torch.float64)
    f *= torch.rand(n, d_sae, generator=generator) < density
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    sequence = torch.randint(0, 3, (n,), generator=generator)
    position = torch.randint(0, 5, (n,), generator=generator)
    role = torch.randint(1, 3, (n // 2,), generator=generator).repeat(2)
    return f.requires_grad_(), dict(x=x, sequence=sequence, position=position, role=role)


def slow_pairs(module, f, batch):
    cfg = module.cfg
    if cfg.positives == "adjacent":
        return slow.adjacent(batch["sequence"].tolist(), batch["position"].tolist()), None
    if cfg.positives == "top5_similar" and cfg.similar_by == "x":
        return slow.most_similar(batch["x"].tolist(), 5), None
    if cfg.positives == "top5_similar":
        compared = f if cfg.similar_by == "feature_acts" else f @ module.head
        return slow.most_similar(compared.tolist(), 5, above=0), None
    return slow.by_role(batch["role"].tolist())


def check(module, f, batch, top_k=None):
    cfg, rounding = module.cfg, Rounding()
    with rounding:  # of dense features, on which the k largest give the same
        result = module(context(f, **batch))
        df, dhead = torch.autograd.grad(result.loss, [f, module.head])
    positives, candidates = slow_pairs(module, f, batch)
    expected = slow.contrastive(
        f.tolist(), module.head.tolist(), positives, cfg.temperature, cfg.diversity_weight, candidates
    )
    terms, value, slow_df, slow_dhead = expected
    slow_df = torch.tensor(slow_df, dtype=torch.float64)
    slow_dhead = torch.tensor(slow_dhead, dtype=torch.float64)
    for expected, found in (
        (value, result.loss), (terms["info_nce"], result.terms["info_nce"]), (slow_df, df), (slow_dhead, dhead)
    ):  # fmt: skip
        rounding.assert_close(expected, found, factor=2, terms=1.0)  # both have rounded; of equal tokens all cancels
    if top_k:
        sparse = module(context(f, **batch, top_k=top_k))
        on_f, on_head = torch.autograd.grad(sparse.loss, [f, module.head])
        kept = f != 0  # a feature that is not among the k has no gradient
        assert_within(sparse.loss, value, 2 * rounding.bound(result.loss))
        assert_within(on_f * kept, slow_df * kept, 2 * rounding.bound(df))
        assert_within(on_head, slow_dhead, 2 * rounding.bound(dhead))
    return result


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    ("positives", "similar_by"),
    [("adjacent", "x"), ("pairs", "x"), *(("top5_similar", key) for key in ("feature_acts", "head", "x"))],
)
@pytest.mark.parametrize("diversity", [0.0, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_slow_reference(positives, similar_by, diversity, seed):
    f, batch = random_case(seed=seed)
    cfg = config(positives=positives, similar_by=similar_by, diversity_weight=diversity)
    result = check(penalty(cfg, 20), f, batch)
    assert result.terms["anchors"] > 0 and result.terms["info_nce"] > 0


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e["name"])
def test_frozen_worked_examples(example):
    f = torch.tensor(example["f"], dtype=torch.float64, requires_grad=True)
    cfg = config(**example["config"])
    module = penalty(cfg, 5)
    module.head = torch.nn.Parameter(torch.tensor(example["head"], dtype=torch.float64))
    x = torch.tensor(example["x"], dtype=torch.float64)
    with Rounding() as rounding:
        result = module(context(f, x, example["sequence"], example["position"], example["role"]))
        df, dhead = torch.autograd.grad(result.loss, [f, module.head])
    rounding.assert_close(example["value"], result.loss, factor=2)
    rounding.assert_close(example["terms"]["info_nce"], result.terms["info_nce"], factor=2)
    if cfg.diversity_weight:
        rounding.assert_close(example["terms"]["diversity"], result.terms["diversity"], factor=2)
    for found, expected in ((df, example["grad_f"]), (dhead, example["grad_head"])):
        rounding.assert_close(expected, found, factor=2)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    "change",
    {
        "nothing fires": lambda f: f * 0,
        "one token without features": lambda f: f * (torch.arange(len(f)) != 2)[:, None],
        "one never fires": lambda f: f * (torch.arange(f.shape[1]) != 3),
        "one always fires": lambda f: f + (torch.arange(f.shape[1]) == 3).double(),
        "all tokens alike": lambda f: f * 0 + 1,
        "two tokens": lambda f: f[:2],
        "batch of 1": lambda f: f[:1],
    }.items(),
    ids=lambda change: change[0],
)
@pytest.mark.parametrize("positives", ["adjacent", "top5_similar", "pairs", "by head", "by x"])
def test_edges(change, positives):
    f, batch = random_case()
    positives, similar_by = ("top5_similar", positives[3:]) if positives[:3] == "by " else (positives, "feature_acts")
    f = change[1](f.detach()).requires_grad_()
    batch = {key: value[: len(f)] for key, value in batch.items()}
    if len(f) == 1 and positives == "pairs":
        batch["role"] = batch["role"][:1]
        result = penalty(config(positives="pairs"), 20)(context(f, **batch))
        assert result.loss == 0 and not torch.autograd.grad(result.loss, f)[0].any()
        return
    cfg = config(positives=positives, diversity_weight=0.5, similar_by=similar_by)
    check(penalty(cfg, 20), f, batch)


@pytest.mark.usefixtures("form")
def test_no_positive_means_no_loss_and_no_gradient():
    f, batch = random_case()
    batch["position"] = torch.arange(12) * 2
    module = penalty(config(), 20)
    result = module(context(f, **batch))
    df, dhead = torch.autograd.grad(result.loss, [f, module.head])
    assert result.loss == 0 and result.terms["anchors"] == 0 and not df.any() and not dhead.any()
    assert module.monitor(context(f, **batch))["contrastive"]["alignment"] is None


@pytest.mark.usefixtures("form")
def test_in_a_batch_of_one_role_all_others_are_candidates():
    """As in pairs of texts without roles."""
    f, batch = random_case()
    batch["role"] = torch.ones(12)
    result = check(penalty(config(positives="pairs"), 20), f, batch)
    assert result.loss.item() > 0 and result.terms["anchors"] == 1


def test_rows_of_the_same_role_are_no_negatives():
    f, batch = random_case()
    batch["role"] = torch.tensor([1, 1, 1, 2, 2, 2] * 2)
    module = penalty(config(positives="pairs"), 20)
    (anchor, positive), candidate = module.pairs(context(f, **batch), torch.zeros(12, 4))
    assert candidate[0].nonzero().squeeze(1).tolist() == [3, 4, 5, 6, 9, 10, 11]
    assert sorted(zip(anchor.tolist(), positive.tolist(), strict=True))[:2] == [(0, 6), (1, 7)]


def test_neighbours_of_tokens_that_stand_twice_in_the_batch():
    sequence = torch.tensor([0, 0, 0, 1, 0, 0])
    position = torch.tensor([4, 5, 5, 6, 3, 127])
    found = sorted(zip(*(rows.tolist() for rows in neighbours(sequence, position)), strict=True))
    expected = slow.adjacent(sequence.tolist(), position.tolist())
    assert found == [(a, b) for a, rows in enumerate(expected) for b in rows]
    assert found == [(0, 1), (0, 2), (0, 4), (1, 0), (2, 0), (4, 0)]


def test_rows_that_share_no_feature_are_not_similar():
    f = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 1.0, 0], [0, 0, 0]], dtype=torch.float64)
    module = penalty(config(positives="top5_similar"), 3)
    (anchor, positive), _ = module.pairs(context(f), torch.zeros(4, 4))
    assert (anchor.tolist(), positive.tolist()) == ([0, 1], [1, 0])
    assert module(context(f)).terms["anchors"] == 0.5


def test_no_gradient_flows_through_the_choice_by_head():
    f, batch = random_case()
    module = penalty(config(positives="top5_similar", similar_by="head"), 20)
    u = module.project(context(f, **batch).feature_acts)
    (anchor, positive), _ = module.pairs(context(f, **batch), u)
    assert not anchor.requires_grad and not positive.requires_grad
    nearest = (u @ u.T).fill_diagonal_(-2).argmax(1)
    assert torch.equal(positive[torch.arange(12).eq(anchor[:, None]).int().argmax(0)], nearest)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("positives", ["adjacent", "top5_similar"])
def test_topk_features_give_the_same(positives):
    f, batch = random_case(density=1.0)
    values, indices = f.detach().topk(6, dim=1)
    kept = torch.zeros_like(f).scatter(1, indices, values).requires_grad_()
    check(penalty(config(positives=positives, diversity_weight=0.3), 20), kept, batch, top_k=6)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("positives", ["adjacent", "top5_similar", "pairs"])
@pytest.mark.parametrize("top_k", [None, 6])
def test_is_the_same_under_autocast(positives, top_k):
    results = []
    for enabled in (False, True):
        f, batch = random_case()
        f = f.detach().float().requires_grad_()
        batch["x"] = batch["x"].float()
        module = penalty(config(positives=positives, diversity_weight=0.2), 20).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = module(context(f, **batch, top_k=top_k)).loss
        results.append([loss, *torch.autograd.grad(loss, [f, module.head])])
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.usefixtures("form")
def test_low_temperature_and_tiny_features_stay_finite():
    f, batch = random_case()
    for size in (1e-30, 1e-8, 1e8):
        small = (f.detach().float() * size).requires_grad_()
        batch["x"] = batch["x"].float()
        module = penalty(config(temperature=0.005, diversity_weight=1.0), 20).float()
        loss = module(context(small, **batch)).loss
        assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, [small, module.head]))


def test_concentration_is_0_for_even_use_and_1_for_a_single_feature():
    assert concentration(DenseFeatures(torch.ones(3, 8))).item() == pytest.approx(0, abs=1e-6)
    assert concentration(DenseFeatures(torch.eye(8)[:1])).item() == pytest.approx(1)
    assert concentration(DenseFeatures(torch.zeros(3, 8))).item() == 0


def test_monitor_tells_alignment_uniformity_and_retrieval():
    f = torch.eye(6, 20, dtype=torch.float64).repeat_interleave(2, 0).requires_grad_()
    batch = dict(sequence=torch.arange(12) // 2, position=torch.arange(12) % 2)
    module = penalty(config(head_dim=20), 20)
    module.head = torch.nn.Parameter(torch.eye(20, dtype=torch.float64))
    record = module.monitor(context(f, **batch))["contrastive"]
    assert record["alignment"] == pytest.approx(1) and record["retrieval"] == 1
    assert record["chance"] == pytest.approx(1 / 11)
    # of 66 pairs 6 are at distance 0, the others at sqrt(2)
    assert record["uniformity"] == pytest.approx(math.log((6 + 60 * math.exp(-4)) / 66))
    json.dumps(record)


def test_the_seed_decides_the_head():
    assert torch.equal(penalty(config(), 20, seed=3).head, penalty(config(), 20, seed=3).head)
    assert not torch.equal(penalty(config(), 20, seed=3).head, penalty(config(), 20, seed=4).head)


def test_yaml_has_every_field_and_passes_its_check():
    node = OmegaConf.load(config_dir() / "penalty" / "contrastive.yaml")
    assert set(node) == {f.name for f in fields(ContrastiveConfig)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lambda2_max": -1.0}, "lambda2_max"),
        ({"positives": "random"}, "penalty.positives=random"),
        ({"similar_by": "z"}, "penalty.similar_by=z: must be one of feature_acts, head, x"),
        ({"head_dim": 0}, "penalty.head_dim=0"),
        ({"temperature": 0.0}, "penalty.temperature"),
        ({"diversity_weight": -0.5}, "penalty.diversity_weight"),
    ],
)
def test_bad_values_are_named(change, named):
    check_values(config(), "penalty")
    with pytest.raises(ConfigError, match=named):
        check_values(config(**change), "penalty")


def run(sampling, synthetic=False):
    return SimpleNamespace(synthetic=synthetic, train=SimpleNamespace(sampling=sampling))


def test_each_kind_of_positives_has_its_batches():
    wanted = {"adjacent": "adjacent_pairs", "top5_similar": "tokens", "pairs": "role_pairs"}
    for positives, sampling in wanted.items():
        cfg = config(positives=positives)
        assert cfg.sampling() == sampling
        cfg.check_run(run(sampling))
    config().check_run(run("contiguous_windows"))
    with pytest.raises(ConfigError, match="train.sampling=tokens"):
        config().check_run(run("tokens"))
    with pytest.raises(ConfigError, match="role_pairs"):
        config(positives="pairs").check_run(run("tokens"))
    with pytest.raises(ConfigError, match="model=synthetic has no roles"):
        config(positives="pairs").check_run(run("role_pairs", synthetic=True))


def test_idle_penalty_is_told_afterwards():
    rows = [{"penalty/anchors": 0}] * 2 + [{"penalty/anchors": 1.0}] * 8
    assert "20%" in config().result_warnings(rows)[0] and config().result_warnings(rows[2:]) == []
