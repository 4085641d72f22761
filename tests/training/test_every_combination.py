"""Every two choices train together: architecture, penalty, precision, group layer, schedule and kernels.

A small set of combinations in which each two of them meet, and every option of every penalty and of the group layer in
one of them. `make test-matrix` takes every architecture with every penalty, precision and group layer.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import fields
from itertools import cycle

import pytest
import torch
from composed import D_IN, STEPS, batch_at, choices, configured
from pairwise import Row, cover, full

from sae_sweeps.config.plugins import component
from sae_sweeps.errors import ConfigError
from sae_sweeps.training.step import Training

pytestmark = pytest.mark.slow

# Every key of every penalty and of the group layer, with values other than its own.
OPTIONS = {
    "ortho": [
        "lambda2_max=0.1", "penalty.threshold=constant", "penalty.threshold=increasing", "base_threshold=0.05",
        "penalty.momentum=0.9", "penalty.competition=sigmoid penalty.tau=0.5", "penalty.overlap=min",
        "penalty.overlap=cosine", "penalty.overlap=batch", "penalty.reduction=per_feature", "penalty.reduction=mean",
    ],
    "strict_ortho": ["lambda2_max=0.1", "penalty.reduction=sum", "penalty.reduction=mean"],
    "adaptive_sharing": [
        "lambda2_max=0.1", "penalty.reduction=sum", "penalty.reduction=mean", "penalty.tau=1.0", "penalty.decay=0.5",
        "penalty.breakpoints=[0.0,1.0] penalty.alphas=[0.9,0.1]",
    ],
    "selective_ortho": [
        "lambda2_max=1.0", "penalty.reduction=per_feature", "penalty.reduction=mean", "penalty.statistic=max",
        "penalty.statistic=std", "penalty.statistic=frequency", "penalty.alpha=0.3", "penalty.decay=0.5",
        "penalty.grouping=kmeans penalty.regroup_every=7",
    ],
    "decorrelation": [
        "lambda2_max=0.5", "penalty.reduction=mean", "penalty.reduction=per_feature", "penalty.active_fraction=0.25",
        "penalty.variance_floor=0.01",
    ],
    "ortsae": ["lambda2_max=1.0", "penalty.chunk_size=7"],
    "contrastive": [
        "lambda2_max=0.5", "penalty.positives=top5_similar", "penalty.positives=top5_similar penalty.similar_by=head",
        "penalty.positives=top5_similar penalty.similar_by=x", "penalty.head_dim=8", "penalty.temperature=0.5",
        "penalty.diversity_weight=0.5",
    ],
    "bottleneck": [
        "lambda2_max=10", "penalty.group_lasso_weight=0.01", "penalty.l2_weight=0.1", "penalty.contrastive_weight=0.1",
        "penalty.temperature=0.5 penalty.contrastive_weight=0.1",
        "penalty.contrast=groups penalty.contrastive_weight=0.1", "group_layer.group_size=8", "group_layer.window=32",
        "group_layer.variance_floor=0.001", "group_layer.competition=true group_layer.temperature=2.0",
        "group_layer.competition=true group_layer.competition_train_only=true", "group_layer.mask=0.5",
        "group_layer.mask=1 group_layer.mask_train_only=true", "group_layer.dropout=0.2",
        "group_layer.dropout=0.1 group_layer.dropout_train_only=false", "group_layer.residual=0.1",
        "group_layer.residual=0.1 group_layer.residual_train_only=true", "group_layer.reversal=0.1",
        "group_layer.adapt=similarity group_layer.adapt_every=5 group_layer.group_size=8",
        "group_layer.adapt=mi group_layer.adapt_every=5 group_layer.group_size=8 group_layer.adapt_pairs=2 "
        "group_layer.adapt_share=0.5 group_layer.max_size=16",
    ],
}  # fmt: skip


GROUPS = "group_layer=groups group_layer.group_size=8"
FACTORS = {
    "architecture": choices("architecture"),
    "penalty": choices("penalty"),
    "train.precision": ["float32", "bfloat16", "float64"],
    "group_layer": ["group_layer=none", GROUPS, f"{GROUPS} group_layer.residual=0.1"],
    "schedule": choices("schedule"),
    "train.kernels": ["auto", "reference"],
}
# grouping=corpus needs text with roles, which these batches have and model=synthetic has not


def allowed(row: Row) -> bool:
    return not (row["penalty"] == "bottleneck" and row["group_layer"] == "group_layer=none")


def with_options(rows: list[Row]) -> list[tuple[Row, str]]:
    """Each row with an option of its penalty, as often as needed for every option to be in one."""
    pairs = []
    for penalty in FACTORS["penalty"]:
        own, options = [row for row in rows if row["penalty"] == penalty], OPTIONS[penalty]
        n = max(len(own), len(options))
        pairs += [pair for pair, _ in zip(zip(cycle(own), cycle(options)), range(n), strict=False)]
    return pairs


def words_of(row: Row) -> list[str]:
    words = [f"{key}={value}" for key, value in row.items() if key != "group_layer"]
    words += [*row["group_layer"].split(), "lr_schedule.decay=0"]
    k = {"jumprelu": ["target_l0=8"], "topk": ["k=8"], "batch_topk": ["k=8"], "matryoshka": ["k=8"]}
    return words + k.get(row["architecture"], [])


IN_TURN = ("schedule", "train.kernels")
"""Beside all combinations of the other factors these go round: a schedule only weighs a term."""


def every_method() -> Iterator[Row]:
    in_turn = cycle(full({name: FACTORS[name] for name in IN_TURN}, lambda row: True))
    for row in full({name: values for name, values in FACTORS.items() if name not in IN_TURN}, allowed):
        yield row | next(in_turn)


ROWS = cover(FACTORS, allowed)
if os.environ.get("TEST_MATRIX") == "full":
    ROWS += [row for row in every_method() if row not in ROWS]
CASES = with_options(ROWS)


def test_every_two_choices_meet():
    rows = [row for row, _ in CASES]
    met = {(a, row[a], b, row[b]) for row in rows for a in row for b in row if a < b}
    for a in FACTORS:
        for b in FACTORS:
            for x in FACTORS[a]:
                for y in FACTORS[b]:
                    row = {"penalty": "", "group_layer": "", a: x, b: y}
                    assert a >= b or not allowed(row) or (a, x, b, y) in met, (a, x, b, y)
    assert {(row["penalty"], option) for row, option in CASES} == {(p, o) for p, all_ in OPTIONS.items() for o in all_}


@pytest.mark.parametrize(("row", "option"), CASES, ids=["-".join([*row.values(), o]) for row, o in CASES])
def test_trains(row, option):
    """The reconstruction improves, all numbers are finite, the penalty weighs what its schedule has and pulls on the
    weights, and the precision and the kernels are those chosen."""
    lifted = row["penalty"] == "adaptive_sharing" and "tau" not in option  # while reconstruction is still poor
    run = configured(*words_of(row), *option.split(), *(["penalty.tau=10"] if lifted else []))
    training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
    fixed, (term,) = batch_at(999), run.penalty_terms()

    def reconstruction(step: int) -> float:
        with torch.no_grad():
            return float(training.forward(fixed, step).parts["recon"][0])

    before, pulls = reconstruction(0), []
    for step in range(STEPS):
        numbers = training.step(batch_at(step), step, logged=True, monitored=step % 5 == 0).numbers
        assert all(math.isfinite(value) for value in numbers.values()), numbers
        assert numbers["penalty_weight"] == term.weight(step, STEPS)
        if step % 5 == 0 and numbers["penalty_weight"] > 0:
            pulls.append(numbers["grad_norm/penalty"] + numbers["grad_norm/penalty_enc"])
    assert all(parameter.isfinite().all() for _, parameter in training.named_parameters())
    assert reconstruction(STEPS - 1) < before
    # with a group's residual most features fire on every token: none more often than another, so no group of features
    alike = "statistic=frequency" in option and "residual" in row["group_layer"]
    assert max(pulls) > 0 or alike
    assert (training.sae.kernels is not None) == (row["train.kernels"] == "auto")
    assert (training.sae.W_dec.dtype == torch.float64) == (row["train.precision"] == "float64")
    assert (training.groups is None) == (row["group_layer"] == "group_layer=none")


def test_no_option_is_left_out():
    """The list above names every key; a new key has to be added to it."""
    top = {"lambda2_max", "base_threshold"}
    for penalty in choices("penalty"):
        keys = {word.partition("=")[0] for words in OPTIONS[penalty] for word in words.split()}
        named = {key.removeprefix("penalty.") for key in keys if key.startswith("penalty.") or key in top}
        assert named | {"name"} == {f.name for f in fields(component("penalty", penalty).config)}
    keys = {word.partition("=")[0] for words in OPTIONS["bottleneck"] for word in words.split()}
    named = {key.removeprefix("group_layer.") for key in keys if key.startswith("group_layer.")}
    assert named | {"name"} == {f.name for f in fields(component("group_layer", "groups").config)}


@pytest.mark.parametrize("words", ["penalty.grouping=corpus", "penalty.positives=pairs"])
def test_options_that_need_roles(words):
    """On a language model's text; here only the step, on batches that have roles."""
    penalty = {"grouping": "selective_ortho", "positives": "contrastive"}[words.split(".")[1].split("=")[0]]
    with pytest.raises(ConfigError, match="roles|forget"):
        configured(f"penalty={penalty}", words)
    run = configured(f"penalty={penalty}", "k=8")
    key, _, value = words.removeprefix("penalty.").partition("=")
    setattr(run.penalty, key, value)
    training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
    numbers = [training.step(batch_at(step), step, True, True).numbers for step in range(5)]
    assert (
        numbers[-1]["penalty_loss"] > 0 and numbers[-1]["grad_norm/penalty"] + numbers[-1]["grad_norm/penalty_enc"] > 0
    )
