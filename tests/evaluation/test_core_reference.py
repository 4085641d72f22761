"""Every metric against a slow, obvious version of its definition in float64: token by token, nothing vectorised."""

import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from bounds import assert_within, close, gamma
from torch import Tensor
from toy_lm import BOS, D_IN, D_SAE, PAD, ToyLM, toy_sae, toy_tokens

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.evaluation.core import CoreResult, evaluate_core
from sae_sweeps.evaluation.reconstruction import max_cosine

LAYER = LayerConfig(index=0)


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(p * q for p, q in zip(a, b, strict=True))


def norm(x_D: Tensor) -> float:
    return math.sqrt(dot(x_D.tolist(), x_D.tolist()))


def slow_reconstruction(
    lm: ToyLM, sae: ExportedSAE, batches: list[Tensor], limit: float = math.inf
) -> tuple[dict[str, float], dict[str, list]]:
    per_token: dict[str, list[float]] = {}
    bias, squares, errors, everything = [], [], [], []
    fired, contexts = [0] * D_SAE, [0] * D_SAE
    for tokens_SL in batches:
        batch = []
        for tokens_L, x_LD in zip(tokens_SL.tolist(), lm.activations(tokens_SL, LAYER), strict=True):
            fired_here = [0] * D_SAE
            for token, x_D in zip(tokens_L, x_LD, strict=True):
                if token not in (BOS, PAD) and norm(x_D) <= limit:
                    f_F = sae.encode(x_D)
                    batch.append((x_D.tolist(), f_F.tolist(), sae.decode(f_F).tolist()))
                    fired_here = [count + (f > 0) for count, f in zip(fired_here, f_F.tolist(), strict=True)]
            fired = [a + b for a, b in zip(fired, fired_here, strict=True)]
            contexts = [a + (b > 0) for a, b in zip(contexts, fired_here, strict=True)]
        n = len(batch)
        mean = [fmean(x[d] for x, _, _ in batch) for d in range(D_IN)]
        for x, f, y in batch:
            residual = [a - b for a, b in zip(x, y, strict=True)]
            centred = [a - b for a, b in zip(x, mean, strict=True)]
            norm_x, norm_y, error = math.sqrt(dot(x, x)), math.sqrt(dot(y, y)), dot(residual, residual)
            for name, value in {
                "l2_norm_in": norm_x,
                "l2_norm_out": norm_y,
                "l2_ratio": norm_y / norm_x,
                "l0": float(sum(v != 0 for v in f)),
                "l1": sum(f),
                "mse": error / n,
                "mse_per_token": error,
                "cossim": dot(x, y) / (norm_x * norm_y) if norm_y else math.nan,
                "explained_variance_legacy": 1 - error / dot(centred, centred),
            }.items():
                per_token.setdefault(name, []).append(value)
        dots = fmean(dot(x, y) for x, _, y in batch)
        bias.append(fmean(dot(y, y) for _, _, y in batch) / dots if dots else math.nan)
        squares.append(fmean(dot(x, x) for x, _, _ in batch))
        errors.append(fmean(per_token["mse_per_token"][-n:]))
        everything += [x for x, _, _ in batch]
    metrics = {name: fmean(values) for name, values in per_token.items()}
    S, R = fmean(squares), fmean(errors)
    mean = [fmean(x[d] for x in everything) for d in range(D_IN)]
    centred = [[a - m for a, m in zip(x, mean, strict=True)] for x in everything]
    variance = fmean(dot(c, c) for c in centred)
    density = [count / len(everything) for count in fired]
    metrics |= {
        "relative_reconstruction_bias": fmean(bias),
        "explained_variance": 1 - R / (S - (S / D_IN) ** 2),
        "fvu": metrics["mse_per_token"] / variance,
        "fvu_per_token": fmean(e / dot(c, c) for e, c in zip(per_token["mse_per_token"], centred, strict=True)),
        "explained_variance_correct": 1 - metrics["mse_per_token"] / variance,
        "frac_alive": fmean(d > 0 for d in density),
        "dead_features": fmean(d == 0 for d in density),
        "freq_over_1_percent": fmean(d > 0.01 for d in density),
        "freq_over_10_percent": fmean(d > 0.1 for d in density),
        "normalized_freq_over_1_percent": sum(d for d in density if d > 0.01) / (sum(density) or 1),
        "normalized_freq_over_10_percent": sum(d for d in density if d > 0.1) / (sum(density) or 1),
    }
    heuristic = [a / b if b else math.nan for a, b in zip(fired, contexts, strict=True)]
    return metrics, {"feature_density": density, "consistent_activation_heuristic": heuristic}


def slow_preservation(
    lm: ToyLM, sae: ExportedSAE, batches: list[Tensor], exclude: bool, limit: float = math.inf
) -> dict[str, float]:
    def distributions(x_LD: Tensor) -> list[list[float]]:
        rows = (x_LD.tanh() @ lm.readout_DV).tolist()
        return [[math.exp(z) / math.fsum(map(math.exp, row)) for z in row] for row in rows]

    ce: dict[str, list[float]] = {"without_sae": [], "with_sae": [], "with_ablation": []}
    kl: dict[str, list[float]] = {"with_sae": [], "with_ablation": []}
    for tokens_SL in batches:
        for tokens_L, x_LD in zip(tokens_SL.tolist(), lm.activations(tokens_SL, LAYER), strict=True):
            special = [token in (BOS, PAD) for token in tokens_L]
            new_LD = [
                x_D if (exclude and s) or norm(x_D) > limit else sae.decode(sae.encode(x_D))
                for s, x_D in zip(special, x_LD, strict=True)
            ]
            p = {
                "without_sae": distributions(x_LD),
                "with_sae": distributions(torch.stack(new_LD)),
                "with_ablation": distributions(torch.zeros_like(x_LD)),
            }
            for position in (i for i, s in enumerate(special) if not s):
                for name in kl:
                    pairs = zip(p["without_sae"][position], p[name][position], strict=True)
                    kl[name].append(math.fsum(a * math.log(a / b) for a, b in pairs))
                if position + 1 < len(tokens_L):
                    for name in ce:
                        ce[name].append(-math.log(p[name][position][tokens_L[position + 1]]))
    means = {f"ce_loss_{n}": fmean(v) for n, v in ce.items()} | {f"kl_div_{n}": fmean(v) for n, v in kl.items()}
    gap = means["ce_loss_with_ablation"] - means["ce_loss_without_sae"]
    return means | {
        "ce_loss_score": (means["ce_loss_with_ablation"] - means["ce_loss_with_sae"]) / gap,
        "kl_div_score": (means["kl_div_with_ablation"] - means["kl_div_with_sae"]) / means["kl_div_with_ablation"],
    }


def dead_sae() -> ExportedSAE:
    sae = toy_sae(architecture="standard")
    sae.weights["b_enc"] -= 1e3
    sae.weights["b_dec"] *= 0
    return sae


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("sae", [toy_sae(1), toy_sae(2, "standard"), dead_sae()], ids=["topk", "standard", "dead"])
def test_all_metrics(sae: ExportedSAE, exclude: bool) -> None:
    lm, tokens_NL = ToyLM(), toy_tokens(12)
    cfg = EvalConfig(batch_size=2, recon_batches=2, sparsity_batches=4, exclude_special_tokens=exclude)
    result = evaluate_core({"it": sae}, cfg, lm, LAYER, tokens_NL)["it"]
    compare(result, lm, sae, list(tokens_NL.split(2)), exclude)
    assert "outlier_tokens" not in result.metrics


@pytest.mark.parametrize("sae", [toy_sae(1), toy_sae(2, "standard")], ids=["topk", "standard"])
def test_an_sae_trained_under_a_largest_norm_is_judged_within_it(sae: ExportedSAE) -> None:
    """Beside one that was trained on every token, on which it has no influence; and on every token where requested."""
    lm, tokens_NL = ToyLM(), toy_tokens(12)
    batches = list(tokens_NL.split(2))
    held = torch.cat([lm.activations(b, LAYER)[(b != BOS) & (b != PAD)] for b in batches[2:]])
    limit = float(held.norm(dim=1).sort().values[[-9, -8]].mean())  # at most 8 of the tokens are beyond
    limited = replace(sae, metadata={"norm_limit": limit})
    cfg = EvalConfig(batch_size=2, recon_batches=2, sparsity_batches=4)
    both = evaluate_core({"it": limited, "other": sae}, cfg, lm, LAYER, tokens_NL)
    compare(both["it"], lm, sae, batches, True, limit)
    compare(both["other"], lm, sae, batches, True)
    left_out = int((held.norm(dim=1) > limit).sum())
    assert left_out > 3 and both["it"].metrics["outlier_tokens"] == left_out / len(held)
    every = evaluate_core({"it": limited}, replace(cfg, exclude_outliers=False), lm, LAYER, tokens_NL)["it"]
    assert every.metrics == both["other"].metrics


@pytest.mark.parametrize("limit", ["far", -1.0, 0, True, math.nan, math.inf, [5]])
def test_a_limit_that_is_no_norm(limit: object) -> None:
    sae = replace(toy_sae(), metadata={"norm_limit": limit})
    with pytest.raises(ConfigError, match="metadata.norm_limit=.*must be a number above 0"):
        evaluate_core({"it": sae}, EvalConfig(batch_size=1), ToyLM(), LAYER, toy_tokens(4))


def compare(
    result: CoreResult, lm: ToyLM, sae: ExportedSAE, batches: list[Tensor], exclude: bool, limit: float = math.inf
) -> None:
    metrics, columns = slow_reconstruction(lm, sae, batches[2:], limit)  # these batches follow the first two
    metrics |= slow_preservation(lm, sae, batches[:2], exclude, limit)
    gap = metrics["ce_loss_with_ablation"] - metrics["ce_loss_without_sae"]
    cancels = {"ce_loss_score": 2 * metrics["ce_loss_with_ablation"] / abs(gap), "kl_div_score": 2.0}
    for name, value in metrics.items():
        if math.isnan(value):
            assert math.isnan(result.metrics[name]), name
        else:  # a mean over at most 64 tokens of sums over D_IN, D_SAE or the vocabulary, perhaps 1 less a ratio of two
            magnitude = abs(value) + cancels.get(name, 2.0) * ("score" in name or "variance" in name or "kl" in name)
            n = 4 * (64 + D_IN + D_SAE + 11)
            close(result.metrics[name], value, n, magnitude=(1 + abs(value)) * magnitude, name=name, terms=1.0)
    for name, values in columns.items():
        assert result.features[name].tolist() == pytest.approx(values, nan_ok=True), name  # counts over counts
    assert result.metrics["total_tokens_eval_reconstruction"] == 2 * 2 * 8
    assert result.metrics["total_tokens_eval_sparsity_variance"] == 4 * 2 * 8


def test_weight_statistics() -> None:
    sae = toy_sae(3)
    cfg = EvalConfig(batch_size=1, recon_batches=1, sparsity_batches=1)
    result = evaluate_core({"it": sae}, cfg, ToyLM(), LAYER, toy_tokens(2))["it"]
    enc, dec = sae.weights["W_enc"].T.tolist(), sae.weights["W_dec"].tolist()

    def cosine(a: list[float], b: list[float]) -> float:
        return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))

    bound = gamma(3 * D_IN + 8 + D_SAE, torch.float32)  # of cosines in float32, |a| |b| <= 1, and their mean
    for name, vectors in {"encoder": enc, "decoder": dec}.items():
        largest = [max(cosine(a, b) for j, b in enumerate(vectors) if j != i) for i, a in enumerate(vectors)]
        assert_within(result.features[f"max_{name}_cosine_sim"], largest, bound)
        assert_within(result.metrics[f"average_max_{name}_cosine_sim"], fmean(largest), bound)
    cosines = [cosine(a, b) for a, b in zip(enc, dec, strict=True)]
    assert_within(result.features["encoder_decoder_cosine_sim"], cosines, bound)
    norms = [math.sqrt(dot(a, a)) for a in enc]
    close(result.features["encoder_norm"], norms, n=D_IN + 4, dtype=torch.float32)
    close(result.features["encoder_bias"], sae.weights["b_enc"], n=1, dtype=torch.float32)


def test_cosine_maxima_do_not_depend_on_the_tile() -> None:
    vectors_FD = torch.randn(23, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors_FD[4] = 0
    cosine_FF = torch.nn.functional.normalize(vectors_FD, dim=1) @ torch.nn.functional.normalize(vectors_FD, dim=1).T
    expected_F = cosine_FF.fill_diagonal_(-2).amax(1)
    for tile in (1, 7, 23, 100):
        assert_within(max_cosine(vectors_FD, tile), expected_F, 2 * gamma(3 * 5 + 8), terms=1.0)
    assert max_cosine(vectors_FD[:1]).isnan().all()
