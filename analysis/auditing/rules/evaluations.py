"""Rules on what evaluations judged."""

from analysis.auditing.comparison import Comparison
from analysis.auditing.rules.rule import Found, Rules
from analysis.auditing.run import Run
from analysis.metrics import JUDGED
from sae_sweeps.config.evaluations import BUILTIN
from sae_sweeps.config.hooks import hook_name
from sae_sweeps.config.schema import LayerConfig

RULES = Rules()


STALE_S = 60.0
"""File times closer than this are those of a copy, not of two events."""


@RULES.add("eval-layer", "error", "An SAE was evaluated on another layer than it was trained on.")
def other_layer(comparison: Comparison) -> Found:
    found: dict[str, list[Run]] = {}
    for run in comparison.runs:
        trained, judged = run.config.get("layer.index"), run.config.get("eval.layer")
        if trained is not None and judged is not None and trained != judged:
            found.setdefault(f"trained on layer {trained}, evaluated on layer {judged}.", []).append(run)
        if run.source is None and run.config.get("model") != "synthetic" and trained is not None:
            expected = hook_name(LayerConfig(str(run.config.get("layer.hook")), int(trained)))
            for name, cfg in run.evidence.judged.items():
                hook = cfg.get("hook_name", expected)
                if hook != expected:
                    found.setdefault(f"trained on {expected}, evaluated ({name}) on {hook}.", []).append(run)
    yield from found.items()


@RULES.add("eval-model", "error", "An SAE was evaluated on another model than it was trained on.")
def other_model(comparison: Comparison) -> Found:
    for run in comparison.runs:
        trained, judged = run.config.get("model"), run.config.get("eval.model")
        if run.source is None:
            trained = run.config.get("model.path") or trained
            found = [cfg.get("model_name") for cfg in run.evidence.judged.values()]
            judged = next((name for name in found if name and name != trained), None)
        if trained and judged and last_name(trained) != last_name(judged):
            yield f"trained on model {trained}, evaluated on {judged}.", [run]


def last_name(model: str) -> str:
    """google/gemma-2-2b and gemma-2-2b are one model."""
    return str(model).rstrip("/").rpartition("/")[2]


@RULES.add("stale-eval", "warning", "An evaluation is older than the weights that it is shown for.")
def stale_evaluation(comparison: Comparison) -> Found:
    for run in comparison.measured:
        weights = run.evidence.weights
        if weights is None:
            continue
        old = [name for name, at in run.evidence.evaluations.items() if at.st_mtime + STALE_S < weights.st_mtime]
        if old:
            yield f"the weights were written after {', '.join(old)}: evaluate again.", [run]


@RULES.add("builtin-beside", "warning", "Scores on built-in data are listed beside scores on SAEBench's.")
def builtin_beside(comparison: Comparison) -> Found:
    for metric in JUDGED:
        ours = [run for run in comparison.measured if BUILTIN + metric in run.metrics]
        theirs = [run for run in comparison.measured if metric in run.metrics]
        if ours and theirs:
            yield f"{BUILTIN}{metric} is on built-in data and does not compare with {metric}.", [*ours, *theirs]


@RULES.add("reported", "note", "Imported figures are as reported; they were not measured by this project.")
def reported(comparison: Comparison) -> Found:
    sources = dict.fromkeys(run.source for run in comparison.runs if run.source)
    for source in sources:
        yield f"{source}, not measured here.", [run for run in comparison.runs if run.source == source]
