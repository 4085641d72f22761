"""Targeted probe perturbation (Karvonen et al. 2024, arXiv:2411.18895), by SAEBench's definition.

For each class, ablate the n features that matter most to its probe: its accuracy should fall (intended), that of the
other classes' probes should not (unintended). `tpp_threshold_n_total_metric` is intended less unintended, averaged over
classes, then data sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import EvalConfig, Evaluation
from sae_sweeps.evaluation.ablation import logits_after, logits_of, mean_difference
from sae_sweeps.evaluation.draws import against_the_rest, stream
from sae_sweeps.evaluation.probes import BinaryTask, Probes, accuracy, train_probes, unconverged
from sae_sweeps.evaluation.result import Result
from sae_sweeps.evaluation.selection import Draw, Fold, averaged, drawn, folds
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.evaluation.tasks import Pair, tpp_sets

METRICS = {
    r"tpp_threshold_(\d+)_total_metric": ("higher", r"tpp\1"),
    r"tpp_threshold_(\d+)_intended_diff_only": (None, r"tpp\1_intended"),
    r"tpp_threshold_(\d+)_unintended_diff_only": (None, r"tpp\1_unintended"),
}

Accuracies = dict[str, dict[int, dict[str, float]]]
"""Of the probe of a class (last key) when n features of a class (first key) are ablated."""


def evaluate_tpp(saes: Mapping[str, ExportedSAE], shared: Shared, cfg: EvalConfig) -> dict[str, Result]:
    """TPP of SAEs of one hook."""
    datasets = tpp_sets(shared.source, cfg)
    found: dict[str, dict[str, Any]] = {name: {} for name in saes}
    after: dict[str, dict[str, Accuracies]] = {name: {} for name in saes}
    for dataset in datasets:
        parts = rest_folds(shared, dataset, redrawn=True)
        probes = probes_of_model(shared, dataset, [fold.choosing for fold in parts])
        both = list(zip(parts, probes, strict=True))
        clean = averaged([clean_accuracies(shared, dataset, fold.measured, made) for fold, made in both])
        for name, sae in shared.each("tpp", saes):
            after[name][dataset] = averaged(
                [accuracies(sae, name, shared, dataset, fold.measured, made) for fold, made in both]
            )
            found[name][dataset] = tpp_metrics(after[name][dataset], clean)
    return {
        name: shared.result(
            "tpp",
            name,
            sae,
            eval_config(cfg, shared, False, list(datasets), []),
            {"tpp_metrics": average([overall for overall, _ in found[name].values()])},
            details=[{"dataset_name": f"{dataset}_tpp_results", **found[name][dataset][0]} for dataset in datasets],
            unstructured={dataset: found[name][dataset][1] for dataset in datasets},
            warnings=too_small(sae, cfg) + few_steps(parts, cfg),
            more={"accuracies": after[name]},
        )  # fmt: skip
        for name, sae in saes.items()
    }


def rest_draw(shared: Shared, dataset: str) -> Draw:
    """Each class against the others."""
    seed = shared.cfg.seed
    return lambda n_by_class, label, part: against_the_rest(
        n_by_class, label, stream(seed, "rows", dataset, label, part)
    )


def rest_draws(shared: Shared, dataset: str) -> dict[str, BinaryTask]:
    """The rows of each class's binary task; the same ones for every SAE, number of features and probe."""
    train, test = (shared.rows(dataset, split).n_by_class for split in ("train", "test"))
    return drawn(train, train, test, rest_draw(shared, dataset))


def rest_folds(shared: Shared, dataset: str, redrawn: bool = False) -> list[Fold]:
    """The tasks of `rest_draws` with rows that choose and rows that measure."""
    rows, draw = shared.rows(dataset, "test"), rest_draw(shared, dataset)
    return folds(rest_draws(shared, dataset), rows, shared.cfg.selection, draw, redrawn)


def clean_accuracies(shared: Shared, dataset: str, draws: dict[str, BinaryTask], probes: Probes) -> dict[str, float]:
    """Test accuracy of each class's probe on the model's own mean activations."""
    logits_RC = logits_of(probes, shared.model_means(dataset, "test"))
    return {
        label: accuracy(logits_RC[task.test_rows, c].cpu(), task.test_labels)
        for c, (label, task) in enumerate(draws.items())
    }


def probes_of_model(shared: Shared, data: str | Pair, choosing: list[dict[str, BinaryTask]]) -> list[Probes]:
    """SAEBench's probes for TPP and SCR, made once: small batches, L1 on the weights, the best epoch by each choice."""
    cfg, name = shared.cfg.ablation, data.name if isinstance(data, Pair) else data
    labels = list(choosing[0])

    def make() -> dict[str, Tensor]:
        made = train_probes(
            shared.model_means(data, "train"),
            shared.model_means(data, "test"),
            [list(tasks.values()) for tasks in choosing],
            [stream(shared.cfg.seed, "ablation probe", name, label) for label in labels],
            batch_size=cfg.probe_batch,
            epochs=cfg.probe_epochs,
            lr=cfg.probe_lr,
            l1=cfg.probe_l1,
            patience=cfg.probe_patience,
        )
        stacked = {"weight": [p.weight_CD for p in made], "bias": [p.bias_C for p in made]}
        return {key: torch.stack(parts) for key, parts in stacked.items()} | {
            "accuracy": torch.stack([p.accuracy_C for p in made])
        }

    how = [cfg.probe_batch, cfg.probe_epochs, cfg.probe_lr, cfg.probe_l1, cfg.probe_patience, shared.cfg.selection]
    kept = shared.kept(shared.rows_key(data) | {"what": "ablation probes", "how": how}, make)
    return [Probes(*one) for one in zip(kept["weight"], kept["bias"], kept["accuracy"], strict=True)]


def before_ablation(
    sae: ExportedSAE, name: str, shared: Shared, data: str | Pair, probes: Probes
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train and test features [R, d_sae], logits as they are [R, C], and W_dec_j . w_c [d_sae, C]."""
    train_RF, test_RF = shared.features(name, sae, data, "train"), shared.ablated_features(name, sae, data)
    W_dec = sae.weights["W_dec"].float()
    base_RC = logits_of(probes, shared.model_means(data, "test"))
    return train_RF, test_RF, base_RC, W_dec @ probes.weight_CD.T.to(W_dec)


def accuracies(
    sae: ExportedSAE, name: str, shared: Shared, dataset: str, draws: dict[str, BinaryTask], probes: Probes
) -> Accuracies:
    """Every probe's accuracy after every ablation."""
    train_RF, test_RF, base_RC, dot_FC = before_ablation(sae, name, shared, dataset, probes)
    n_values = shared.cfg.ablation.n_values
    out: Accuracies = {}
    for c, (ablated, task) in enumerate(draws.items()):
        difference_F = mean_difference(train_RF, task.train_rows, task.train_labels)
        effects_F = difference_F.clamp(min=0) * dot_FC[:, c]
        after = logits_after(base_RC, test_RF, effects_F, dot_FC, n_values)
        out[ablated] = {
            n: {
                label: accuracy(after[n][other.test_rows, i].cpu(), other.test_labels)
                for i, (label, other) in enumerate(draws.items())
            }
            for n in n_values
        }
    return out


def tpp_metrics(found: Accuracies, clean: dict[str, float]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The metrics of a data set, averaged over its classes and per class."""
    per_class: dict[str, dict[str, float]] = {}
    for label, by_n in found.items():
        per_class[label] = {}
        for n, after in by_n.items():
            intended = clean[label] - after[label]
            unintended = mean(clean[other] - after[other] for other in clean if other != label)
            per_class[label] |= {
                f"tpp_threshold_{n}_total_metric": intended - unintended,
                f"tpp_threshold_{n}_intended_diff_only": intended,
                f"tpp_threshold_{n}_unintended_diff_only": unintended,
            }
    return average(list(per_class.values())), per_class


def average(parts: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the parts that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: mean(part[name] for part in parts if name in part) for name in names}


def too_small(sae: ExportedSAE, cfg: EvalConfig) -> list[str]:
    """A warning where more features are to be ablated than there are."""
    beyond = [n for n in cfg.ablation.n_values if n > sae.d_sae]
    if not beyond:
        return []
    return [f"n_values {', '.join(map(str, beyond))} exceed d_sae = {sae.d_sae}: all features were ablated there"]


def few_steps(parts: list[Fold], cfg: EvalConfig) -> list[str]:
    """A warning where the probes of the last data set take too few steps to converge."""
    n_rows, own = len(next(iter(parts[0].choosing.values())).train_rows), cfg.ablation
    why = unconverged(n_rows, own.probe_batch, [own.probe_lr] * own.probe_epochs)
    return [f"{why}; raise eval.ablation.probe_epochs or lower eval.ablation.probe_batch"] if why else []


def eval_config(
    cfg: EvalConfig, shared: Shared, perform_scr: bool, datasets: list[str], pairs: Sequence[Pair]
) -> dict[str, Any]:
    """By SAEBench's names."""
    lookup: dict[str, list[list[str]]] = {}
    for pair in pairs:
        lookup.setdefault(pair.dataset, []).append(list(pair.classes))
    sizes = cfg.ablation if perform_scr else cfg.probing
    return {
        "random_seed": cfg.seed,
        "dataset_names": datasets or list(lookup),
        "perform_scr": perform_scr,
        "early_stopping_patience": cfg.ablation.probe_patience,
        "train_set_size": sizes.train_rows,
        "test_set_size": sizes.test_rows,
        "context_length": cfg.probing.context,
        "probe_train_batch_size": cfg.ablation.probe_batch,
        "probe_test_batch_size": 500,
        "probe_epochs": cfg.ablation.probe_epochs,
        "probe_lr": cfg.ablation.probe_lr,
        "probe_l1_penalty": cfg.ablation.probe_l1,
        "sae_batch_size": rows_at_once(cfg),
        "llm_batch_size": cfg.llm_batch,
        "llm_dtype": shared.llm_dtype,
        "lower_vram_usage": False,
        "model_name": shared.model_name,
        "n_values": cfg.ablation.n_values,
        "column1_vals_lookup": lookup,
    }


def rows_at_once(cfg: EvalConfig) -> int:
    """SAEBench's sae_batch_size: rows that an SAE encodes at once."""
    return max(1, cfg.sae_batch // cfg.probing.context)


EVALUATION = Evaluation(
    "tpp", evaluate_tpp, METRICS, reads=("data", "seed", "selection", "probing", "ablation"),
    version=2,
)  # fmt: skip
