"""The metric that a sweeper optimises: checked before anything is trained, and read from the results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sae_sweeps.config.evaluations import EVALUATIONS, PREFIXES, Evaluation, describe, find_evaluation
from sae_sweeps.config.run import RunConfig
from sae_sweeps.errors import ConfigError, DamagedFile, did_you_mean
from sae_sweeps.evaluation import core
from sae_sweeps.evaluation.sources import data_of
from sae_sweeps.runs.evaluate import wanted
from sae_sweeps.runs.results import OF_TRAINING
from sae_sweeps.storage.run_folder import RunFolder


def check_objective(name: str, runs: Iterable[RunConfig]) -> None:
    """Raise ConfigError where results.json of one of the runs will not have the metric.

    Evaluations from outside need not describe all of their metrics: a run that has one is not refused.
    """
    for run in runs:
        evaluations = [find_evaluation(chosen) for chosen in wanted(run)]
        if name in OF_TRAINING or any(e.digest is not None or _gives(e, run, name) for e in evaluations):
            continue
        others = [other for other in EVALUATIONS if _gives(find_evaluation(other), run, name)]
        if others and others[0] not in wanted(run):
            mend = f"add {others[0]} to eval.evaluations, or name another."
        elif meant := [
            prefix + name for prefix in PREFIXES.values() if any(_gives(e, run, prefix + name) for e in evaluations)
        ]:
            mend = f"did you mean {meant[0]}?"
        else:
            literal = [metric for e in evaluations for metric in e.metrics if re.escape(metric) == metric]
            of_core = [metric for metrics in (*core.GROUPS.values(), core.OURS) for metric in metrics]
            named = [metric for metric in (*of_core, *literal) if any(_gives(e, run, metric) for e in evaluations)]
            known = list(dict.fromkeys([*OF_TRAINING, *named]))
            mend = did_you_mean(name, known, f"they have {', '.join(known)}.")
        raise ConfigError(f"objective={name}: these runs have no such metric; {mend}")


def _gives(evaluation: Evaluation, run: RunConfig, name: str) -> bool:
    """Whether the evaluation measures the metric of a run with this model, text and `eval`."""
    data = data_of(run.eval, run.model)
    kind = "labelled" if Path(data).is_file() and evaluation.name != "absorption" else data
    prefix = PREFIXES.get(kind, "") if "data" in evaluation.reads else ""
    metric = name.removeprefix(prefix)
    if not name.startswith(prefix) or describe(metric, evaluation.metrics) is None:
        return False
    if run.synthetic and (evaluation.needs_model or re.fullmatch(core.OF_MODEL, metric)):
        return False
    left_out = [names for key, names in core.LEFT_OUT.items() if not getattr(run.eval, key)]
    return evaluation is not core.EVALUATION or not any(re.fullmatch(names, metric) for names in left_out)


def objective_of(folder: Path, name: str) -> float | None:
    """The metric of a completed run; None where the run did not complete. Raises ConfigError for a name it lacks."""
    try:
        run = RunFolder(folder)
        status = run.status()
        results = run.results() if status is not None and status["state"] == "completed" else None
    except DamagedFile:  # which the launch has printed as the run's end
        return None
    if results is None:
        return None
    metrics = results["metrics"]
    if name not in metrics:
        mend = did_you_mean(name, metrics, f"it has {', '.join(metrics)}.")
        raise ConfigError(f"objective={name}: {folder / 'results.json'} has no such metric; {mend}")
    return metrics[name]
