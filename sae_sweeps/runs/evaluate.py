"""The evaluations of a run: `evals/NAME.json`, and beside it a summary with flat metrics, settings and warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sae_sweeps.activations.harvest import SyntheticSource
from sae_sweeps.activations.synthetic import SyntheticWorld
from sae_sweeps.config.run import RunConfig
from sae_sweeps.config.schema import DataConfig, SyntheticConfig
from sae_sweeps.evaluation.composition import composition
from sae_sweeps.evaluation.geometry import decoder_geometry
from sae_sweeps.evaluation.labels import label_separation
from sae_sweeps.evaluation.recovery import recovery
from sae_sweeps.files import read_json, write_json
from sae_sweeps.runs.bench import Bench, evenly, held_out_pool
from sae_sweeps.runs.export import trained_sae
from sae_sweeps.runs.folder import RunFolder
from sae_sweeps.saelens import ExportedSAE

SUMMARY = ".summary.json"
"""Beside SAEBench's `evals/core.json`: `evals/core.summary.json`."""

SETTINGS = {
    "core": ("name", "batch_size", "recon_batches", "sparsity_batches", "exclude_special_tokens"),
    "separation": ("composition", "label_tokens"),
}
"""Which keys of `eval` each evaluation depends on."""

HELD_OUT_SPREAD = 16
"""Held-out tokens are taken evenly from this many times as many, so that they come from more than one document."""
LABEL_SPREAD = 32
"""The same for tokens with labels: a label may be rare."""
HELD_OUT_PART = 1024
"""Tokens encoded at once, as many as in a step."""


def settings_of(run: RunConfig, name: str) -> dict[str, Any]:
    return {key: getattr(run.eval, key) for key in SETTINGS[name]}


def wanted(run: RunConfig) -> list[str]:
    """The evaluations that the config asks for."""
    if run.eval.name == "none":
        return []
    return ["core", *(["separation"] if run.eval.separation else [])]


def is_done(run: RunConfig, folder: RunFolder, name: str) -> bool:
    """Whether `evals/` holds this evaluation, made by the same settings."""
    path = folder.evals / f"{name}{SUMMARY}"
    return path.exists() and read_json(path)["settings"] == settings_of(run, name)


def is_evaluated(run: RunConfig, folder: RunFolder) -> bool:
    return all(is_done(run, folder, name) for name in wanted(run))


def evaluate_run(run: RunConfig, folder: RunFolder, bench: Bench, cache: Path) -> None:
    """Do what is asked for and not done yet, on the exported SAE."""
    left = [name for name in wanted(run) if not is_done(run, folder, name)]
    if not left:
        return
    sae = trained_sae(run, folder)
    bench.progress.stage("evaluate", len(left), "evaluation")
    if "core" in left:
        evaluate_core_of(run, folder, bench, sae)
    if "separation" in left:
        summarise(run, folder, "separation", separation(run, bench, cache, sae), [])


def summarise(run: RunConfig, folder: RunFolder, name: str, metrics: dict[str, Any], warnings: list[str]) -> None:
    summary = {"settings": settings_of(run, name), "metrics": metrics, "warnings": warnings}
    write_json(folder.evals / f"{name}{SUMMARY}", summary)


def evaluate_core_of(run: RunConfig, folder: RunFolder, bench: Bench, sae: ExportedSAE) -> None:
    """SAEBench's core evaluation: `evals/core.json`."""
    from sae_sweeps.evaluation.core import evaluate_activations, evaluate_core, write_core

    if isinstance(run.model, SyntheticConfig):
        n_tokens = run.eval.sparsity_batches * run.eval.batch_size * DataConfig().context
        world = SyntheticSource(SyntheticWorld(run.model), DataConfig().context, "held_out", torch.float32)
        result = evaluate_activations({"sae": sae}, (batch.x for batch in world.stream(0, n_tokens)))["sae"]
    else:
        lm, tokens_NL = bench.held_out(run)
        result = evaluate_core({"sae": sae}, run.eval, lm, run.layer, tokens_NL)["sae"]
    write_core(result, folder.path)
    summarise(run, folder, "core", result.metrics, result.warnings)


def separation(run: RunConfig, bench: Bench, cache: Path, sae: ExportedSAE) -> dict[str, float]:
    """How separate the features are: geometry of the decoder, recovery of true features, labels, composition."""
    W_dec = sae.weights["W_dec"].to(bench.device)
    metrics = decoder_geometry(W_dec)
    if isinstance(run.model, SyntheticConfig):
        world = SyntheticWorld(run.model)
        metrics |= recovery(W_dec, world.features_FD, world.kind, world.parent_F)
    elif run.data.has_roles():
        metrics |= labels_of(run, bench, cache, sae)
    if run.eval.composition:
        metrics |= composition(W_dec)
    return metrics


@torch.no_grad()
def labels_of(run: RunConfig, bench: Bench, cache: Path, sae: ExportedSAE) -> dict[str, float]:
    """nmi and silhouette on about `eval.label_tokens` held-out tokens, as many of each role where there are so many."""
    pool = held_out_pool(run, bench, cache, run.eval.label_tokens * LABEL_SPREAD)
    roles = pool.role.unique().tolist()
    share = run.eval.label_tokens // len(roles)
    rows = [(pool.role == role).nonzero()[:, 0] for role in roles]
    chosen = torch.cat([found[evenly(share, len(found))] for found in rows]).sort().values
    batch = pool[chosen]
    f_BF = torch.cat([sae.encode(part.float()) for part in batch.x.split(HELD_OUT_PART)])
    return label_separation(f_BF, batch.role, max_tokens=run.eval.label_tokens)


def held_out_activations(run: RunConfig, bench: Bench, cache: Path) -> torch.Tensor | None:
    """`train.held_out_tokens` held-out activations [n, d_in] that are the same for every run, or None where 0."""
    n_tokens = run.train.held_out_tokens
    if n_tokens == 0:
        return None
    pool = held_out_pool(run, bench, cache, n_tokens * HELD_OUT_SPREAD)
    return pool.x[evenly(n_tokens, len(pool))].float().to(bench.device)


@torch.no_grad()
def held_out_fvu(sae: ExportedSAE, x: torch.Tensor) -> float:
    """Fraction of the variance of x [n, d_in] that the SAE leaves unexplained."""
    error = sum((sae.decode(sae.encode(part)) - part).square().sum() for part in x.split(HELD_OUT_PART))
    return float(error / (x - x.mean(0)).square().sum())
