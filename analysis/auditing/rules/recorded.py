"""Rules that compare the recorded config with the values that were used and logged."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from analysis.auditing.rules.rule import Rules
from analysis.auditing.run import Run

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


def lr_settings(run: Run) -> Settings:
    """The learning-rate schedule that a run's config records."""
    head = "lr_schedule."
    keys = ((key.removeprefix(head), value) for key, value in run.config.items() if key.startswith(head))
    return (*sorted(keys), ("name", run.config.get("lr_schedule")))


RATE = "lr_schedule.lr"


@RULES.add("lr-used", "error", "report the one that was used, and compare runs of one learning rate", each="runs")
def learning_rate_used(run: Run) -> Iterator[str]:
    """The learning rate that was used is not the one that is recorded."""
    if run.measured and (sentence := other_rate(run)):
        yield sentence
    used, logged = run.number(RATE), run.number(f"{RATE}_logged")
    if used is not None and logged is not None and not math.isclose(used, logged, rel_tol=1e-6):
        yield f"lr={used:g} was used, lr={logged:g} is logged with the results."


def other_rate(run: Run) -> str | None:
    """How the logged learning rates differ from what the recorded schedule gives, or None."""
    recorded = run.number(RATE)
    used = [value for value in run.evidence.logged("lr") if value == value]
    if recorded is None or not used:
        return None
    steps, total = run.evidence.logged("step"), run.total_steps
    rates = expected_rates(lr_settings(run), tuple(steps), total) if total and len(steps) == len(used) else None
    if rates is None:
        same = math.isclose(max(used), recorded, rel_tol=0.01)
        return None if same else f"lr={recorded:g} is recorded, but the log peaks at {max(used):g}."
    for step, value, expected in zip(steps, used, rates, strict=True):
        if not math.isclose(value, expected, rel_tol=1e-3, abs_tol=1e-12):
            means = f"lr={recorded:g} means a learning rate of {expected:.3g} at step {step:.0f}"
            return f"{means}, the log has {value:.3g}."
    return None


@RULES.add("lr-peak", "warning", "shorten the warm-up or train for longer", each="measured")
def never_peaks(run: Run) -> str | None:
    """Warm-up and decay leave no room for the learning rate to reach its peak."""
    recorded, total = run.number(RATE), run.total_steps
    if not recorded or not total or run.source is not None:
        return None
    peak = highest(lr_settings(run), int(total))
    if peak is None or peak >= 0.999 * recorded:
        return None
    return f"the learning rate peaks at {peak:.3g}, never at lr={recorded:g}, in {total:,} steps."


@RULES.add("k-used", "error", "report the one that was used", each="measured")
def k_used(run: Run) -> str | None:
    """The k in metrics.jsonl is not the one that the config records."""
    recorded, used = run.number("architecture.k"), run.evidence.last("k")
    if recorded is None or run.config.get("architecture.k_start") is not None or used is None:
        return None
    differs = abs(used - recorded) > 0.5  # never of nan
    return f"k={recorded:g} is recorded, but the last step was taken with k={used:g}." if differs else None


@RULES.add("steps-done", "error", "report the steps that it took", each="measured")
def steps_done(run: Run) -> str | None:
    """A completed run took another number of steps than its config gives."""
    tokens, batch = run.number("num_tokens"), run.number("batch_size")
    if tokens is None or not batch or run.steps is None or run.state != "completed" or tokens // batch == run.steps:
        return None
    return f"its config means {tokens // batch:,.0f} steps, it took {run.steps:,.0f}."


@RULES.add("logged-unused", "warning", "leave it out of tables and notes", each="runs")
def logged_unused(run: Run) -> Iterator[str]:
    """A value is logged that the run did not use."""
    for key, logged in run.config.items():
        name = key.removesuffix("_logged")
        if name in (key, RATE) or logged is None:
            continue
        used = run.config.get(name)
        if used is None or not math.isclose(float(used), float(logged)):
            what = "nothing used it" if used is None else f"{used:g} was used"
            yield f"{name.rpartition('.')[2]}={logged:g} is logged, but {what}."


@RULES.add("import-doubt", "warning", "correct the notes", each="runs")
def import_doubt(run: Run) -> list[str]:
    """An import found a number doubtful."""
    return [f"{warning}." for warning in run.warnings if run.source]
