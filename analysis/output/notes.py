"""Run notes as text, one block per run.

    ## Run 3: penalty=ortho lambda2_max=0.5
    Varied: {'penalty.lambda2_max': 0.5}
    Results: {'fvu': 0.1984, 'l0': 32.0}
    Description: 400 steps of 1,024 tokens ...

The dicts are Python literals. Text from runs is put on one line or indented, so that it is never read as a heading.
`analysis.reading.notes.parse_notes` reads these notes and ones written by hand.
"""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.text import cell, clean
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.budget import BUDGET

if TYPE_CHECKING:
    import pandas as pd

    from analysis.auditing.finding import Finding
    from analysis.auditing.run import Run

WIDTH = 100
COMPARED = 8
"""The most metrics in a comparison with the baseline."""
OMITTED = (
    "outputs", "device", "title", "description", "dry_run", "logger", "cluster", "activations", "eval", "tags",
)  # fmt: skip
"""Config keys and groups that notes leave out: places, hardware, logging, evaluations."""
COMMON = (
    "model", "model.path", "model.d_in", "architecture", "architecture.l1_penalty", "penalty", "schedule",
    "lr_schedule", "lr_schedule.lr", "lr_schedule.warmup", "seed",
)  # fmt: skip
"""Config keys that are listed once, with the budget, where all runs have the same value."""
PENALTY_WORDS = {"penalty.lambda2_max": "weight", "schedule": "schedule"}


def notes(full: "pd.DataFrame", baseline: str | None = None, varied: tuple[str, ...] = ()) -> str:
    """Notes of the runs of a frame of `records`, in its order. The same runs give the same text.

    Args:
        baseline: a run id (or its beginning) or a title; by default the first run without a penalty, else the first
            with results.
        varied: keys that the sweep varies, for the audit's warnings.

    Raises ConfigError for a baseline that is no run, or several.
    """
    from analysis.auditing.audit import audit
    from analysis.auditing.run import runs_of

    runs, findings = runs_of(full), audit(full, varied)
    for run in runs:
        if run.steps is not None and "steps" not in run.metrics:
            run.config["steps"] = int(run.steps)
    base, reason = chosen_baseline(runs, baseline)
    keys = [key for key in all_keys(runs) if key.partition(".")[0] not in OMITTED]
    differing = [key for key in keys if len({str(run.config.get(key)) for run in runs}) > 1]
    common = common_config(runs[0], [key for key in keys if key not in differing])
    of_all = [finding for finding in findings if len(finding.runs) == len(runs) > 1 or not finding.runs]
    of_some = [finding for finding in findings if finding not in of_all]

    lines = ["# Run notes", "", f"{len(runs)} run{'s' * (len(runs) != 1)}."]
    if base is not None and len(runs) > 1:
        lines += wrap(f"Baseline: {named(base)}, {reason}.")
    lines += literal("In common", common) if common else []
    lines += warning_lines(of_all)
    for number, run in enumerate(runs):
        lines += ["", "", f"## Run {number}: {clean(run.title or run.run_id, 200)}", ""]
        lines += run_lines(run, differing, base)
        lines += warning_lines([finding for finding in of_some if run.run_id in finding.runs])
    return "\n".join(lines) + "\n"


def run_lines(run: "Run", differing: list[str], base: "Run | None") -> list[str]:
    """The lines of one run below its heading: id, state, varied keys, results, description, comparison with `base`."""
    lines = [f"Run id: {clean(run.run_id)}"]
    if run.state != "completed":
        at = f" at step {run.step:,} of {run.total_steps:,}" if run.step and run.total_steps else ""
        lines += wrap(clean(f"State: {run.state}{at}{f': {run.error}' if run.error else ''}", 2_000))
    varied = {key: run.config[key] for key in differing if key in run.config}
    lines += literal("Varied", varied) if varied else []
    lines += literal("Results", run.metrics | dict.fromkeys(run.nulls))
    lines += ["", *wrap(f"Description: {described(run)}")]
    if base is not None and base is not run and base.measured and run.measured:
        lines += ["", *wrap(f"Against the baseline: {compared(run, base)}")]
    return lines


def common_config(run: "Run", keys: list[str]) -> dict[str, Any]:
    """The values of those of `keys` that belong to COMMON or to the budget, in that order."""
    budget = [place.removesuffix(".name") for place in BUDGET.values()]
    return {key: run.config[key] for key in (*COMMON, *budget, "steps") if key in keys}


def all_keys(runs: list["Run"]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.config))


def chosen_baseline(runs: list["Run"], word: str | None) -> tuple["Run | None", str]:
    """The run that others are compared with, and the reason for the choice."""
    if word is not None:
        found = [run for run in runs if word in (run.run_id, run.title)]
        found = found or [run for run in runs if run.run_id.startswith(word)]
        if len(found) != 1:
            what = "no run" if not found else f"{len(found)} runs"
            raise ConfigError(f"--baseline {clean(word)}: {what} of these paths; give a run id or a whole title.")
        return found[0], "as requested"
    measured = [run for run in runs if run.measured]
    plain = [run for run in measured if run.config.get("penalty", "none") == "none"]
    if plain:
        return plain[0], "the first run without a penalty"
    return (measured[0], "the first run with results") if measured else (None, "")


def named(run: "Run") -> str:
    """The title with the run id, or the run id alone."""
    return f"{clean(run.title, 200)} ({clean(run.run_id)})" if run.title else clean(run.run_id)


def described(run: "Run") -> str:
    """The description of a run as recorded, or else composed from its config."""
    if run.description:
        return clean(run.description, 20_000)
    parts = [sae_description(run.config), penalty_description(run.config)]
    if run.steps is not None:
        batch = run.config.get("batch_size")
        parts.append(f"trained for {run.steps:,.0f} steps" + (f" of {batch:,} tokens" if batch else ""))
    return clean(", ".join(parts) + (f"; {run.source}" if run.source else "") + ".", 2_000)


def sae_description(config: dict[str, Any]) -> str:
    """`topk SAE of 2,048 features (k = 32) on MODEL layer N`, as far as the config has these keys."""
    get = config.get
    text = f"{get('architecture') or 'an'} SAE"
    text += f" of {get('architecture.d_sae'):,} features" if get("architecture.d_sae") else ""
    text += f" (k = {get('architecture.k')})" if get("architecture.k") is not None else ""
    text += f" on {get('model')}" if get("model") else ""
    if get("layer.index") is not None and get("model") != "synthetic":
        text += f" layer {get('layer.index')}"
    return text


def penalty_description(config: dict[str, Any]) -> str:
    """`with penalty NAME (weight X, schedule Y)`, or `without a penalty`."""
    penalty = config.get("penalty", "none")
    if penalty == "none":
        return "without a penalty"
    settings = [f"{name} {config[key]}" for key, name in PENALTY_WORDS.items() if config.get(key) is not None]
    return f"with penalty {penalty}" + (f" ({', '.join(settings)})" if settings else "")


def compared(run: "Run", base: "Run") -> str:
    """The differences of two runs in the metrics that have a direction, those of FIRST first, COMPARED at most."""
    from analysis.metrics import FIRST, badness, direction

    names = [name for name in FIRST if direction(name)] + [name for name in run.metrics if name not in FIRST]
    parts = []
    for name in dict.fromkeys(names):
        if direction(name) and name in run.metrics and name in base.metrics:
            here, there = run.metrics[name], base.metrics[name]
            better = badness(name, there) - badness(name, here)
            how = "equal" if here == there else f"{abs(here - there):.3g} {'higher' if here > there else 'lower'}"
            verdict = "" if better == 0 else f", {'better' if better > 0 else 'worse'}"
            parts.append(f"{name} {cell(here)} ({how}{verdict})")
    more = f"; and {len(parts) - COMPARED} more" if len(parts) > COMPARED else ""
    return ("; ".join(parts[:COMPARED]) + more or "no metric in common") + "."


def literal(label: str, content: dict[str, Any]) -> list[str]:
    """`label: {...}` as lines, a Python literal."""
    if not content:
        return [f"{label}: {{}}"]
    items = [f"{key!r}: {plain(value)!r}" for key, value in content.items()]
    lines, line = [], f"{label}: {{"
    for place, item in enumerate(items):
        last = place == len(items) - 1
        piece = item + ("}" if last else ",")
        if len(line) + len(piece) + 1 > WIDTH and not line.endswith("{"):
            lines.append(line)
            line = "    " + piece
        else:
            line += piece if line.endswith("{") else " " + piece
    return [*lines, line]


def plain(value: Any) -> Any:
    """The value as a Python int, float, bool, str or None, whose repr is a literal."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value.is_integer() and abs(value) >= 1000:
        value = int(value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def warning_lines(findings: Sequence["Finding"]) -> list[str]:
    """A blank line and the findings as a `Warnings:` list; empty where there are none."""
    items = [f"- {clean(f'{finding.level}, {finding.code}: {finding.sentence}', 400)}" for finding in findings]
    return ["", "Warnings:", *(line for item in items for line in wrap(item))] if items else []


def wrap(words: str) -> list[str]:
    """Text in lines of WIDTH; all but the first are indented, so that none is read as a heading or a label."""
    return textwrap.wrap(words, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False) or [""]
