"""What the core evaluation does at the edges, what it warns of and what it writes."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy_lm import BOS, D_IN, D_SAE, PAD, ToyLM, toy_sae, toy_tokens

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.errors import DataError
from sae_sweeps.evaluation.batches import split_batches
from sae_sweeps.evaluation.core import GROUPS, OURS, doubts, evaluate_activations, evaluate_core

LAYER = LayerConfig(index=0)
CFG = EvalConfig(batch_size=2, recon_batches=2, sparsity_batches=3)


def test_a_group_shares_the_forward_passes_and_changes_no_number() -> None:
    saes, tokens_NL = {"a": toy_sae(1), "b": toy_sae(2, "standard"), "c": toy_sae(3)}, toy_tokens(10)
    lm = ToyLM()
    group = evaluate_core(saes, CFG, lm, LAYER, tokens_NL)
    assert lm.n_forwards == CFG.recon_batches * (2 + len(saes))
    for name, sae in saes.items():
        alone = evaluate_core({name: sae}, CFG, ToyLM(), LAYER, tokens_NL)[name]
        assert alone.metrics == group[name].metrics
        for column, values in group[name].features.items():
            torch.testing.assert_close(alone.features[column], values, rtol=0, atol=0, equal_nan=True)


def test_a_batch_of_special_tokens_counts_for_nothing() -> None:
    tokens_NL = toy_tokens(8)
    cfg = EvalConfig(batch_size=2, recon_batches=1, sparsity_batches=3)
    with_it = torch.cat([tokens_NL, torch.full((2, 8), BOS)])
    longer = EvalConfig(batch_size=2, recon_batches=1, sparsity_batches=4)
    expected = evaluate_core({"it": toy_sae()}, cfg, ToyLM(), LAYER, tokens_NL)["it"].metrics
    found = evaluate_core({"it": toy_sae()}, longer, ToyLM(), LAYER, with_it)["it"].metrics
    assert found.pop("total_tokens_eval_sparsity_variance") > expected.pop("total_tokens_eval_sparsity_variance")
    assert found == expected


def test_special_tokens_only_gives_nan_and_says_why() -> None:
    tokens_NL = torch.full((10, 8), PAD)
    result = evaluate_core({"it": toy_sae()}, CFG, ToyLM(), LAYER, tokens_NL)["it"]
    assert all(math.isnan(result.metrics[m]) for m in ("l0", "fvu", "frac_alive", "ce_loss_score", "mse"))
    assert "no tokens but special ones" in result.warnings[0]
    assert result.to_json()["eval_result_metrics"]["sparsity"] == {"l0": -1, "l1": -1}


def test_a_nan_weight_is_named() -> None:
    sae = toy_sae()
    sae.weights["W_dec"][0] = math.nan
    result = evaluate_core({"it": sae}, CFG, ToyLM(), LAYER, toy_tokens(10))["it"]
    assert math.isnan(result.metrics["fvu"])
    assert result.warnings[0] == "not to be believed: the SAE's W_dec is not finite"
    assert any("not a finite number" in w and "fvu" in w for w in result.warnings)


def test_probabilities_that_underflow_leave_the_kl_divergence_finite() -> None:
    lm = ToyLM(sharpness=1e3)
    assert lm.logits(toy_tokens(10)).softmax(-1).min() == 0
    result = evaluate_core({"it": toy_sae()}, CFG, lm, LAYER, toy_tokens(10))["it"]
    assert math.isfinite(result.metrics["kl_div_with_sae"]) and result.metrics["kl_div_with_sae"] > 0


def test_perfect_reconstruction() -> None:
    sae = toy_sae(architecture="standard", d_sae=2 * D_IN)
    eye = torch.eye(D_IN, dtype=torch.float64)
    sae.weights |= {"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye]), "b_enc": torch.zeros(2 * D_IN)}
    metrics = evaluate_core({"it": sae}, CFG, ToyLM(), LAYER, toy_tokens(10))["it"].metrics
    assert metrics["fvu"] == pytest.approx(0, abs=1e-12)
    for one in (
        "explained_variance_correct",
        "explained_variance",
        "cossim",
        "l2_ratio",
        "ce_loss_score",
        "kl_div_score",
    ):
        assert metrics[one] == pytest.approx(1), one


@pytest.mark.parametrize(
    ("d_sae", "k", "words"),
    [(9, 3, "above a tenth of d_sae = 9"), (200, 10, "above d_in = 6"), (200, 4, None)],
)
def test_warnings_about_sparsity(d_sae: int, k: int, words: str | None) -> None:
    sae = toy_sae(d_sae=d_sae)
    sae.k = k
    warnings = evaluate_core({"it": sae}, CFG, ToyLM(), LAYER, toy_tokens(10))["it"].warnings
    assert any(words in w for w in warnings) if words else not any("L0" in w for w in warnings)


def test_activations_without_a_language_model() -> None:
    x_BD = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def batches() -> Iterator[Tensor]:
        yield from x_BD.split(16)

    result = evaluate_activations({"it": toy_sae()}, batches())["it"]
    y_BD = toy_sae().decode(toy_sae().encode(x_BD))
    fvu = (x_BD - y_BD).pow(2).sum() / (x_BD - x_BD.mean(0)).pow(2).sum()
    assert result.metrics["fvu"] == pytest.approx(fvu.item())
    assert not any("ce_loss" in m or "kl_div" in m for m in result.metrics)
    content = result.to_json()
    assert set(content["eval_result_metrics"]["model_behavior_preservation"].values()) == {None}
    assert {row["consistent_activation_heuristic"] for row in content["eval_result_details"]} == {None}
    assert content["eval_config"]["compute_kl"] is False
    assert content["eval_config"]["n_eval_sparsity_variance_batches"] == 3
    assert content["eval_result_metrics"]["token_stats"]["total_tokens_eval_sparsity_variance"] == 40


def test_the_file() -> None:
    sae = toy_sae()
    sae.weights["b_enc"][0] = -1e3
    result = evaluate_core({"it": sae}, CFG, ToyLM(), LAYER, toy_tokens(10))["it"]
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["eval_type_id"] == "core"
    assert {g: list(m) for g, m in content["eval_result_metrics"].items()} == GROUPS
    assert [row["index"] for row in content["eval_result_details"]] == list(range(D_SAE))
    assert content["eval_result_details"][0]["consistent_activation_heuristic"] == -1  # a dead feature
    assert content["eval_result_unstructured"]["fvu"] == result.metrics["fvu"]
    flat = set().union(*GROUPS.values(), OURS)
    assert set(result.metrics) == flat - {"outlier_tokens"}  # of an SAE trained under data.max_norm


def test_short_text_is_shared_out_and_said_so() -> None:
    cfg = EvalConfig(batch_size=4, recon_batches=2, sparsity_batches=6)
    recon, sparsity, warnings = split_batches(toy_tokens(17), cfg)
    assert [len(b) for b in recon + sparsity] == [4, 4, 4, 4] and len(recon) == 1
    assert "1 + 3 batches of 4 contexts instead of 2 + 6" in warnings[0]
    recon, sparsity, warnings = split_batches(toy_tokens(3), cfg)
    assert [len(b) for b in recon + sparsity] == [1, 1, 1] and len(recon) == 1 and warnings
    assert split_batches(toy_tokens(40), cfg)[2] == []


def test_mistakes() -> None:
    with pytest.raises(DataError, match="at least 2"):
        evaluate_core({"it": toy_sae()}, CFG, ToyLM(), LAYER, toy_tokens(1))


def test_worse_than_the_mean_is_said() -> None:
    weights = {"W_dec": torch.zeros(8, 4)}
    sae = ExportedSAE("standard", weights)
    metrics = {"l0": 0.5, "dead_features": 0.0, "fvu": 1.5}
    assert doubts(metrics, sae) == ["fvu = 1.50: the mean activation would be a better reconstruction"]
    assert doubts(metrics | {"fvu": 0.9}, sae) == []


@pytest.mark.parametrize(
    ("flag", "gone"),
    [
        ("compute_kl", GROUPS["model_behavior_preservation"]),
        ("compute_ce_loss", GROUPS["model_performance_preservation"]),
        ("compute_l2_norms", GROUPS["shrinkage"]),
        ("compute_sparsity_metrics", GROUPS["sparsity"]),
        ("compute_variance_metrics", [*GROUPS["reconstruction_quality"], *OURS[:4]]),
        ("compute_featurewise_density_statistics", [*GROUPS["misc_metrics"][:4], "frac_alive", "dead_features"]),
        ("compute_featurewise_weight_based_metrics", GROUPS["misc_metrics"][4:6]),
    ],
)
def test_a_part_that_is_not_wanted_is_absent_and_null_in_the_file(flag: str, gone: list[str]) -> None:
    lm, tokens_NL = ToyLM(), toy_tokens(10)
    whole = evaluate_core({"it": toy_sae()}, CFG, ToyLM(), LAYER, tokens_NL)["it"]
    part = evaluate_core({"it": toy_sae()}, replace(CFG, **{flag: False}), lm, LAYER, tokens_NL)["it"]
    assert part.metrics == {name: value for name, value in whole.metrics.items() if name not in gone}
    content = json.loads(json.dumps(part.to_json()))
    named = {name: value for group in content["eval_result_metrics"].values() for name, value in group.items()}
    assert {named[name] for name in gone if name in named} == {None}
    assert content["eval_config"][flag] is False and part.warnings == whole.warnings
    neither = replace(CFG, compute_kl=False, compute_ce_loss=False)
    lm = ToyLM()
    evaluate_core({"it": toy_sae()}, neither, lm, LAYER, tokens_NL)
    assert lm.n_forwards == 0  # past the layer
