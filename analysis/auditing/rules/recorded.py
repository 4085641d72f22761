"""Rules that compare the recorded config with the values that were used and logged."""

import math
from functools import lru_cache
from typing import Any

from analysis.auditing.comparison import Comparison
from analysis.auditing.rules.rule import Found, Rules, by_sentence
from analysis.auditing.run import Run, number

RULES = Rules()


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


RATE = "lr_schedule.lr"


@RULES.add(
    "lr-used",
    "error",
    "The learning rate that was used is not the one that is recorded.",
    "report the one that was used, and compare runs of one learning rate",
)
def learning_rate_used(comparison: Comparison) -> Found:
    settings = lr_settings(comparison)
    found = [(run, other_rate(run, own)) for run, own in zip(comparison.measured, settings, strict=True)]
    for run in comparison.runs:
        used, logged = number(run.config.get(RATE)), number(run.config.get(f"{RATE}_logged"))
        if used is not None and logged is not None and not math.isclose(used, logged, rel_tol=1e-6):
            found.append((run, f"lr={used:g} was used, lr={logged:g} is logged with the results."))
    yield from by_sentence((run, sentence) for run, sentence in found if sentence)


def other_rate(run: Run, settings: Settings) -> str | None:
    """How the logged learning rates differ from what the recorded schedule gives, or None."""
    recorded = number(run.config.get(RATE))
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


@RULES.add(
    "lr-peak",
    "warning",
    "Warm-up and decay leave no room for the learning rate to reach its peak.",
    "shorten the warm-up or train for longer",
)
def never_peaks(comparison: Comparison) -> Found:
    found: dict[str, list[Run]] = {}
    for run, settings in zip(comparison.measured, lr_settings(comparison), strict=True):
        recorded, total = number(run.config.get(RATE)), run.total_steps
        peak = highest(settings, int(total)) if recorded and total and run.source is None else None
        if peak is not None and recorded is not None and peak < 0.999 * recorded:
            sentence = f"the learning rate peaks at {peak:.3g}, never at lr={recorded:g}, in {total:,} steps."
            found.setdefault(sentence, []).append(run)
    yield from found.items()


@RULES.add(
    "k-used", "error", "The k in metrics.jsonl is not the one that the config records.", "report the one that was used"
)
def k_used(comparison: Comparison) -> Found:
    for run in comparison.measured:
        recorded = number(run.config.get("architecture.k"))
        used = run.evidence.last("k")
        if recorded is None or run.config.get("architecture.k_start") is not None or used is None:
            continue
        if abs(used - recorded) > 0.5:  # never of nan
            yield f"k={recorded:g} is recorded, but the last step was taken with k={used:g}.", [run]


@RULES.add(
    "steps-done",
    "error",
    "A completed run took another number of steps than its config gives.",
    "report the steps that it took",
)
def steps_done(comparison: Comparison) -> Found:
    for run in comparison.measured:
        tokens, batch = number(run.config.get("num_tokens")), number(run.config.get("batch_size"))
        if tokens is None or not batch or run.steps is None or run.state != "completed":
            continue
        planned = tokens // batch
        if planned != run.steps:
            yield f"its config means {planned:,.0f} steps, it took {run.steps:,.0f}.", [run]


@RULES.add(
    "logged-unused",
    "warning",
    "A value is logged that the run did not use.",
    "leave it out of tables and notes",
)
def logged_unused(comparison: Comparison) -> Found:
    found: dict[str, list[Run]] = {}
    for run in comparison.runs:
        for key, logged in run.config.items():
            name = key.removesuffix("_logged")
            if name == key or name == RATE or logged is None:
                continue
            used = run.config.get(name)
            if used is None or not math.isclose(float(used), float(logged)):
                what = "nothing used it" if used is None else f"{used:g} was used"
                found.setdefault(f"{name.rpartition('.')[2]}={logged:g} is logged, but {what}.", []).append(run)
    yield from found.items()


@RULES.add("import-doubt", "warning", "An import found a number doubtful.", "correct the notes")
def import_doubt(comparison: Comparison) -> Found:
    yield from by_sentence((run, f"{warning}.") for run in comparison.runs if run.source for warning in run.warnings)
