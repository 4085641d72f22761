"""The rules of the audit, one small function each: what the records of earlier studies teach.

A rule sees the whole comparison and yields a sentence and the runs that it is about. Adding one is a function here with
its code, its level and what it guards against, and a test with a case that triggers it and one that does not.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any

from analysis.audit import Comparison, Run, number
from analysis.metrics import HEADLINES, JUDGED, direction
from sae_sweeps.config.evaluations import BUILTIN
from sae_sweeps.storage.budget import BUDGET, unequal

Found = Iterator[tuple[str, list[Run]]]

ENDED_EARLY = ("failed", "interrupted", "preempted", "cancelled", "lost")
PENDING = ("queued", "running")

SPARSE_SHARE = 0.1
"""L0 above this share of d_sae is not sparse."""
PERFECT = 0.999
"""A CE score that only an SAE which is not sparse reaches."""
STALE_S = 60.0
"""File times closer than this are those of a copy, not of two events."""
CONFIDENCE = 0.05

FLOORS = {"unlearning_score": 0.0, "sae_*accuracy": 0.5, "tpp_*": 0.0, "scr_metric_*": 0.0, "autointerp_score": 0.0}
"""What a metric shows where there is nothing to show."""

RESULTS = (
    "final_loss", "recon_loss", "fvu", "mse", "mse_per_token", "cossim", "ce_loss_with_sae",
    "explained_variance_legacy",
)  # fmt: skip
"""Measurements that two different SAEs do not share to the last digit."""

LEVEL_OF = {"num_tokens": "error", "total_steps": "error"}
"""The rest of BUDGET is a warning."""


@dataclass(frozen=True)
class Rule:
    code: str
    level: str
    about: str
    """What it guards against, in one sentence."""
    find: Callable[[Comparison], Found]


RULES: list[Rule] = []


def rule(code: str, level: str, about: str) -> Callable[[Callable[[Comparison], Found]], Callable[[Comparison], Found]]:
    def register(find: Callable[[Comparison], Found]) -> Callable[[Comparison], Found]:
        RULES.append(Rule(code, level, about, find))
        return find

    return register


# Budgets -------------------------------------------------------------------------------------------------------------


def budget_of(run: Run, key: str) -> Any:
    """What a run used of a key of BUDGET, as trained where that is recorded."""
    if key == "num_tokens":
        return run.tokens
    if key == "total_steps":
        return run.steps
    if run.config.get("model") == "synthetic" and key in ("layer", "data"):
        return None
    return run.config.get(BUDGET[key].removesuffix(".name"))


def unequal_budget(key: str, comparison: Comparison) -> Found:
    values = {id(run): budget_of(run, key) for run in comparison.measured}
    sentence = unequal(key, values.values(), comparison.varied)
    if sentence:
        yield f"{sentence}.", [run for run in comparison.measured if values[id(run)] is not None]


BUDGET_CODES = {"num_tokens": "budget-tokens", "total_steps": "budget-steps"}
ABOUT_BUDGET = {
    "num_tokens": "Compared runs were trained on different numbers of tokens; the sweep may not vary them unseen.",
    "total_steps": "Compared runs took different numbers of steps; the sweep may not vary them unseen.",
    "batch_size": "Compared runs differ in tokens per step, which the sweep does not vary.",
    "k": "Compared runs differ in active features per token, which the sweep does not vary.",
    "d_sae": "Compared runs differ in the size of the dictionary, which the sweep does not vary.",
    "model": "Compared runs read different models, which the sweep does not vary.",
    "layer": "Compared runs read different layers, which the sweep does not vary.",
    "data": "Compared runs read different text, which the sweep does not vary.",
    "data_seed": "Compared runs saw the data in different orders, which the sweep does not vary.",
    "recon": "Compared runs minimise different forms of the reconstruction loss, so their losses do not compare.",
}
for _key, _about in ABOUT_BUDGET.items():
    _code = BUDGET_CODES.get(_key, f"budget-{_key.replace('_', '-')}")
    RULES.append(Rule(_code, LEVEL_OF.get(_key, "warning"), _about, partial(unequal_budget, _key)))


@rule("budget-seeds", "warning", "Some configurations were repeated with other seeds than others.")
def seed_policy(comparison: Comparison) -> Found:
    kinds: dict[frozenset[Any], list[list[Run]]] = {}
    for group in comparison.configurations:
        seeds = frozenset(run.config["seed"] for run in group if run.config.get("seed") is not None)
        if seeds:
            kinds.setdefault(seeds, []).append(group)
    if len(kinds) > 1:
        listed = ["{" + ", ".join(map(str, sorted(seeds, key=str))) + "}" for seeds in kinds]
        shown = ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")
        yield (
            f"the configurations were repeated with different seeds ({shown}): they do not compare.",
            [run for groups in kinds.values() for group in groups for run in group],
        )


# Recorded and used ---------------------------------------------------------------------------------------------------


Settings = tuple[tuple[str, Any], ...]
"""Of a learning-rate schedule: its name and its keys."""


@lru_cache(maxsize=1024)
def schedule_of(settings: Settings) -> Any:
    """The learning-rate schedule that a config records, or None where it is not one of this project's."""
    from sae_sweeps.schedules import LR_SCHEDULES

    values = dict(settings)
    try:
        return LR_SCHEDULES[values["name"]](**values)
    except (KeyError, TypeError):
        return None


@lru_cache(maxsize=1024)
def highest(schedule_settings: Settings, total_steps: int) -> float | None:
    schedule = schedule_of(schedule_settings)
    if schedule is None:
        return None
    peak = 0.0
    for step in range(total_steps):
        peak = max(peak, schedule.value(step, total_steps))
        if peak >= schedule.lr:
            break  # no schedule goes beyond it
    return peak


@lru_cache(maxsize=1024)
def expected_rates(settings: Settings, steps: tuple[float, ...], total_steps: int) -> list[float] | None:
    schedule = schedule_of(settings)
    return None if schedule is None else [schedule.value(int(step), total_steps) for step in steps]


def lr_settings(comparison: Comparison) -> list[Settings]:
    """Of each measured run the learning-rate schedule that its config records."""
    head = "lr_schedule."
    keys = sorted(key for key in comparison.keys if key.startswith(head))
    names = [key.removeprefix(head) for key in keys]
    return [
        (
            *((name, run.config[key]) for name, key in zip(names, keys, strict=True) if key in run.config),
            ("name", run.config.get("lr_schedule")),
        )
        for run in comparison.measured
    ]


@rule("lr-used", "error", "The learning rate in metrics.jsonl is not the one that the config records.")
def learning_rate_used(comparison: Comparison) -> Found:
    settings = lr_settings(comparison)
    told = ((run, other_rate(run, own)) for run, own in zip(comparison.measured, settings, strict=True))
    yield from by_sentence((run, why) for run, why in told if why)


def other_rate(run: Run, settings: Settings) -> str | None:
    """How the logged learning rates differ from what the recorded schedule gives, or None."""
    recorded = number(run.config.get("lr_schedule.lr"))
    used = [value for value in run.evidence.sampled("lr") if value == value]
    if recorded is None or not used:
        return None
    steps, total = run.evidence.sampled("step"), run.total_steps
    rates = expected_rates(settings, tuple(steps), total) if total and len(steps) == len(used) else None
    if rates is None:
        same = math.isclose(max(used), recorded, rel_tol=0.01)
        return None if same else f"lr={recorded:g} is recorded, but the log peaks at {max(used):g}."
    for step, value, expected in zip(steps, used, rates, strict=True):
        if not math.isclose(value, expected, rel_tol=1e-3, abs_tol=1e-12):
            return (
                f"lr={recorded:g} means a learning rate of {expected:.3g} at step {step:.0f}, the log has {value:.3g}."
            )
    return None


@rule("lr-peak", "warning", "Warm-up and decay leave no room for the learning rate to reach its peak.")
def never_peaks(comparison: Comparison) -> Found:
    found: dict[str, list[Run]] = {}
    for run, settings in zip(comparison.measured, lr_settings(comparison), strict=True):
        recorded, total = number(run.config.get("lr_schedule.lr")), run.total_steps
        peak = highest(settings, int(total)) if recorded and total and run.source is None else None
        if peak is not None and recorded is not None and peak < 0.999 * recorded:
            sentence = f"the learning rate peaks at {peak:.3g}, never at lr={recorded:g}, in {total:,} steps."
            found.setdefault(sentence, []).append(run)
    yield from found.items()


@rule("k-used", "error", "The k in metrics.jsonl is not the one that the config records.")
def k_used(comparison: Comparison) -> Found:
    for run in comparison.measured:
        recorded = number(run.config.get("architecture.k"))
        used = run.evidence.last("k")
        if recorded is None or run.config.get("architecture.k_start") is not None or used is None:
            continue
        if abs(used - recorded) > 0.5:  # never of nan
            yield f"k={recorded:g} is recorded, but the last step was taken with k={used:g}.", [run]


@rule("steps-done", "error", "A run that counts as complete took another number of steps than its config says.")
def steps_done(comparison: Comparison) -> Found:
    for run in comparison.measured:
        tokens, batch = number(run.config.get("num_tokens")), number(run.config.get("batch_size"))
        if tokens is None or not batch or run.steps is None or run.state != "completed":
            continue
        planned = tokens // batch
        if planned != run.steps:
            yield f"its config means {planned:,.0f} steps, it took {run.steps:,.0f}.", [run]


MENTIONS = {
    "lr_schedule.lr": r"(?:learning rate|\blr)(?: of| is| was| at|:| ?=)? ?([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)",
    "architecture.k": r"\bk ?= ?([0-9]+)\b",
    "architecture.d_sae": r"(?:\bd_sae|dictionary size)(?: of| is| was|:| ?=)? ?([0-9][0-9,]*)\b",
    "layer.index": r"\blayer(?: ?=)? ?([0-9]+)\b",
    "steps": r"(?:trained for|after) ([0-9][0-9,]*) (?:training )?steps\b",
    "final_loss": r"final loss(?: of| is| was|:| ?=)? ?(-?[0-9][0-9,]*(?:\.[0-9]+)?)",
}
"""How prose speaks of a recorded number."""


@rule("prose-number", "warning", "The description or title gives a number that is not the recorded one.")
def prose_number(comparison: Comparison) -> Found:
    for run in comparison.runs:
        text = f"{run.title}. {run.description}"
        for key, pattern in MENTIONS.items():
            recorded = [
                value
                for value in map(number, (run.config.get(key), run.steps if key == "steps" else run.metrics.get(key)))
                if value is not None
            ]
            said = re.findall(pattern, text, re.IGNORECASE) if recorded else []
            if said and not any(agrees(words, value) for words in said for value in recorded):
                name = key.rpartition(".")[2].replace("index", "layer")
                yield f"its text says {name} {said[0]}, its record {recorded[0]:g}.", [run]


def agrees(words: str, value: float) -> bool:
    """Whether a number in prose is the value, rounded to the digits that the prose has."""
    said = Decimal(words.replace(",", "").rstrip("."))
    exponent = said.as_tuple().exponent
    half_a_digit = 0.5 * 10.0 ** (exponent if isinstance(exponent, int) else 0)
    return abs(float(said) - value) <= half_a_digit * (1 + 1e-6)


PRAISE = r"(?<!not )(?<!never )(?<!less )\b(stable|stably|stability|converged|converges|smoothly|successfully)\b"


@rule("prose-stable", "error", "A text praises a run as stable or converged whose loss is not a number.")
def praised(comparison: Comparison) -> Found:
    for run in comparison.runs:
        word = re.search(PRAISE, f"{run.title}. {run.description}", re.IGNORECASE)
        if word and run.diverged:
            yield f"its text says `{word[1]}`, its loss is not a number.", [run]


@rule("import-doubt", "warning", "An import could not take a number at its word.")
def import_doubt(comparison: Comparison) -> Found:
    yield from by_sentence((run, f"{said}.") for run in comparison.runs if run.source for said in run.warnings)


# Runs that are not results -------------------------------------------------------------------------------------------


@rule("never-trained", "error", "A run of 0 steps stands among trained ones.")
def never_trained(comparison: Comparison) -> Found:
    runs = [run for run in comparison.runs if run.steps == 0 and (run.measured or run.source)]
    if runs:
        yield "0 steps: never trained, so its numbers are those of its initial weights.", runs


@rule("one-step", "error", "A run of a single step stands among trained ones.")
def one_step(comparison: Comparison) -> Found:
    runs = [run for run in comparison.measured if run.steps == 1]
    if runs:
        yield "trained for 1 step.", runs


@rule("dead", "error", "The SAE is dead: L0 is 0, every probe is at exactly 0.5, or its output has no direction.")
def dead(comparison: Comparison) -> Found:
    found: dict[str, list[Run]] = {}
    for run in comparison.measured:
        probes = [value for name, value in run.metrics.items() if is_probe(name)]
        signs = ["L0 = 0"] * (run.metrics.get("l0") == 0)
        signs += ["every probe accuracy exactly 0.5"] * (len(probes) > 1 and set(probes) == {0.5})
        signs += ["cosine similarity not a number"] * ("cossim" in run.nulls and "mse" in run.metrics)
        if signs:
            found.setdefault(f"the SAE is dead: {', '.join(signs)}.", []).append(run)
    yield from found.items()


@lru_cache(maxsize=4096)
def is_probe(metric: str) -> bool:
    return re.fullmatch(r"(builtin_)?sae_(top_\d+_)?test_accuracy", metric) is not None


def density(run: Run) -> str | None:
    """Why a run is not sparse, or None."""
    l0, d_sae, d_in = (
        run.metrics.get("l0"),
        number(run.config.get("architecture.d_sae")),
        number(run.config.get("model.d_in")),
    )
    if l0 is None:
        return None
    if d_in is not None and l0 > d_in:
        return f"L0 = {l0:,.0f} is above d_in = {d_in:,.0f}"
    if d_sae is not None and l0 > SPARSE_SHARE * d_sae:
        return f"L0 = {l0:,.0f} of {d_sae:,.0f} features"
    return None


@rule("not-sparse", "warning", "More than a tenth of the features, or more than d_in of them, fire on a token.")
def not_sparse(comparison: Comparison) -> Found:
    for run in comparison.measured:
        if why := density(run):
            yield f"not sparse: {why}.", [run]


@rule("perfect-score", "error", "A perfect CE score comes from an SAE that is not sparse.")
def perfect_score(comparison: Comparison) -> Found:
    for run in comparison.measured:
        score = run.metrics.get("ce_loss_score", 0)
        if score >= PERFECT and (why := density(run)):
            yield f"a CE score of {score:.4g} from an SAE that is not sparse ({why}) says nothing.", [run]


@rule("diverged", "error", "The loss of a run stopped being a number; whatever else it shows is not a result.")
def diverged(comparison: Comparison) -> Found:
    found: dict[str, list[Run]] = {}
    for run in comparison.runs:
        if not run.diverged:
            continue
        others = [name for name in run.metrics if name not in ("tokens", "steps")]
        if run.source is None:
            sentence = f"diverged ({run.error or 'no error recorded'}), so there is no result."
        else:
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            sentence = f"its loss is not a number{f', so {shown} is not a result' if others else ''}."
        found.setdefault(sentence, []).append(run)
    yield from found.items()


@rule("unfinished", "warning", "A run failed or was interrupted, cancelled or lost, and has no result.")
def unfinished(comparison: Comparison) -> Found:
    found: dict[str, list[Run]] = {}
    for run in comparison.runs:
        if run.state in ENDED_EARLY:
            at = f" at step {run.step:,} of {run.total_steps:,}" if run.step and run.total_steps else ""
            sentence = f"{run.state}{at}, so there is no result{f' ({run.error})' if run.error else ''}."
            found.setdefault(sentence, []).append(run)
    yield from found.items()


@rule("pending", "note", "A run is queued or still running.")
def pending(comparison: Comparison) -> Found:
    for state in PENDING:
        runs = [run for run in comparison.runs if run.state == state]
        if runs:
            yield f"{len(runs)} of {len(comparison.runs)} runs are {state}.", runs


@rule("penalty-silent", "error", "A penalty never acted: its weight, its value or its gradient was 0 in every row.")
def silent_penalty(comparison: Comparison) -> Found:
    found: dict[str, list[Run]] = {}
    for run in comparison.measured:
        name = run.config.get("penalty")
        if name in (None, "none"):
            continue
        for term in str(name).split("+"):
            if why := never_acted(run, term if "+" in str(name) else "penalty"):
                found.setdefault(f"penalty={term} never acted: {why}.", []).append(run)
    yield from found.items()


def never_acted(run: Run, term: str) -> str | None:
    """Why a loss term changed nothing, or None."""
    peak = run.config.get("penalty.lambda2_max" if term == "penalty" else f"penalty.{term}.lambda2_max")
    if peak == 0:
        return "its weight is 0"
    for what, key in (("weight", f"{term}_weight"), ("value", f"{term}_loss"), ("gradient", f"grad_norm/{term}")):
        # a penalty may act on one of the two matrices only
        acted = [run.evidence.ever(name) for name in ((key, f"{key}_enc") if what == "gradient" else (key,))]
        if any(answer is not None for answer in acted) and not any(acted):
            return f"its {what} is 0 in every row of metrics.jsonl"
    return None


@rule("run-warning", "warning", "What a run itself warns of.")
def own_warnings(comparison: Comparison) -> Found:
    restated = ("L0 = ", "the SAE is dead")  # by the rules above
    yield from by_sentence(
        (run, said)
        for run in comparison.runs
        if run.source is None
        for said in run.warnings
        if not said.startswith(restated)
    )


def by_sentence(said: Iterator[tuple[Run, str]]) -> Found:
    """Each sentence once, with all runs that say it."""
    found: dict[str, list[Run]] = {}
    for run, sentence in said:
        found.setdefault(sentence, []).append(run)
    yield from found.items()


# Evaluations ---------------------------------------------------------------------------------------------------------


@rule("eval-layer", "error", "An SAE was evaluated on another layer than it was trained on.")
def other_layer(comparison: Comparison) -> Found:
    found: dict[str, list[Run]] = {}
    for run in comparison.runs:
        trained, judged = run.config.get("layer.index"), run.config.get("eval.layer")
        if trained is not None and judged is not None and trained != judged:
            found.setdefault(f"trained on layer {trained}, evaluated on layer {judged}.", []).append(run)
        if run.source is None and run.config.get("model") != "synthetic" and trained is not None:
            expected = f"blocks.{trained}.hook_{run.config.get('layer.hook')}"
            for name, cfg in run.evidence.judged.items():
                hook = cfg.get("hook_name", expected)
                if hook != expected:
                    found.setdefault(f"trained on {expected}, evaluated ({name}) on {hook}.", []).append(run)
    yield from found.items()


@rule("eval-model", "error", "An SAE was evaluated on another model than it was trained on.")
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


@rule("stale-eval", "warning", "An evaluation is older than the weights that it is shown for.")
def stale_evaluation(comparison: Comparison) -> Found:
    for run in comparison.measured:
        weights = run.evidence.weights
        if weights is None:
            continue
        old = [name for name, at in run.evidence.evaluations.items() if at.st_mtime + STALE_S < weights.st_mtime]
        if old:
            yield f"the weights were written after {', '.join(old)}: evaluate again.", [run]


@rule("builtin-beside", "warning", "Scores on built-in data stand beside scores on SAEBench's.")
def builtin_beside(comparison: Comparison) -> Found:
    for metric in JUDGED:
        ours = [run for run in comparison.measured if BUILTIN + metric in run.metrics]
        theirs = [run for run in comparison.measured if metric in run.metrics]
        if ours and theirs:
            yield f"{BUILTIN}{metric} is on built-in data and does not compare with {metric}.", [*ours, *theirs]


@rule("reported", "note", "Imported figures stand as reported; nothing here measured them.")
def reported(comparison: Comparison) -> Found:
    sources = dict.fromkeys(run.source for run in comparison.runs if run.source)
    for source in sources:
        yield f"{source}, not measured here.", [run for run in comparison.runs if run.source == source]


# Differences ---------------------------------------------------------------------------------------------------------


@rule("identical", "warning", "Different configurations have identical results, so the key between them does nothing.")
def identical(comparison: Comparison) -> Found:
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in comparison.measured:
        values = tuple(run.metrics.get(name) for name in RESULTS)
        if any(value is not None for value in values) and run.steps != 0:
            found.setdefault(values, []).append(run)
    for runs in found.values():
        keys = [key for key in (*comparison.method_keys, "seed") if len({run.config.get(key) for run in runs}) > 1]
        if keys and len({run.run_id for run in runs}) > 1:
            shown = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
            yield f"identical results although {shown} differ{'s' * (len(keys) == 1)}.", runs


@rule("floor", "warning", "A metric is at its floor in every run, so it tells nothing apart.")
def at_floor(comparison: Comparison) -> Found:
    studies: dict[Any, list[Run]] = {}
    for run in comparison.measured:
        studies.setdefault(run.config.get("study"), []).append(run)
    for runs in studies.values():
        for metric in dict.fromkeys(name for run in runs for name in run.metrics):
            floor = floor_of(metric.removeprefix(BUILTIN))
            having = [run for run in runs if metric in run.metrics] if floor is not None else []
            if len(having) > 1 and all(run.metrics[metric] == floor for run in having):
                yield f"{metric} is {floor:g} in every run: at its floor, it tells nothing apart.", having


@lru_cache(maxsize=4096)
def floor_of(metric: str) -> float | None:
    from fnmatch import fnmatchcase

    return next((floor for pattern, floor in FLOORS.items() if fnmatchcase(metric, pattern)), None)


@rule("single-seed", "warning", "Configurations with one seed: a difference between them may be chance.")
def single_seed(comparison: Comparison) -> Found:
    groups = comparison.configurations
    single = [run for group in groups if len(group) == 1 for run in group]
    if len(groups) > 1 and single:
        many = "every configuration has" if len(single) == len(groups) else f"{len(single)} of {len(groups)} have"
        yield f"{many} a single seed, so their differences may be chance.", single


@rule("within-seeds", "note", "The best configuration is not told from others by the spread over seeds (Welch's t).")
def within_seeds(comparison: Comparison) -> Found:
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
            who = f"{len(close)} of {len(samples) - 1} other configurations" if len(samples) > 2 else "the other one"
            yield (
                f"{metric}: the best configuration is not told from {who} by its seeds (differences up to {gap:.2g}, "
                f"Welch's t, p > {CONFIDENCE}).",
                runs,
            )


def welch(sample: list[float], others: list[list[float]]) -> list[float]:
    """Two-sided p of Welch's t test (unequal variances) of a sample against each of the others; nan where all are
    equal."""
    import numpy as np

    from analysis.student import two_sided

    def moments(values: list[float]) -> tuple[float, float, int]:
        mean = math.fsum(values) / len(values)
        return mean, math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values), len(values)

    mean, square, n = moments(sample)
    other = np.array([moments(values) for values in others])
    with np.errstate(divide="ignore", invalid="ignore"):
        total = square + other[:, 1]
        t = np.abs(mean - other[:, 0]) / np.sqrt(total)
        df = total**2 / (square**2 / (n - 1) + other[:, 1] ** 2 / (other[:, 2] - 1))
        return [float(p) for p in np.where(total > 0, two_sided(t, df), np.where(mean == other[:, 0], np.nan, 0.0))]
