"""Sparse probing by SAEBench's definition: how well one, two or five features predict a class.

Features are averaged over each row. For each class of each data set a balanced binary task is drawn; a probe sees the k
features whose means differ most, or all features. The mean over classes, then over data sets, is the metric. The `llm_`
metrics are those of the language model's own activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import EvalConfig, Evaluation
from sae_sweeps.evaluation.draws import stream
from sae_sweeps.evaluation.probes import (
    BinaryTask,
    accuracy,
    logits_at,
    most_different,
    sparse_probe_accuracy,
    train_probes,
    unconverged,
)
from sae_sweeps.evaluation.result import Result
from sae_sweeps.evaluation.selection import Fold, averaged
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.evaluation.tasks import probing_sets
from sae_sweeps.evaluation.tpp import average, rest_draws, rest_folds, rows_at_once

METRICS = {
    "sae_test_accuracy": ("higher", "sae_all"),
    "llm_test_accuracy": (None, "llm_all"),
    r"sae_top_(\d+)_test_accuracy": ("higher", r"top\1"),
    r"llm_top_(\d+)_test_accuracy": (None, r"llm_top\1"),
}

NAMED_K = (1, 2, 5, 10, 20, 50, 100)
"""The numbers of features that SAEBench's file has places for."""

PerClass = dict[str, dict[str, float]]
"""Accuracy by metric and class."""


def evaluate_sparse_probing(saes: Mapping[str, ExportedSAE], shared: Shared, cfg: EvalConfig) -> dict[str, Result]:
    """Sparse probing of SAEs of one hook."""
    datasets = probing_sets(shared.source, cfg)
    found: dict[str, dict[str, PerClass]] = {name: {} for name in saes}
    fewest = cfg.probing.train_rows
    for dataset in datasets:
        draws, parts = rest_draws(shared, dataset), rest_folds(shared, dataset)
        fewest = min(fewest, *(len(task.train_rows) for task in draws.values()))
        of_model = model_accuracies(shared, dataset, draws, parts)
        for name, sae in shared.each("sparse probing", saes):
            train_RF, test_RF = (shared.features(name, sae, dataset, split) for split in ("train", "test"))
            of_sae = accuracies("sae", train_RF, test_RF, draws, parts, shared, dataset)
            found[name][dataset] = of_sae | of_model
    own = cfg.probing
    why = own.all_features and unconverged(fewest, own.probe_batch, [own.probe_lr] * own.probe_epochs)
    slow = [f"{why}; raise eval.probing.probe_epochs or lower eval.probing.probe_batch"] if why else []
    return {name: result(name, sae, shared, found[name], slow) for name, sae in saes.items()}


def accuracies(
    side: str,
    train_RD: Tensor,
    test_RD: Tensor,
    draws: dict[str, BinaryTask],
    parts: list[Fold],
    shared: Shared,
    dataset: str,
) -> PerClass:
    """Accuracies of all probes on one data set; `side` is llm or sae."""
    cfg = shared.cfg
    out: PerClass = {}
    if cfg.probing.all_features or side == "llm":
        best = train_probes(
            train_RD,
            test_RD,
            [list(fold.choosing.values()) for fold in parts],
            [stream(cfg.seed, "probe", dataset, label) for label in draws],
            batch_size=cfg.probing.probe_batch,
            epochs=cfg.probing.probe_epochs,
            lr=cfg.probing.probe_lr,
            patience=cfg.probing.probe_patience,
        )
        out[f"{side}_test_accuracy"] = averaged(
            [
                {
                    label: accuracy(logits_at(test_RD, task.test_rows, *probe), task.test_labels)
                    for (label, task), *probe in zip(fold.measured.items(), p.weight_CD, p.bias_C, strict=True)
                }
                for fold, p in zip(parts, best, strict=True)
            ]
        )
    ranked_Ck = most_different(train_RD, list(draws.values()), max(cfg.probing.k_values))
    for (label, task), ranked in zip(draws.items(), ranked_Ck, strict=True):
        for k in cfg.probing.k_values:
            score = sparse_probe_accuracy(train_RD, test_RD, task, ranked[:k])
            out.setdefault(f"{side}_top_{k}_test_accuracy", {})[label] = score
    return out


def model_accuracies(shared: Shared, dataset: str, draws: dict[str, BinaryTask], parts: list[Fold]) -> PerClass:
    """The language model's own accuracies, computed once."""
    names = ["llm_test_accuracy", *(f"llm_top_{k}_test_accuracy" for k in shared.cfg.probing.k_values)]

    def make() -> dict[str, Tensor]:
        train_RD, test_RD = (shared.model_means(dataset, split) for split in ("train", "test"))
        made = accuracies("llm", train_RD, test_RD, draws, parts, shared, dataset)
        return {name: torch.tensor(list(made[name].values()), dtype=torch.float64) for name in names}

    cfg = shared.cfg.probing
    how = [cfg.probe_epochs, cfg.probe_batch, cfg.probe_lr, cfg.probe_patience, shared.cfg.selection]
    key = shared.rows_key(dataset) | {"what": "model probes", "k": cfg.k_values, "how": how}
    kept = shared.kept(key, make)
    return {name: dict(zip(draws, kept[name].tolist(), strict=True)) for name in names}


def result(name: str, sae: ExportedSAE, shared: Shared, found: dict[str, PerClass], warnings: list[str]) -> Result:
    per_dataset = {
        dataset: {metric: mean(by_class.values()) for metric, by_class in metrics.items()}
        for dataset, metrics in found.items()
    }
    overall: dict[str, Any] = average(list(per_dataset.values()))
    names = {
        side: [f"{side}_test_accuracy", *(f"{side}_top_{k}_test_accuracy" for k in NAMED_K)] for side in ("llm", "sae")
    }
    all_names = [metric for side in names for metric in names[side]]
    others = {metric: value for metric, value in overall.items() if metric not in all_names}
    if not shared.cfg.probing.all_features:  # what SAEBench writes where it leaves the probe out
        per_dataset = {dataset: {"sae_test_accuracy": -1.0, **metrics} for dataset, metrics in per_dataset.items()}
    return shared.result(
        "sparse_probing",
        name,
        sae,
        eval_config(shared.cfg, shared, list(found)),
        {side: {metric: overall.get(metric) for metric in names[side]} for side in names},
        details=[
            {"dataset_name": f"{dataset}_results"} | {metric: metrics.get(metric) for metric in all_names}
            for dataset, metrics in per_dataset.items()
        ],
        unstructured={f"{dataset}_results": metrics for dataset, metrics in found.items()},
        warnings=doubts(sae, shared, found) + warnings,
        also=others,
    )


def doubts(sae: ExportedSAE, shared: Shared, found: dict[str, PerClass]) -> list[str]:
    """Warnings about k_values beyond d_sae and about probes at chance."""
    k_values = shared.cfg.probing.k_values
    blind = [
        f"{dataset} {label}"
        for dataset, metrics in found.items()
        for label in metrics[f"sae_top_{k_values[0]}_test_accuracy"]
        if all(metrics[f"sae_top_{k}_test_accuracy"][label] == 0.5 for k in k_values)
    ]
    out = [f"k_values beyond d_sae = {sae.d_sae} use all features"] if max(k_values) > sae.d_sae else []
    if blind:
        out.append(f"every sparse probe is at chance (0.5) for {', '.join(blind)}: no feature distinguishes them")
    return out


def eval_config(cfg: EvalConfig, shared: Shared, datasets: list[str]) -> dict[str, Any]:
    """By SAEBench's names."""
    return {
        "random_seed": cfg.seed,
        "dataset_names": datasets,
        "probe_train_set_size": cfg.probing.train_rows,
        "probe_test_set_size": cfg.probing.test_rows,
        "context_length": cfg.probing.context,
        "sae_batch_size": rows_at_once(cfg),
        "llm_batch_size": cfg.llm_batch,
        "llm_dtype": shared.llm_dtype,
        "model_name": shared.model_name,
        "k_values": cfg.probing.k_values,
        "lower_vram_usage": not cfg.probing.all_features,
    }


EVALUATION = Evaluation(
    "sparse_probing", evaluate_sparse_probing, METRICS, reads=("data", "seed", "selection", "probing"),
    version=2,
)  # fmt: skip
