"""Rules that compare the recorded config and prose with the values in the logs."""

import math
import re
from decimal import Decimal
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


@RULES.add("lr-used", "error", "The learning rate in metrics.jsonl is not the one that the config records.")
def learning_rate_used(comparison: Comparison) -> Found:
    settings = lr_settings(comparison)
    found = ((run, other_rate(run, own)) for run, own in zip(comparison.measured, settings, strict=True))
    yield from by_sentence((run, sentence) for run, sentence in found if sentence)


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


@RULES.add("lr-peak", "warning", "Warm-up and decay leave no room for the learning rate to reach its peak.")
def never_peaks(comparison: Comparison) -> Found:
    found: dict[str, list[Run]] = {}
    for run, settings in zip(comparison.measured, lr_settings(comparison), strict=True):
        recorded, total = number(run.config.get("lr_schedule.lr")), run.total_steps
        peak = highest(settings, int(total)) if recorded and total and run.source is None else None
        if peak is not None and recorded is not None and peak < 0.999 * recorded:
            sentence = f"the learning rate peaks at {peak:.3g}, never at lr={recorded:g}, in {total:,} steps."
            found.setdefault(sentence, []).append(run)
    yield from found.items()


@RULES.add("k-used", "error", "The k in metrics.jsonl is not the one that the config records.")
def k_used(comparison: Comparison) -> Found:
    for run in comparison.measured:
        recorded = number(run.config.get("architecture.k"))
        used = run.evidence.last("k")
        if recorded is None or run.config.get("architecture.k_start") is not None or used is None:
            continue
        if abs(used - recorded) > 0.5:  # never of nan
            yield f"k={recorded:g} is recorded, but the last step was taken with k={used:g}.", [run]


@RULES.add("steps-done", "error", "A completed run took another number of steps than its config gives.")
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
"""Patterns that find a recorded number in prose."""


@RULES.add("prose-number", "warning", "The description or title gives a number that is not the recorded one.")
def prose_number(comparison: Comparison) -> Found:
    for run in comparison.runs:
        text = f"{run.title}. {run.description}"
        for key, pattern in MENTIONS.items():
            recorded = [
                value
                for value in map(number, (run.config.get(key), run.steps if key == "steps" else run.metrics.get(key)))
                if value is not None
            ]
            written = re.findall(pattern, text, re.IGNORECASE) if recorded else []
            if written and not any(agrees(number_text, value) for number_text in written for value in recorded):
                name = key.rpartition(".")[2].replace("index", "layer")
                yield f"its text has {name} {written[0]}, its record {recorded[0]:g}.", [run]


def agrees(number_text: str, value: float) -> bool:
    """Whether a number in prose is the value, rounded to the digits that the prose has."""
    written = Decimal(number_text.replace(",", "").rstrip("."))
    exponent = written.as_tuple().exponent
    half_a_digit = 0.5 * 10.0 ** (exponent if isinstance(exponent, int) else 0)
    return abs(float(written) - value) <= half_a_digit * (1 + 1e-6)


PRAISE = r"(?<!not )(?<!never )(?<!less )\b(stable|stably|stability|converged|converges|smoothly|successfully)\b"


@RULES.add("prose-stable", "error", "A text praises a run as stable or converged whose loss is not a number.")
def praised(comparison: Comparison) -> Found:
    for run in comparison.runs:
        word = re.search(PRAISE, f"{run.title}. {run.description}", re.IGNORECASE)
        if word and run.diverged:
            yield f"its text has `{word[1]}`, its loss is not a number.", [run]


@RULES.add("import-doubt", "warning", "An import found a number doubtful.")
def import_doubt(comparison: Comparison) -> Found:
    yield from by_sentence((run, f"{warning}.") for run in comparison.runs if run.source for warning in run.warnings)
