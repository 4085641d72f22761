"""Sparse probing of a hierarchy with k-fold cross-validation, for the adaptive-sharing study.

`hierarchy_coarse_top_k_accuracy`: each coarse class against the others; `hierarchy_fine_top_k_accuracy`: each fine
class against the others inside its coarse class. Tasks are balanced, probes are those of sparse probing, and every row
is in the test part of one of the folds; the mean over classes, then over folds, is the metric, `_std` its sample
standard deviation over folds. `hierarchy_llm_...` are the language model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean, stdev

import torch
from torch import Tensor

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import Evaluation, HierarchyConfig
from sae_sweeps.evaluation.draws import against_the_rest, stream
from sae_sweeps.evaluation.probes import BinaryTask, most_different, sparse_probe_accuracy
from sae_sweeps.evaluation.result import Result
from sae_sweeps.evaluation.rows import mean_activations, mean_features
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.evaluation.tasks import hierarchies

METRICS = {
    "hierarchy_(coarse|fine)_.*_accuracy": ("higher", None),
    "hierarchy_(coarse|fine)_.*_std": (None, None),
    "hierarchy_llm_(coarse|fine)_.*": (None, None),
}

SEPARATOR = "\t"
"""Between the coarse and the fine class in a row's label."""

Scores = dict[str, list[float]]
"""A metric's value in each fold."""


def evaluate_hierarchy(saes: Mapping[str, ExportedSAE], shared: Shared, cfg: HierarchyConfig) -> dict[str, Result]:
    """Coarse and fine sparse probing of SAEs of one hook, on every hierarchy of the source."""
    found: dict[str, dict[str, Scores]] = {name: {} for name in saes}
    of_model: dict[str, Scores] = {}
    datasets = hierarchies(shared.source, shared.cfg)
    for data in datasets:
        rows = shared.hierarchy_rows(data)
        folds = list(tasks(rows.n_by_class, cfg.folds, shared.cfg.seed, rows.text_R))
        of_model[data] = cross_validated(mean_activations(rows, shared.device), folds, cfg)
        for name, sae in shared.each("hierarchy", saes):
            found[name][data] = cross_validated(mean_features(rows, sae, shared.cfg.sae_batch), folds, cfg)
    out = {}
    for name, sae in saes.items():
        metrics = flat("hierarchy", found[name]) | flat("hierarchy_llm", of_model)
        details = [{"dataset_name": data, **flat("hierarchy", {data: scores})} for data, scores in found[name].items()]
        how = {"random_seed": shared.cfg.seed, "n_folds": cfg.folds, "rows": cfg.rows, "k_values": cfg.k_values}
        how |= {"dataset_names": list(datasets), "model_name": shared.model_name}
        out[name] = shared.result(
            "hierarchy", name, sae, how, {"hierarchy": metrics}, details=details, unstructured=found[name]
        )
    return out


def flat(prefix: str, by_data: dict[str, Scores]) -> dict[str, float]:
    """Mean and standard deviation over folds of each metric, averaged over data sets."""
    out = {}
    for metric in next(iter(by_data.values())):
        folds = [mean(values) for values in zip(*(scores[metric] for scores in by_data.values()), strict=True)]
        out[f"{prefix}_{metric}_accuracy"] = mean(folds)
        out[f"{prefix}_{metric}_std"] = stdev(folds)
    return out


@torch.no_grad()
def cross_validated(means_RD: Tensor, by_fold: list[tuple[int, str, BinaryTask]], cfg: HierarchyConfig) -> Scores:
    """Coarse and fine accuracy of k dimensions in each fold."""
    scores: dict[str, list[list[float]]] = {}
    ranked_Ck = most_different(means_RD, [task for _, _, task in by_fold], max(cfg.k_values))
    for (fold, level, task), ranked in zip(by_fold, ranked_Ck, strict=True):
        for k in cfg.k_values:
            folds = scores.setdefault(f"{level}_top_{k}", [[] for _ in range(cfg.folds)])
            folds[fold].append(sparse_probe_accuracy(means_RD, means_RD, task, ranked[:k]))
    return {metric: [mean(values) for values in folds] for metric, folds in scores.items()}


def tasks(n_by_class: dict[str, int], n_folds: int, seed: int, text_R: Tensor) -> Iterator[tuple[int, str, BinaryTask]]:
    """(fold, coarse or fine, task) of every class; labels are coarse TAB fine.

    Rows of the same text, `text_R`, are in the same fold, so that no text is both trained on and measured.
    """
    parts: dict[str, list[Tensor]] = {}
    fold_of: dict[int, int] = {}
    start = 0
    for label, n in n_by_class.items():
        order = start + torch.randperm(n, generator=stream(seed, "folds", label))
        members: list[list[int]] = [[] for _ in range(n_folds)]
        for fold, rows in enumerate(order.tensor_split(n_folds)):
            for row in rows.tolist():
                members[fold_of.setdefault(int(text_R[row]), fold)].append(row)
        parts[label] = [torch.tensor(rows, dtype=torch.long) for rows in members]
        start += n
    coarse: dict[str, list[str]] = {}
    for label in n_by_class:
        coarse.setdefault(label.partition(SEPARATOR)[0], []).append(label)
    for fold in range(n_folds):
        for name in coarse:
            yield fold, "coarse", _task(coarse, name, parts, fold, seed)
        for labels in coarse.values():
            if len(labels) > 1:
                inside = {label: [label] for label in labels}
                for label in labels:
                    yield fold, "fine", _task(inside, label, parts, fold, seed)


def _task(groups: dict[str, list[str]], name: str, parts: dict[str, list[Tensor]], fold: int, seed: int) -> BinaryTask:
    """One group of labels against the other groups, equally many rows on both sides."""

    def side(test: bool) -> tuple[Tensor, Tensor]:
        rows = {
            group: torch.cat([p for label in labels for i, p in enumerate(parts[label]) if (i == fold) == test])
            for group, labels in groups.items()
        }
        fewest = min(len(group) for group in rows.values())  # of every group as many, so that none outweighs
        kept = {
            group: found[torch.randperm(len(found), generator=stream(seed, "level", name, group, str(fold), str(test)))]
            for group, found in rows.items()
        }
        laid_out = torch.cat([found[:fewest] for found in kept.values()])
        index, labels = against_the_rest(
            dict.fromkeys(groups, fewest), name, stream(seed, "rows", name, str(fold), str(test))
        )
        return laid_out[index], labels

    return BinaryTask(*side(False), *side(True))


EVALUATION = Evaluation(
    "hierarchy", evaluate_hierarchy, METRICS, reads=("data", "seed", "probing", "hierarchy"), version=2
)
