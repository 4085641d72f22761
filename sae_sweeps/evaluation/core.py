"""The core evaluation: reconstruction, sparsity and preservation of the model's loss, as SAEBench defines them.

Nothing here is random: the numbers depend on the SAE, the model and the held-out contexts in their order, and an SAE
gets the same ones alone and in a group. Sums run in float64 and SAEs in their own dtype, where SAEBench rounds both to
the language model's dtype: the numbers agree to float32 precision with a float32 model, to three digits with bfloat16.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sae_sweeps.activations.harvest import SyntheticSource
from sae_sweeps.activations.synthetic import SyntheticWorld
from sae_sweeps.architectures.batch import norms_of
from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import EvalConfig, Evaluation
from sae_sweeps.config.schema import DataConfig, LayerConfig
from sae_sweeps.evaluation.batches import LanguageModel, is_plain, split_batches
from sae_sweeps.evaluation.preservation import preservation, ratio
from sae_sweeps.evaluation.reconstruction import (
    FeatureStats,
    ReconstructionStats,
    density_metrics,
    mean_within,
    weight_stats,
)
from sae_sweeps.evaluation.result import envelope
from sae_sweeps.evaluation.shared import Shared

METRICS = {
    "fvu(_per_token)?": ("lower", None),
    "explained_variance": ("higher", "expl_var"),
    r"explained_variance_(correct|legacy)": ("higher", r"expl_var_\1"),
    "mse(_per_token)?": ("lower", None),
    "cossim": ("higher", None),
    "l2_ratio": ("one", None),
    "relative_reconstruction_bias": ("one", "recon_bias"),
    "ce_loss_score": ("higher", "ce_score"),
    "kl_div_score": ("higher", "kl_score"),
    "(ce_loss|kl_div)_with_sae": ("lower", None),
    "dead_features": ("lower", "dead"),
    "outlier_tokens": (None, "outliers"),
    "frac_alive": ("higher", None),
    r"average_max_(en|de)coder_cosine_sim": (None, r"max_\1c_cos"),
    "l[01]": (None, None),
    "l2_norm_(in|out)": (None, None),
    "ce_loss_without_sae": (None, None),
    "(ce_loss|kl_div)_with_ablation": (None, None),
    r"(normalized_)?freq_over_\d+_percent": (None, None),
    r"total_tokens_eval_\w+": (None, None),
}

GROUPS = {
    "model_behavior_preservation": ["kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"],
    "model_performance_preservation": [
        "ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae",
    ],
    "reconstruction_quality": ["explained_variance", "explained_variance_legacy", "mse", "cossim"],
    "shrinkage": ["l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"],
    "sparsity": ["l0", "l1"],
    "token_stats": ["total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"],
    "misc_metrics": [
        "freq_over_1_percent", "freq_over_10_percent", "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent", "average_max_encoder_cosine_sim", "average_max_decoder_cosine_sim",
        "frac_alive",
    ],
}  # fmt: skip
"""SAEBench's metrics, by the groups of its file."""

FEATURE_COLUMNS = [
    "feature_density", "consistent_activation_heuristic", "encoder_bias", "encoder_norm", "encoder_decoder_cosine_sim",
    "max_decoder_cosine_sim", "max_encoder_cosine_sim",
]  # fmt: skip
"""SAEBench's statistics of each feature, in the order of its file."""

KL, CE = "kl_div_.*", "ce_loss_.*"
OF_MODEL = f"{KL}|{CE}"
"""Metrics that synthetic activations do not have."""

LEFT_OUT = {
    "compute_kl": KL,
    "compute_ce_loss": CE,
    "compute_l2_norms": "l2_.*|relative_reconstruction_bias",
    "compute_sparsity_metrics": "l0|l1",
    "compute_variance_metrics": "explained_variance.*|mse.*|cossim|fvu.*",
    "compute_featurewise_density_statistics":
        "feature_density|consistent_activation_heuristic|.*freq_over_.*|frac_alive|dead_features",
    "compute_featurewise_weight_based_metrics": "encoder_.*|.*max_(en|de)coder_cosine_sim",
}  # fmt: skip
"""Metrics and columns that are absent where a key of `eval` is false."""

OURS = ["fvu", "fvu_per_token", "explained_variance_correct", "mse_per_token", "dead_features", "outlier_tokens"]
"""Metrics that SAEBench does not have (see ReconstructionStats); its schema's place for them is `unstructured`."""

MEAN_TOKENS = 32_768
"""The mean activation of `fvu_per_token` is that of the first batches that hold so many tokens."""

Batch = tuple[Tensor, Tensor | None]
"""Activations x_nD and how many of them each context has [S], if there are contexts."""


@dataclass
class CoreResult:
    """The core evaluation of one SAE."""

    name: str
    """The SAE's name in `saes`."""
    metrics: dict[str, float]
    """Every metric by its name, SAEBench's groups flattened; those that could not be measured are absent."""
    features: dict[str, Tensor]
    """Statistics per feature [d_sae] by SAEBench's names; likewise."""
    warnings: list[str]
    """Reasons to doubt the numbers."""
    eval_config: dict[str, Any]
    """How they were measured, by SAEBench's names."""
    sae_cfg: dict[str, Any]
    """The SAE's `cfg.json`."""

    def flat(self) -> dict[str, float]:
        return self.metrics

    def to_json(self) -> dict[str, Any]:
        """SAEBench's JSON for this evaluation, with -1 for nan and null for metrics that were not measured."""
        unmeasured = [None] * self.sae_cfg["d_sae"]
        columns = [self.features[c].tolist() if c in self.features else unmeasured for c in FEATURE_COLUMNS]
        details = [
            {"index": index} | dict(zip(FEATURE_COLUMNS, map(rounded, row), strict=True))
            for index, row in enumerate(zip(*columns, strict=True))
        ]
        metrics = {group: {metric: self.metrics.get(metric) for metric in names} for group, names in GROUPS.items()}
        ours = {metric: self.metrics[metric] for metric in OURS if metric in self.metrics} | {"warnings": self.warnings}
        return envelope("core", self.eval_config, metrics, details, ours, self.name, self.sae_cfg)


def evaluate(saes: Mapping[str, ExportedSAE], shared: Shared, cfg: EvalConfig) -> dict[str, CoreResult]:
    """The core evaluation on held-out text, or on synthetic activations, where no model's loss can be measured."""
    if shared.world is not None:
        shared.begin("core", 1, "evaluation")
        results = evaluate_activations(saes, synthetic_activations(shared.world, cfg), cfg)
        return named(results, shared)
    tokens_NL = shared.contexts(cfg.batch_size * (cfg.recon_batches + cfg.sparsity_batches))
    shared.begin("core", len(tokens_NL), "context")
    return named(evaluate_core(saes, cfg, shared.lm, shared.layer, tokens_NL, shared.tick), shared)


def synthetic_activations(world: SyntheticWorld, cfg: EvalConfig) -> Iterator[Tensor]:
    """Held-out activations x_BD of a synthetic world, as many as `sparsity_batches` of contexts have tokens."""
    context = DataConfig().context
    source = SyntheticSource(world, context, "held_out", torch.float32)
    return (batch.x for batch in source.stream(0, cfg.sparsity_batches * cfg.batch_size * context))


def named(results: dict[str, CoreResult], shared: Shared) -> dict[str, CoreResult]:
    """The results with the name of the model that they were measured on, which may not be what an SAE's cfg names."""
    for result in results.values():
        result.eval_config["model_name"] = shared.model_name
    return results


def evaluate_core(
    saes: Mapping[str, ExportedSAE],
    cfg: EvalConfig,
    lm: LanguageModel,
    layer: LayerConfig,
    tokens_NL: Tensor,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, CoreResult]:
    """Evaluate SAEs of one hook on N held-out contexts of L tokens, all on the same batches.

    `progress` is called with the number of contexts done.

    The first `recon_batches` batches serve cross-entropy and KL divergence, the `sparsity_batches` after them the rest.
    Raises DataError where there are not two contexts.
    """
    recon_batches, sparsity_batches, warnings = split_batches(tokens_NL, cfg)
    limits = limits_of(saes, cfg)
    saes = {name: sae.to(lm.device) for name, sae in saes.items()}
    done = 0

    def counted(batches: list[Tensor]) -> Iterator[Tensor]:
        nonlocal done
        for tokens_SL in batches:
            yield tokens_SL
            done += len(tokens_SL)
            progress(done)

    preserved: dict[str, dict[str, float]] = {name: {} for name in saes}
    if cfg.compute_kl or cfg.compute_ce_loss:
        preserved = preservation(saes, lm, layer, counted(recon_batches), cfg.exclude_special_tokens, limits)
    batches = (plain_activations(lm, layer, tokens_SL) for tokens_SL in counted(sparsity_batches))
    stats = reconstruct(saes, batches, limits)

    batch_size, context = recon_batches[0].shape
    measured = {
        "llm_dtype": str(lm.dtype).removeprefix("torch."),
        "batch_size_prompts": batch_size,
        "n_eval_reconstruction_batches": len(recon_batches),
        "n_eval_sparsity_variance_batches": len(sparsity_batches),
        "context_size": context,
        "exclude_special_tokens_from_reconstruction": cfg.exclude_special_tokens,
    }
    token_stats = {
        "total_tokens_eval_reconstruction": len(recon_batches) * batch_size * context,
        "total_tokens_eval_sparsity_variance": len(sparsity_batches) * batch_size * context,
    }
    return {
        name: summary(name, sae, *stats[name], preserved[name] | token_stats, measured, warnings, cfg)
        for name, sae in saes.items()
    }


def evaluate_activations(
    saes: Mapping[str, ExportedSAE], activations: Iterable[Tensor], cfg: EvalConfig | None = None
) -> dict[str, CoreResult]:
    """The part of the core evaluation that needs no language model, on held-out batches x_BD of any size.

    Cross-entropy, KL divergence and numbers of contexts are absent from the metrics and null in the file.
    """
    cfg = cfg or EvalConfig()
    stats = reconstruct(saes, ((x_BD, None) for x_BD in activations), limits_of(saes, cfg))
    results = {}
    for name, sae in saes.items():
        recon, features = stats[name]
        measured = {"n_eval_reconstruction_batches": 0, "n_eval_sparsity_variance_batches": recon.n_batches}
        token_stats: dict[str, float] = {
            "total_tokens_eval_reconstruction": 0,
            "total_tokens_eval_sparsity_variance": features.n_tokens,
        }
        results[name] = summary(name, sae, recon, features, token_stats, measured, [], cfg)
    return results


def plain_activations(lm: LanguageModel, layer: LayerConfig, tokens_SL: Tensor) -> tuple[Tensor, Tensor]:
    """Activations x_nD of the n tokens that are not special, and how many of them each context has [S]."""
    tokens_SL = tokens_SL.to(lm.device)
    plain_SL = is_plain(tokens_SL, lm.special_ids)
    return lm.activations(tokens_SL, layer)[plain_SL], plain_SL.sum(1)


def limits_of(saes: Mapping[str, ExportedSAE], cfg: EvalConfig) -> dict[str, float | None]:
    """The norm beyond which each SAE's activations are left out: the one that it was trained under, or none."""
    return {name: sae.norm_limit if cfg.exclude_outliers else None for name, sae in saes.items()}


@torch.no_grad()
def reconstruct(
    saes: Mapping[str, ExportedSAE], batches: Iterable[Batch], limits: Mapping[str, float | None]
) -> dict[str, tuple[ReconstructionStats, FeatureStats]]:
    """Every SAE's statistics over the activations within its limit."""
    batches = iter(batches)
    first = list(first_batches(batches))
    means = {limit: mean_within((x_nD for x_nD, _ in first), limit) for limit in set(limits.values())} if first else {}
    stats = {}
    for name, sae in saes.items():
        mean_D = means[limits[name]] if first else torch.full((sae.d_in,), torch.nan, dtype=torch.float64)
        stats[name] = ReconstructionStats(sae, mean_D.to(sae.device)), FeatureStats(sae)
    for batch in chain(first, batches):
        for name, sae in saes.items():
            x_nD, length_S = within(batch, limits[name])
            x_nD = x_nD.to(sae.device)
            f = sae.features(x_nD)
            recon, features = stats[name]
            recon.add(x_nD, f, sae.decode(f))
            recon.n_left_out += len(batch[0]) - len(x_nD)
            features.add(f, length_S)
    return stats


def first_batches(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Those up to the one with which they hold MEAN_TOKENS tokens."""
    n = 0
    for batch in batches:
        yield batch
        n += len(batch[0])
        if n >= MEAN_TOKENS:
            return


def within(batch: Batch, norm_limit: float | None) -> Batch:
    """The activations whose norm is at most the limit."""
    x_nD, length_S = batch
    if norm_limit is None or bool((kept_n := norms_of(x_nD) <= norm_limit).all()):
        return batch
    if length_S is not None:
        context_n = torch.arange(len(length_S), device=length_S.device).repeat_interleave(length_S)
        length_S = context_n[kept_n].bincount(minlength=len(length_S))
    return x_nD[kept_n], length_S


def summary(
    name: str,
    sae: ExportedSAE,
    recon: ReconstructionStats,
    features: FeatureStats,
    metrics: dict[str, float],
    measured: dict[str, Any],
    warnings: list[str],
    cfg: EvalConfig,
) -> CoreResult:
    """One SAE's result from its statistics and, in `metrics` and `measured`, the numbers that need the model."""
    columns = features.columns() | weight_stats(sae)
    metrics = metrics | recon.metrics() | density_metrics(columns["feature_density"])
    if cfg.exclude_outliers and sae.norm_limit is not None:
        metrics["outlier_tokens"] = ratio(recon.n_left_out, recon.n_left_out + features.n_tokens)
    for side in ("encoder", "decoder"):
        metrics[f"average_max_{side}_cosine_sim"] = columns[f"max_{side}_cosine_sim"].mean().item()
    warnings = warnings + doubts(metrics, sae)
    with_model = "ce_loss_score" in metrics
    left_out = [pattern for flag, pattern in LEFT_OUT.items() if not getattr(cfg, flag)]

    def kept(name: str) -> bool:
        return not any(re.fullmatch(pattern, name) for pattern in left_out)

    metrics = {name: value for name, value in metrics.items() if kept(name)}
    columns = {name: column for name, column in columns.items() if kept(name)}
    eval_config = {
        "model_name": sae.model_name or "",
        "llm_dtype": "float32",
        "batch_size_prompts": None,
        "n_eval_reconstruction_batches": None,
        "n_eval_sparsity_variance_batches": None,
        "dataset": sae.metadata.get("dataset_path") or "",
        "context_size": None,
        **{flag: getattr(cfg, flag) for flag in LEFT_OUT},
        **({} if with_model else {"compute_kl": False, "compute_ce_loss": False}),
        "exclude_special_tokens_from_reconstruction": False,
        "verbose": False,
    }
    return CoreResult(name, metrics, columns, warnings, eval_config | measured, sae.cfg())


def doubts(metrics: dict[str, float], sae: ExportedSAE) -> list[str]:
    """Reasons to doubt an SAE's metrics, one clause each."""
    l0, dead = metrics["l0"], metrics["dead_features"]
    found = []
    if broken_weights := sae.nonfinite():
        found.append(f"not to be believed: the SAE's {' and '.join(broken_weights)} is not finite")
    if math.isnan(l0):
        found.append("nothing was measured: the held-out data has no tokens but special ones")
    if l0 == 0:
        found.append("the SAE is dead: L0 = 0, no feature fires on held-out data")
    elif dead > 0.5:
        found.append(f"{dead:.0%} of the features never fire on held-out data")
    if l0 > sae.d_in:
        found.append(f"L0 = {l0:.1f} is above d_in = {sae.d_in}: more features fire than the activation has dimensions")
    elif l0 > sae.d_sae / 10:
        found.append(f"L0 = {l0:.1f} is above a tenth of d_sae = {sae.d_sae}: not sparse")
    if l0 > 0 and metrics["fvu"] >= 1:
        found.append(f"fvu = {metrics['fvu']:.2f}: the mean activation would be a better reconstruction")
    broken = [metric for metric, value in metrics.items() if not math.isfinite(value)]
    if broken:
        found.append(f"not a finite number: {', '.join(broken)}")
    return found


def rounded(value: float | None) -> float | None:
    return value if value is None else round(value, 10)


EVALUATION = Evaluation(
    "core", evaluate, METRICS,
    reads=("batch_size", "recon_batches", "sparsity_batches", "exclude_special_tokens", "exclude_outliers", *LEFT_OUT),
    needs_model=False, finite_only=False,
)  # fmt: skip
