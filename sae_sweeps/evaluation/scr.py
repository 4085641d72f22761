"""Spurious correlation removal (Karvonen et al. 2024, arXiv:2411.18895), by SAEBench's definition.

A probe trained where the class goes along with a second attribute judges rows where it does not; ablating the n
features that matter most to the attribute's probe should bring its accuracy up to that of the class's own probe.
`scr_dir1` ablates the attribute and measures the class, `scr_dir2` the reverse; `scr_metric` is the one whose
biased accuracy was lower (absent on a tie).
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean

import torch

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import EvalConfig, Evaluation
from sae_sweeps.errors import DataError
from sae_sweeps.evaluation.ablation import logits_after, logits_of, mean_difference
from sae_sweeps.evaluation.draws import against, stream
from sae_sweeps.evaluation.probes import BinaryTask, Probes, accuracy
from sae_sweeps.evaluation.result import Result
from sae_sweeps.evaluation.selection import Draw, Fold, averaged, drawn, folds
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.evaluation.tasks import BIASED, BY_ATTRIBUTE, BY_CLASS, PAIRED, MissingRows, Pair, scr_pairs
from sae_sweeps.evaluation.tpp import (
    Accuracies,
    average,
    before_ablation,
    eval_config,
    few_steps,
    probes_of_model,
    too_small,
)

METRICS = {
    r"scr_metric_threshold_(\d+)": ("higher", r"scr\1"),
    r"scr_(dir\d)_threshold_(\d+)": (None, r"scr\2_\1"),
}


def evaluate_scr(saes: Mapping[str, ExportedSAE], shared: Shared, cfg: EvalConfig) -> dict[str, Result]:
    """SCR of SAEs of one hook. Raises DataError where the data have enough rows of no pair."""
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in saes}
    after: dict[str, dict[str, Accuracies]] = {name: {} for name in saes}
    measured: list[Pair] = []
    warnings: list[str] = []
    for pair in scr_pairs(shared.source, cfg):
        try:
            parts = pair_folds(shared, pair)
        except MissingRows as error:
            warnings.append(f"not measured: {str(error).rstrip('.')}")
            continue
        measured.append(pair)
        probes = probes_of_model(shared, pair, [fold.choosing for fold in parts])
        both = list(zip(parts, probes, strict=True))
        logits = [logits_of(made, shared.model_means(pair, "test")) for made in probes]
        clean = [all_accuracies(z_RC, fold.measured) for fold, z_RC in zip(parts, logits, strict=True)]
        choosing = [all_accuracies(z_RC, fold.choosing) for fold, z_RC in zip(parts, logits, strict=True)]
        for name, sae in shared.each("scr", saes):
            each = [scr_accuracies(sae, name, shared, pair, fold.measured, made) for fold, made in both]
            after[name][pair.name] = averaged(each)
            found[name][pair.name] = scr_metrics(each, clean, choosing)
    if not measured:
        raise DataError(f"scr: no pair of eval.ablation.pairs has enough rows ({warnings[0]}).")
    warnings += few_steps(parts, cfg)
    return {
        name: shared.result(
            "scr",
            name,
            sae,
            eval_config(cfg, shared, True, [], measured),
            {"scr_metrics": average(list(found[name].values()))},
            details=[{"dataset_name": f"{pair}_results", **metrics} for pair, metrics in found[name].items()],
            warnings=too_small(sae, cfg) + untied(found[name]) + warnings,
            more={"accuracies": after[name]},
        )  # fmt: skip
        for name, sae in saes.items()
    }


def untied(found: dict[str, dict[str, float]]) -> list[str]:
    """A warning where the two directions of a pair tie, so that its scr_metric is missing from the mean."""
    tied = [pair for pair, metrics in found.items() if not any(name.startswith("scr_metric") for name in metrics)]
    return [f"no scr_metric for {', '.join(tied)}: both directions start from the same accuracy"] if tied else []


def pair_draw(shared: Shared, pair: Pair) -> Draw:
    """Each of the three classes against its partner."""
    seed = shared.cfg.seed
    return lambda n_by_class, label, part: against(
        n_by_class, label, PAIRED[label], stream(seed, "rows", pair.name, label, part)
    )


def pair_draws(shared: Shared, pair: Pair) -> dict[str, BinaryTask]:
    """The rows of the three binary tasks; the same ones for every SAE and number of features."""
    train, test = (shared.rows(pair, split).n_by_class for split in ("train", "test"))
    return drawn(PAIRED, train, test, pair_draw(shared, pair))


def pair_folds(shared: Shared, pair: Pair) -> list[Fold]:
    """The tasks of `pair_draws` with rows that choose and rows that measure."""
    rows, draw = shared.rows(pair, "test"), pair_draw(shared, pair)
    return folds(pair_draws(shared, pair), rows, shared.cfg.selection, draw)


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


def scr_metrics(
    found: list[Accuracies], clean: list[dict[str, float]], choosing: list[dict[str, float]]
) -> dict[str, float]:
    """Scores of a pair: (changed - original) / (clean - original), 0 where there is nothing to gain.

    Numerator and denominator are means over folds of the accuracies after ablation and without; for scr_metric each
    fold takes the direction whose original accuracy is lower on the rows that choose (none on a tie).
    """
    directions = ((BY_ATTRIBUTE, BY_CLASS), (BY_CLASS, BY_ATTRIBUTE))

    def original(accuracies: dict[str, float], data: str) -> float:
        return accuracies[f"{BIASED} probe on {data} data"]

    def score(n: int, by_fold: list[int | None]) -> float:
        gained, possible = [], []
        for after, before, direction in zip(found, clean, by_fold, strict=True):
            if direction is not None:
                ablated, data = directions[direction]
                gained.append(original(after[ablated][n], data) - original(before, data))
                possible.append(before[data] - original(before, data))
        return 0.0 if mean(possible) < 0.001 else mean(gained) / mean(possible)

    chosen: list[int | None] = []
    for accuracies in choosing:
        starts = [original(accuracies, data) for _, data in directions]
        chosen.append(None if starts[0] == starts[1] else starts.index(min(starts)))
    out = {}
    for n in found[0][BY_CLASS]:
        for direction in range(len(directions)):
            out[f"scr_dir{direction + 1}_threshold_{n}"] = score(n, [direction] * len(found))
        if any(direction is not None for direction in chosen):
            out[f"scr_metric_threshold_{n}"] = score(n, chosen)
    return out


EVALUATION = Evaluation(
    "scr", evaluate_scr, METRICS, reads=("data", "seed", "selection", "probing", "ablation"), version=2
)
