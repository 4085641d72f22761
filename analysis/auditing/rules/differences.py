"""Rules on differences between runs, or their absence."""

import math
import re
from functools import lru_cache

from analysis.auditing.comparison import Comparison
from analysis.auditing.rules.rule import Found, Rules
from analysis.auditing.run import Run
from analysis.grouped import grouped
from analysis.metrics import HEADLINES, direction
from analysis.text import cell
from sae_sweeps.config.evaluations import PREFIXES, plain_name

RULES = Rules()


CONFIDENCE = 0.05
FLOORS = {"unlearning_score": 0.0, "sae_*accuracy": 0.5, "tpp_*": 0.0, "scr_metric_*": 0.0, "autointerp_score": 0.0}
"""What a metric shows where there is nothing to show."""
RESULTS = (
    "final_loss", "recon_loss", "fvu", "mse", "mse_per_token", "cossim", "ce_loss_with_sae",
    "explained_variance_legacy",
)  # fmt: skip
"""Measurements that two different SAEs do not share to the last digit."""
PROBE = re.compile(rf"({'|'.join(PREFIXES.values())})?sae_top_(\d+)_test_accuracy")


@RULES.add("identical", "warning", "check that the key reaches the loss")
def identical(comparison: Comparison) -> Found:
    """Different configurations have identical results: the key between them does nothing."""
    trained = [run for run in comparison.measured if run.steps != 0 and any(name in run.metrics for name in RESULTS)]
    for runs in grouped((tuple(run.metrics.get(name) for name in RESULTS), run) for run in trained).values():
        keys = [key for key in (*comparison.method_keys, "seed") if len({run.config.get(key) for run in runs}) > 1]
        if len({run.run_id for run in runs}) > 1 and (keys or comparison.imported):
            name, value = next((name, runs[0].metrics[name]) for name in RESULTS if name in runs[0].metrics)
            shown = [
                f"{key} ({', '.join(cell(run.config.get(key), 'config') for run in runs[:4])})" for key in keys[:4]
            ]
            why = f"although {', '.join([*shown, *['...'] * (len(keys) > 4)])} differ{'s' * (len(keys) == 1)}"
            yield f"identical results ({name} {value:.7g}) {why if keys else 'of runs described as different'}.", runs


@RULES.add("floor", "warning", "draw no conclusion from it, or choose settings that lift a baseline above it")
def at_floor(comparison: Comparison) -> Found:
    """A metric is at its floor in every run, so it separates no runs."""
    for metric in dict.fromkeys(name for run in comparison.measured for name in run.metrics):
        floor = floor_of(plain_name(metric))
        having = [run for run in comparison.measured if metric in run.metrics] if floor is not None else []
        if len(having) > 1 and all(run.metrics[metric] == floor for run in having):
            yield f"{metric} is {floor:g} in every run: at its floor, it separates no runs.", having


@lru_cache(maxsize=4096)
def floor_of(metric: str) -> float | None:
    from fnmatch import fnmatchcase

    return next((floor for pattern, floor in FLOORS.items() if fnmatchcase(metric, pattern)), None)


@RULES.add("single-seed", "warning", "repeat each with three seeds")
def single_seed(comparison: Comparison) -> Found:
    """Configurations with one seed: a difference between them may be chance."""
    groups = comparison.configurations
    single = [run for group in groups if len(group) == 1 for run in group]
    if len(groups) > 1 and single:
        many = "every configuration has" if len(single) == len(groups) else f"{len(single)} of {len(groups)} have"
        yield f"{many} a single seed, so their differences may be chance.", single


@RULES.add("within-seeds", "note", "call them equal, or add seeds")
def within_seeds(comparison: Comparison) -> Found:
    """The best configuration differs from others by no more than their seeds do (Welch's t)."""
    groups = [group for group in comparison.configurations if len(group) > 1]
    if len(groups) < 2:
        return
    for metric in HEADLINES:
        better = direction(metric)
        samples = [(group, [run.metrics[metric] for run in group if metric in run.metrics]) for group in groups]
        samples = [(group, values) for group, values in samples if len(values) > 1]
        if better is None or len(samples) < 2:
            continue
        sign = -1 if better == "higher" else 1
        means = [sign * math.fsum(values) / len(values) for _, values in samples]
        first = means.index(min(means))
        p_values = welch(samples[first][1], [values for _, values in samples])
        close = [n for n, p in enumerate(p_values) if n != first and p > CONFIDENCE]
        if close:
            gap = max(abs(means[n] - means[first]) for n in close)
            runs = [run for n in (first, *close) for run in samples[n][0]]
            others = f"{len(close)} of {len(samples) - 1} other configurations" if len(samples) > 2 else "the other one"
            yield (
                f"{metric}: the seeds do not separate the best configuration from {others} (differences up to "
                f"{gap:.2g}, Welch's t, p > {CONFIDENCE}).",
                runs,
            )


def welch(sample: list[float], others: list[list[float]]) -> list[float]:
    """Two-sided p of Welch's t test (unequal variances) of a sample against each of the others; nan where all are
    equal."""
    import numpy as np
    from scipy.special import stdtr

    def moments(values: list[float]) -> tuple[float, float, int]:
        mean = math.fsum(values) / len(values)
        return mean, math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values), len(values)

    mean, square, n = moments(sample)
    other = np.array([moments(values) for values in others])
    with np.errstate(divide="ignore", invalid="ignore"):
        total = square + other[:, 1]
        t = np.abs(mean - other[:, 0]) / np.sqrt(total)
        df = total**2 / (square**2 / (n - 1) + other[:, 1] ** 2 / (other[:, 2] - 1))
        return [float(p) for p in np.where(total > 0, 2 * stdtr(df, -t), np.where(mean == other[:, 0], np.nan, 0.0))]


@RULES.add("probe-below", "note", "show both beside each other")
def probes_below(comparison: Comparison) -> Found:
    """Probes on the SAE's features are worse than probes on as many dimensions of the activations."""
    below: dict[str, list[int]] = {}
    runs: list[Run] = []
    for run in comparison.measured:
        found = [k for k, (sae, llm) in probes_of(run).items() if sae < llm]
        if found:
            below[run.run_id] = sorted(found)
            runs.append(run)
    if runs:
        several = len(set(map(tuple, below.values()))) > 1
        first = below[runs[0].run_id]
        sae, llm = probes_of(runs[0])[first[-1]]
        where = "some k" if several else f"k = {', '.join(map(str, first))}"
        yield (
            f"its features probe worse than as many activation dimensions at {where} ({sae:.3f} against {llm:.3f} at "
            f"k = {first[-1]}{f' in {runs[0].name}' * (len(runs) > 1)}).",
            runs,
        )


def probes_of(run: Run) -> dict[int, tuple[float, float]]:
    """k -> accuracies of the probe on k features and on k dimensions, of an SAE that is not dead."""
    pairs = {
        k: (value, run.metrics.get(other))
        for name, value in run.metrics.items()
        if value != 0.5
        for k, other in beside(name)
    }
    return {k: (sae, llm) for k, (sae, llm) in pairs.items() if llm is not None}


@lru_cache(maxsize=4096)
def beside(metric: str) -> tuple[tuple[int, str], ...]:
    """Of the accuracy of a probe on k features: k, and the name of that on k dimensions."""
    found = PROBE.fullmatch(metric)
    return ((int(found[2]), f"{found[1] or ''}llm_top_{found[2]}_test_accuracy"),) if found else ()
