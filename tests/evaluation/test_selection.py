"""What is chosen on some rows is measured on others: on rows without signal every accuracy is a half."""

from functools import cache
from statistics import mean
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_lm import toy_sae

from sae_sweeps.config.evaluations import AblationConfig, EvalConfig, ProbingConfig
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.errors import DataError
from sae_sweeps.evaluation.ablation import logits_of
from sae_sweeps.evaluation.hierarchy import tasks as hierarchy_tasks
from sae_sweeps.evaluation.labels import label_separation
from sae_sweeps.evaluation.rows import Rows
from sae_sweeps.evaluation.scr import all_accuracies, pair_folds, scr_metrics
from sae_sweeps.evaluation.selection import averaged, every_second, fold_masks, halves
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.evaluation.sparse_probing import accuracies as probing_accuracies
from sae_sweeps.evaluation.tasks import BIASED, BY_ATTRIBUTE, BY_CLASS, PAIRED, Pair
from sae_sweeps.evaluation.tpp import (
    accuracies,
    clean_accuracies,
    probes_of_model,
    rest_draws,
    rest_folds,
    tpp_metrics,
)

D, N_SEEDS, SIZES = 6, 30, {"train": 24, "test": 16}
PAIR = Pair("noise", ("a", "b"))


class Noise(Shared):
    """Rows of one token each, drawn anew by each seed, whose class says nothing about them."""

    def rows(self, data, split):
        labels = ["0", "1", "2"] if data == "noise" else [name for pair in PAIRED.items() for name in pair]
        n = SIZES[split] * len(labels)
        g = torch.Generator().manual_seed(1000 * self.cfg.seed + len(split) + 10 * len(labels))
        one = torch.ones(n, dtype=torch.long)
        x = torch.randn(n, D, generator=g)
        return Rows(x, one, 0 * one, torch.arange(n), dict.fromkeys(labels, SIZES[split]))

    def rows_key(self, data):
        return {}

    def kept(self, key, make):
        return make()


def noise(seed, selection, folder):
    cfg = EvalConfig(
        seed=seed, selection=selection, probing=ProbingConfig(k_values=[1], probe_epochs=20, probe_batch=24),
        ablation=AblationConfig(n_values=[2], probe_epochs=10, probe_lr=0.1),
    )  # fmt: skip
    lm = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    return Noise(cfg, lm, LayerConfig(), "noise", f"{seed} {selection}", None, folder)


@cache
def sae():
    return toy_sae(architecture="standard", d_in=D, d_sae=12).to(dtype=torch.float32)


def tpp(shared):
    parts = rest_folds(shared, "noise", redrawn=True)
    probes = probes_of_model(shared, "noise", [fold.choosing for fold in parts])
    both = list(zip(parts, probes, strict=True))
    clean = averaged([clean_accuracies(shared, "noise", fold.measured, made) for fold, made in both])
    after = averaged([accuracies(sae(), "it", shared, "noise", fold.measured, made) for fold, made in both])
    found = tpp_metrics(after, clean)[0]
    return {"clean": mean(clean.values()), "intended": found["tpp_threshold_2_intended_diff_only"]}


def scr(shared):
    parts = pair_folds(shared, PAIR)
    probes = probes_of_model(shared, PAIR, [fold.choosing for fold in parts])
    clean = [
        all_accuracies(logits_of(made, shared.model_means(PAIR, "test")), fold.measured)
        for fold, made in zip(parts, probes, strict=True)
    ]
    return {"clean": mean(mean(one[name] for name in (BY_CLASS, BY_ATTRIBUTE, BIASED)) for one in clean)}


def sparse_probing(shared):
    draws, parts = rest_draws(shared, "noise"), rest_folds(shared, "noise")
    means = [shared.features("it", sae(), "noise", split) for split in ("train", "test")]
    found = probing_accuracies("sae", *means, draws, parts, shared, "noise")
    return {"clean": mean(found["sae_test_accuracy"].values()), "k": mean(found["sae_top_1_test_accuracy"].values())}


def z(values, expected):
    """Distance of the mean from what is expected, in standard errors."""
    return (np.mean(values) - expected) / (np.std(values, ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize("measure", [tpp, scr, sparse_probing])
def test_without_signal_a_clean_accuracy_is_a_half(measure, tmp_path):
    """0.498, 0.500 and 0.499 over 400 seeds; 0.550, 0.565 and 0.572 where the rows that measure choose, as in SAEBench
    (TPP: with its negatives drawn anew)."""
    found = {
        selection: [measure(noise(seed, selection, tmp_path)) for seed in range(N_SEEDS)]
        for selection in ("validation", "test")
    }
    assert abs(z([one["clean"] for one in found["validation"]], 0.5)) < 4 < z([o["clean"] for o in found["test"]], 0.5)
    if measure is tpp:  # what ablation takes away is what choosing had added
        assert abs(z([one["intended"] for one in found["validation"]], 0)) < 3.5
        assert z([one["intended"] for one in found["test"]], 0) > 3.5
    if measure is sparse_probing:  # the k features are chosen on the training rows
        assert abs(z([one["k"] for one in found["test"]], 0.5)) < 4


def test_scrs_direction_is_chosen_on_other_rows_than_its_score():
    """Both directions are the same but for chance, so the chosen one must be no better than the two on average."""
    rng = np.random.default_rng(0)
    excess = {"validation": [], "test": []}
    for _ in range(400):
        shares = rng.normal(0, 0.03, (2, 2, 2)) + np.array([0.7, 0.8])[:, None, None]  # original or changed, way, half
        folds = [fold_of(shares[..., half]) for half in (0, 1)]
        by_way = {"validation": (folds, folds[::-1]), "test": ([fold_of(shares.mean(2))],) * 2}
        for way, (measured, choosing) in by_way.items():
            found = scr_metrics([after for after, _ in measured], [clean for _, clean in measured],
                                [clean for _, clean in choosing])  # fmt: skip
            usual = mean(found[f"scr_dir{direction}_threshold_2"] for direction in (1, 2))
            excess[way].append(found["scr_metric_threshold_2"] - usual)
    assert abs(z(excess["validation"], 0)) < 4 < z(excess["test"], 0)


def fold_of(shares):
    """Accuracies after ablation and without, from the biased probe's by (original or changed) and direction."""
    named = [
        {f"{BIASED} probe on {data} data": row[i] for i, data in enumerate((BY_CLASS, BY_ATTRIBUTE))} for row in shares
    ]
    return {BY_CLASS: {2: named[1]}, BY_ATTRIBUTE: {2: named[1]}}, named[0] | {BY_CLASS: 0.9, BY_ATTRIBUTE: 0.9}


def test_where_both_halves_choose_a_direction_its_score_is_that_of_all_rows():
    folds = [fold_of(np.array([[0.6, 0.8], [0.7, 0.85]])), fold_of(np.array([[0.64, 0.8], [0.72, 0.8]]))]
    after, clean = ([fold[i] for fold in folds] for i in (0, 1))
    found = scr_metrics(after, clean, clean)
    assert found == pytest.approx(scr_metrics([averaged(after)], [averaged(clean)], [averaged(clean)]))
    assert found["scr_metric_threshold_2"] == found["scr_dir1_threshold_2"] == pytest.approx(0.09 / 0.28)
    tie = [clean[0], clean[1] | {name: 0.5 for name in clean[1] if "probe" in name}]
    assert scr_metrics(after, clean, tie)["scr_metric_threshold_2"] == pytest.approx(0.1 / 0.3)  # of the other fold


def test_a_label_that_says_nothing_has_no_feature():
    g = torch.Generator().manual_seed(0)
    features = (torch.rand(400, 60, generator=g) < 0.3).float()
    found = {"validation": [], "test": []}
    for _ in range(12):
        labels = torch.arange(400)[torch.randperm(400, generator=g)] % 2
        for way, values in found.items():
            values.append(label_separation(features, labels, selection=way)["feature_mi"])
    assert mean(found["validation"]) < 0.5 * mean(found["test"])
    features[:, 7] = (torch.arange(400) % 2).float()
    assert label_separation(features, torch.arange(400) % 2)["feature_mi"] == pytest.approx(1)


def test_halves_share_no_text_and_have_as_many_rows_of_each_class():
    text = torch.tensor([0, 1, 2, 3, 4, 5, 4, 5, 0, 1, 6, 7, 8, 8])  # the first class and the second share 0, 1, 4, 5
    sizes = {"a": 6, "b": 6, "c": 2}
    (first, n_first), (second, n_second) = halves(text, sizes)
    assert not set(text[first].tolist()) & set(text[second].tolist())
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(14))
    assert n_first == {"a": 3, "b": 3, "c": 2} and n_second == {"a": 3, "b": 3, "c": 0}
    assert every_second("aabab") == [False, True, False, False, True]
    one, other = fold_masks(torch.tensor([0, 0, 1, 1, 1]), "validation")
    assert one[0].tolist() == other[1].tolist() == [True, False, True, False, True]
    assert torch.equal(one[1], ~one[0]) and [m.all() for m in fold_masks(torch.zeros(3), "test")[0]] == [True, True]


def test_the_rows_of_a_task_are_as_many_of_both_kinds_in_both_halves(tmp_path):
    for fold in rest_folds(noise(0, "validation", tmp_path), "noise"):
        for label, task in fold.choosing.items():
            measured = fold.measured[label]
            assert task.test_labels.sum() * 2 == len(task.test_labels) == len(measured.test_labels) == SIZES["test"]
            assert not set(task.test_rows.tolist()) & set(measured.test_rows.tolist())
            assert torch.equal(task.train_rows, measured.train_rows)


def test_rows_that_cannot_be_halved_are_refused_with_the_keys(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "test", 1)
    with pytest.raises(DataError, match="too few for two halves: raise eval.probing.test_rows and eval.ablation"):
        rest_folds(noise(0, "validation", tmp_path), "noise")
    assert len(rest_folds(noise(0, "test", tmp_path), "noise")) == 1


def test_rows_of_one_text_are_in_one_fold_of_a_hierarchy():
    text = torch.arange(40)
    text[[5, 12, 31]] = 5  # in two fine classes of one coarse class, and in the other
    text[[20, 27]] = 20
    sizes = {"a\tx": 10, "a\ty": 10, "b\tx": 10, "b\ty": 10}
    seen = list(hierarchy_tasks(sizes, 4, 0, text))
    assert {level for _, level, _ in seen} == {"coarse", "fine"}
    for _, _, task in seen:
        assert not set(text[task.train_rows].tolist()) & set(text[task.test_rows].tolist())
