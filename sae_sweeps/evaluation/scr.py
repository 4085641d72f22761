"""Spurious correlation removal (Karvonen et al. 2024, arXiv:2411.18895), by SAEBench's definition.

A probe trained where the class goes along with a second attribute judges rows where it does not; ablating the n
features that matter most to the attribute's probe should bring its accuracy up to that of the class's own probe.
`scr_dir1` ablates the attribute and measures the class, `scr_dir2` the reverse; `scr_metric` is the one whose
biased accuracy was lower (absent on a tie).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import EvalConfig, Evaluation
from sae_sweeps.evaluation.ablation import logits_after, logits_of, mean_difference
from sae_sweeps.evaluation.draws import against, stream
from sae_sweeps.evaluation.probes import BinaryTask, Probes, accuracy
from sae_sweeps.evaluation.result import Result
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.evaluation.tasks import BIASED, BY_ATTRIBUTE, BY_CLASS, PAIRED, Pair
from sae_sweeps.evaluation.tpp import Accuracies, average, before_ablation, eval_config, probes_of_model, too_small

METRICS = {
    r"scr_metric_threshold_(\d+)": ("higher", r"scr\1"),
    r"scr_(dir\d)_threshold_(\d+)": (None, r"scr\2_\1"),
}


def evaluate_scr(saes: Mapping[str, ExportedSAE], shared: Shared, cfg: EvalConfig) -> dict[str, Result]:
    """SCR of SAEs of one hook."""
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in saes}
    after: dict[str, dict[str, Accuracies]] = {name: {} for name in saes}
    for pair in shared.source.pairs:
        draws = pair_draws(shared, pair)
        probes, clean = pair_probes(shared, pair, draws)
        for name, sae in shared.each("scr", saes):
            after[name][pair.name] = scr_accuracies(sae, name, shared, pair, draws, probes)
            found[name][pair.name] = scr_metrics(after[name][pair.name], clean)
    return {
        name: shared.result(
            "scr",
            name,
            sae,
            eval_config(cfg, shared, perform_scr=True),
            {"scr_metrics": average(list(found[name].values()))},
            details=[{"dataset_name": f"{pair}_results", **metrics} for pair, metrics in found[name].items()],
            warnings=too_small(sae, cfg) + untied(found[name]),
            more={"accuracies": after[name]},
        )  # fmt: skip
        for name, sae in saes.items()
    }


def untied(found: dict[str, dict[str, float]]) -> list[str]:
    """A warning where the two directions of a pair tie, so that its scr_metric is missing from the mean."""
    tied = [pair for pair, metrics in found.items() if not any(name.startswith("scr_metric") for name in metrics)]
    return [f"no scr_metric for {', '.join(tied)}: both directions start from the same accuracy"] if tied else []


def pair_draws(shared: Shared, pair: Pair) -> dict[str, BinaryTask]:
    """Each of the six classes against its partner; the same rows for every SAE and number of features."""
    sizes = {split: shared.rows(pair, split).n_by_class for split in ("train", "test")}
    partner = PAIRED | {other: one for one, other in PAIRED.items()}
    out = {}
    for label in sizes["train"]:
        train, test = (
            against(sizes[split], label, partner[label], stream(shared.cfg.seed, "rows", pair.name, label, split))
            for split in ("train", "test")
        )
        out[label] = BinaryTask(*train, *test)
    return out


def pair_probes(shared: Shared, pair: Pair, draws: dict[str, BinaryTask]) -> tuple[Probes, dict[str, float]]:
    """The model's probes of the three tasks, and every clean accuracy."""
    probes = probes_of_model(shared, pair, {label: draws[label] for label in PAIRED})
    return probes, all_accuracies(logits_of(probes, shared.model_means(pair, "test")), draws)


def all_accuracies(logits_RC: torch.Tensor, draws: dict[str, BinaryTask]) -> dict[str, float]:
    """Of each probe on its own task, and on the rows of the other two: SAEBench's names."""
    out = {}
    for data in PAIRED:
        task = draws[data]
        for i, probe in enumerate(PAIRED):
            name = data if probe == data else f"{probe} probe on {data} data"
            out[name] = accuracy(logits_RC[task.test_rows, i].cpu(), task.test_labels)
    return out


def scr_accuracies(
    sae: ExportedSAE, name: str, shared: Shared, pair: Pair, draws: dict[str, BinaryTask], probes: Probes
) -> Accuracies:
    """Every accuracy after ablating the n features that matter most to each probe."""
    train_RF, test_RF, base_RC, dot_FC = before_ablation(sae, name, shared, pair, probes)
    n_values = shared.cfg.ablation.n_values
    out: Accuracies = {}
    for c, label in enumerate(PAIRED):
        task = draws[label]
        effects_F = (mean_difference(train_RF, task.train_rows, task.train_labels) * dot_FC[:, c]).abs()
        after = logits_after(base_RC, test_RF, effects_F, dot_FC, n_values)
        out[label] = {n: all_accuracies(after[n], draws) for n in n_values}
    return out


def scr_metrics(found: Accuracies, clean: dict[str, float]) -> dict[str, float]:
    """Scores of a pair: (changed - original) / (clean - original), 0 where there is nothing to gain."""
    original = {data: clean[f"{BIASED} probe on {data} data"] for data in (BY_CLASS, BY_ATTRIBUTE)}
    lower = min(original.values())
    metric_dirs = [n for n, start in enumerate(original.values(), 1) if start == lower]
    out = {}
    for direction, (ablated, data) in enumerate(((BY_ATTRIBUTE, BY_CLASS), (BY_CLASS, BY_ATTRIBUTE)), 1):
        for n, after in found[ablated].items():
            gain = clean[data] - original[data]
            changed = after[f"{BIASED} probe on {data} data"] - original[data]
            score = 0.0 if gain < 0.001 else changed / gain
            out[f"scr_dir{direction}_threshold_{n}"] = score
            if metric_dirs == [direction]:
                out[f"scr_metric_threshold_{n}"] = score
    return out


EVALUATION = Evaluation("scr", evaluate_scr, METRICS, reads=("data", "seed", "probing", "ablation"))
