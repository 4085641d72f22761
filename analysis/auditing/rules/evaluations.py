"""Rules on what evaluations judged, and on which runs have them."""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import combinations
from typing import Any

from analysis.auditing.comparison import Comparison
from analysis.auditing.finding import joined, run_names
from analysis.auditing.rules.rule import Found, Rules
from analysis.auditing.run import Run
from analysis.grouped import grouped
from analysis.metrics import JUDGED
from sae_sweeps.config.evaluations import PREFIXES, plain_name
from sae_sweeps.config.hooks import hook_name
from sae_sweeps.config.schema import LayerConfig

RULES = Rules()


STALE_S = 60.0
"""File times closer than this are those of a copy, not of two events."""
SIBLING = r"[-_](it|instruct|chat|sft|dpo)$"
"""How the name of a model ends that was tuned for instructions."""
KINDS = {
    "core": ("fvu", "ce_loss_score"),
    "sparse_probing": ("sae_*test_accuracy",),
    "scr": ("scr_metric_*",),
    "tpp": ("tpp_*",),
    "absorption": ("mean_*absorption_score",),
    "unlearning": ("unlearning_score",),
    "autointerp": ("autointerp_score",),
}
"""Each evaluation of SAEBench with names of metrics that it alone gives."""


@RULES.add(
    "eval-layer",
    "error",
    "evaluate it again on the layer that it was trained on, and leave these scores out until then",
    each="runs",
)
def other_layer(run: Run) -> Iterator[str]:
    """An SAE was evaluated on another layer than it was trained on."""
    return imported_layers(run) if run.source else hooks_of(run)


def imported_layers(run: Run) -> Iterator[str]:
    trained = run.config.get("layer.index")
    evaluations = run.evaluations.items()
    layers = grouped((how["layer"], name) for name, how in evaluations if how.get("layer") is not None)
    if not layers and run.config.get("eval.layer") is not None:
        layers = {run.config["eval.layer"]: []}
    others = sorted((pair for pair in layers.items() if pair[0] != trained), key=str)
    if trained is not None and others:
        if len(run.evaluations) < 2:
            yield f"trained on layer {trained}, evaluated on layer {others[0][0]}."
        else:
            elsewhere = joined(f"{joined(sorted(names))} evaluated on layer {layer}" for layer, names in others)
            own = f" ({joined(sorted(layers[trained]))} on layer {trained})" if trained in layers else ""
            yield f"trained on layer {trained}, {elsewhere}{own}."


def hooks_of(run: Run) -> Iterator[str]:
    trained = run.config.get("layer.index")
    if run.config.get("model") == "synthetic" or trained is None:
        return
    here = hook_name(LayerConfig(str(run.config.get("layer.hook")), int(trained)))

    def pair(how: dict[str, Any]) -> tuple[str, str]:
        own = how.get("sae_hook", here)
        return (here, own) if run.evidence.is_run else (own, how.get("hook", here))

    for (of_training, of_evaluation), names in grouped((pair(h), name) for name, h in run.evaluations.items()).items():
        if of_training != of_evaluation:
            yield f"trained on {of_training}, evaluated ({', '.join(names)}) on {of_evaluation}."


def on_another_model(run: Run, usual: str | None, sibling: bool) -> Iterator[tuple[str, str, str]]:
    """(model of the training, evaluations, model of the evaluations); `sibling`: its instruction-tuned one, or not."""
    for (trained, judged), names in models_of(run, usual).items():
        if is_sibling(trained, judged) == sibling:
            yield trained, f" ({', '.join(sorted(names))})" if 0 < len(names) < len(run.evaluations) else "", judged


@RULES.add("eval-model", "error", "evaluate it on the model that it was trained on, or name both beside the score")
def other_model(comparison: Comparison) -> Found:
    """An SAE was evaluated on another model than it was trained on."""
    for run in comparison.runs:
        for trained, names, judged in on_another_model(run, comparison.model, False):
            yield f"trained on model {trained}, evaluated{names} on {judged}.", [run]


@RULES.add("eval-sibling", "note", "name both models beside the score")
def sibling_model(comparison: Comparison) -> Found:
    """An SAE was evaluated on the instruction-tuned sibling of the model that it was trained on."""
    for run in comparison.runs:
        for trained, names, judged in on_another_model(run, comparison.model, True):
            yield f"trained on {trained}, evaluated{names} on its instruction-tuned sibling {judged}.", [run]


def models_of(run: Run, usual: str | None) -> dict[tuple[str, str], list[str]]:
    """(model of the training, model of an evaluation) where they are two -> the evaluations.

    A run of an imported study without a model has the one of its study, `usual`.
    """
    own = run.config.get("model.path") or run.config.get("model") or usual
    here = {last_name(name) for name in (own, run.config.get("model")) if name}
    found: dict[tuple[str, str], list[str]] = {}
    for name, how in run.evaluations.items():
        if run.source:
            trained, judged = own, how.get("model")
        elif run.evidence.is_run:  # the file names the model of the SAE that it judged, and the one that it ran on
            judged = next((how[k] for k in ("sae_model", "model") if how.get(k) and last_name(how[k]) not in here), own)
            trained = own
        else:  # an SAE from elsewhere: the folder's config is of its evaluation, the SAE's own of its training
            trained, judged = how.get("sae_model"), how.get("model") or own
        if (
            trained
            and judged
            and last_name(trained) != last_name(judged)
            and not {*map(last_name, (trained, judged))} <= here
        ):
            found.setdefault((str(trained), str(judged)), []).append(name)
    if run.source and not run.evaluations and own and run.config.get("eval.model"):
        if last_name(own) != last_name(run.config["eval.model"]):
            found[own, run.config["eval.model"]] = []
    return found


def last_name(model: str) -> str:
    """google/gemma-2-2b and gemma-2-2b are one model."""
    return str(model).rstrip("/").rpartition("/")[2]


def is_sibling(trained: str, judged: str) -> bool:
    name, base = last_name(judged), last_name(trained)
    return re.sub(SIBLING, "", name, flags=re.IGNORECASE) == base != name


@RULES.add("shared-eval", "error", "it measured one SAE: count it once, and evaluate the others", across=True)
def shared_evaluation(comparison: Comparison) -> Found:
    """One evaluation is shown as the result of several runs."""
    evaluations = ((run, name, how.get("eval_id")) for run in comparison.runs for name, how in run.evaluations.items())
    for (eval_id, name), runs in grouped(((own, name), run) for run, name, own in evaluations if own).items():
        if len({run.run_id for run in runs}) > 1:
            yield f"the {name} of these runs is one evaluation (eval_id {eval_id[:8]}).", runs


@RULES.add("nothing-shared", "error", "run the same evaluations on all of them")
def nothing_shared(comparison: Comparison) -> Found:
    """No evaluation is recorded of both a baseline and another run."""
    first = kinds_of_all(comparison.baselines)
    second = kinds_of_all(comparison.others)
    if first and second and not set(first) & set(second):
        yield (
            f"the baseline has {joined(first)} and the other runs {joined(second)}: nothing compares them.",
            [*comparison.baselines, *comparison.others],
        )


@RULES.add("eval-missing", "warning", "run the same evaluations on all of them")
def missing_evaluations(comparison: Comparison) -> Found:
    """An evaluation is recorded of some of the compared runs only."""
    runs = [run for run in comparison.compared if run.study or run.state == "completed"]
    names = {kind: tuple(run.name for run in runs if kind in kinds_of(run)) for kind in kinds_of_all(runs)}
    without = grouped((having, kind) for kind, having in names.items() if len(having) < len(runs))
    if without and not list(nothing_shared(comparison)):
        listed = (
            f"{joined(kinds)} {'are' if len(kinds) > 1 else 'is'} recorded of "
            f"{run_names(having) if len(having) < 9 else f'{len(having)} runs'} alone"
            for having, kinds in without.items()
        )
        yield f"{'; '.join(listed)}.", [run for run in runs if any(run.name not in having for having in without)]


def kinds_of(run: Run) -> set[str]:
    """The evaluations of which the run has a metric; on built-in data they are the same."""
    return set().union(*map(kinds_with, run.metrics))


@lru_cache(maxsize=4096)
def kinds_with(metric: str) -> frozenset[str]:
    name = plain_name(metric)
    return frozenset(kind for kind, own in KINDS.items() if any(fnmatchcase(name, pattern) for pattern in own))


def kinds_of_all(runs: list[Run]) -> list[str]:
    found = set().union(*map(kinds_of, runs)) if runs else set()
    return [kind for kind in KINDS if kind in found]


@RULES.add("stale-eval", "warning", each="measured")
def stale_evaluation(run: Run) -> str | None:
    """An evaluation is older than the weights that it is shown for."""
    written = run.evidence.weights and run.evidence.weights.st_mtime
    times = run.evidence.evaluations.items() if written else ()
    old = [name for name, at in times if written and at.st_mtime + STALE_S < written]
    return f"the weights were written after {', '.join(old)}: evaluate again." if old else None


@RULES.add("builtin-beside", "warning", "show them in tables of their own", across=True)
def builtin_beside(comparison: Comparison) -> Found:
    """Scores on built-in data, or on data of one's own, are listed beside scores on other data."""
    where = {"": "SAEBench's data"} | {prefix: f"{kind} data" for kind, prefix in PREFIXES.items()}
    for metric in JUDGED:
        having = {prefix: [run for run in comparison.measured if prefix + metric in run.metrics] for prefix in where}
        for one, other in combinations([prefix for prefix, runs in having.items() if runs], 2):
            yield (
                f"{other}{metric} is on {where[other]} and does not compare with {one}{metric}.",
                [*having[other], *having[one]],
            )


@RULES.add("other-classes", "warning", "compare the classes that all of them have")
def other_classes(comparison: Comparison) -> Found:
    """A score is a mean over other classes in one run than in another."""
    for kind in dict.fromkeys(name for run in comparison.runs for name in run.recorded.details):
        having = [run for run in comparison.runs if kind in run.recorded.details]
        classes = [set(map(class_of, run.recorded.details[kind])) for run in having]
        everything = set().union(*classes)
        short = [
            f"{len(own)} in {run_names([run.name])} (no {', '.join(sorted(everything - own)[:4])})"
            for run, own in zip(having, classes, strict=True)
            if own != everything
        ]
        if short:
            yield f"the mean of {kind} is over {len(everything)} classes, but {joined(short)}.", having


def class_of(detail: dict[str, Any]) -> str:
    """What one row of an evaluation's details is about."""
    return str(detail.get("first_letter") or detail.get("dataset_name") or "")


@RULES.add("eval-version", "note", "name the versions")
def versions(comparison: Comparison) -> Found:
    """Evaluations of one study were made with different versions of SAEBench."""
    made_with = ((str(how.get("commit") or "")[:7], run) for run in comparison.runs for how in run.evaluations.values())
    found = grouped((version, run) for version, run in made_with if version)
    if len(found) > 1:
        yield f"evaluated with {len(found)} versions of SAEBench ({', '.join(found)}).", sum(found.values(), [])


@RULES.add("reported", "note", each="runs")
def reported(run: Run) -> str | None:
    """Imported figures are as reported; they were not measured by this project."""
    return f"{run.source}, not measured here." if run.source else None
