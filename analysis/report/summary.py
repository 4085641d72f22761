"""The sentences that open a report: number of runs, what varies, the best values, the targets."""

from collections import Counter

import pandas as pd

from analysis.columns import differing, of_kind
from analysis.metrics import FIRST, TARGETS, direction
from analysis.output.view import labels
from analysis.plots.study import Study
from analysis.tables.marks import best_rows
from analysis.tables.table import Table
from analysis.text import cell, clean
from sae_sweeps.config.evaluations import PREFIXES

SHARED = (
    "model", "layer.index", "layer.hook", "data", "architecture", "architecture.d_sae", "architecture.k", "penalty",
)  # fmt: skip
"""Keys that describe what was trained; listed where all runs have the same value."""
SHORT = {"layer.index": "layer", "layer.hook": "hook"}
LISTED = 6
"""The most values of a key that are listed; beyond it their number is given."""
STATES = ("completed", "running", "queued", "diverged", "failed")


def sentences(study: Study, unfit: dict[str, str]) -> list[str]:
    """The summary as sentences: states, varied and shared keys, the best of each metric, and targets reached.

    unfit: run ids that are never called best -> the reason.
    """
    full = study.full
    table = Table(full, unfit=unfit)
    lines = [line for line in (states(full), varied(full), shared(full)) if line]
    if not (full["run", "state"] == "completed").any():
        return [*lines, "No run has results yet; the curves show how far the training came."]
    for name in FIRST:
        if name in ("l0", "penalty_loss", "tokens_to_fvu", "seconds_to_fvu") or ("metrics", name) not in full.columns:
            continue
        if line := best(study, table, name):
            lines.append(line)
    return lines + targets(full)


def states(full: pd.DataFrame) -> str:
    """The number of runs in each state."""
    counts = Counter(full["run", "state"])
    order = [state for state in STATES if state in counts] + [state for state in counts if state not in STATES]
    runs = "1 run" if len(full) == 1 else f"{len(full):,} runs"
    return f"{runs}: {', '.join(f'{counts[state]:,} {clean(state, 20)}' for state in order)}."


def varied(full: pd.DataFrame) -> str:
    """The keys in which runs differ, with their values; empty where there are none."""
    columns = differing(full)
    names, parts = labels(columns), []
    for column in columns:
        values = list(dict.fromkeys(cell(v, "config") for v in full[column] if v == v))
        listed = ", ".join(values) if len(values) <= LISTED else f"{len(values)} values"
        parts.append(f"{names[column]} ({clean(listed, 120)})")
    return f"What varies: {'; '.join(parts)}." if parts else ""


def shared(full: pd.DataFrame) -> str:
    """The keys of SHARED and num_tokens that have one value in all runs; empty where there are none."""
    parts = []
    for name in (*SHARED, "num_tokens"):
        if ("config", name) in full.columns:
            values = {cell(v, "config") for v in full["config", name] if v == v}
            if len(values) == 1:
                parts.append(f"{SHORT.get(name, name.removeprefix('architecture.'))} {clean(values.pop(), 60)}")
    return f"The same in all: {', '.join(parts)}." if parts else ""


def best(study: Study, table: Table, name: str) -> str:
    """The best value of a metric and its range; with a warning where seeds differ as much as variants do."""
    rows = best_rows(table, ("metrics", name))
    column = study.column(name)
    if not rows or len(rows) == len(column):
        return ""
    values = [v for v in column if v == v]
    variant_of = {row: variant for variant in study.variants for row in variant.rows}
    row = min(rows)
    others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    better = {"lower": "lowest", "higher": "highest", "one": "nearest to 1"}[direction(name) or "lower"]
    sentence = (
        f"{name}, {better}: {column[row]:.4g} ({clean(variant_of[row].label, 60)}{others}); "
        f"all runs from {min(values):.4g} to {max(values):.4g}."
    )
    means = [study.mean(variant, name) for variant in study.variants if study.values(variant, name)]
    spreads = [max(v) - min(v) for variant in study.variants if len(v := study.values(variant, name)) > 1]
    if spreads and len(means) > 1:
        between, within = max(means) - min(means), sum(spreads) / len(spreads)
        if between <= within:
            sentence += f" Seeds alone make as much difference ({within:.2g}) as configurations do ({between:.2g})."
    return sentence


def targets(full: pd.DataFrame) -> list[str]:
    """How many runs reach the target of each metric that has one."""
    found = []
    for _, name in of_kind(full, "metrics"):
        if name not in TARGETS:
            continue
        better, target = TARGETS[name]
        values = [v for v in full["metrics", name] if v == v]
        n = sum(v < target if better == "lower" else v > target for v in values)
        side = "below" if better == "lower" else "above"
        found.append(f"Target for {name} ({side} {target:g}): reached by {n} of {len(values)} runs.")
    measured = {name for _, name in of_kind(full, "metrics")}
    if not found and any(prefix + name in measured for prefix in PREFIXES.values() for name in TARGETS):
        found.append("Targets are set for SAEBench's data; these runs were judged on other data.")
    return found
