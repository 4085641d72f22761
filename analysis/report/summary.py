"""What a sweep found, in plain words."""

from collections import Counter
from typing import TYPE_CHECKING

from analysis.columns import differing, of_kind
from analysis.metrics import FIRST, TARGETS, direction
from analysis.output.view import labels
from analysis.plots.study import Study
from analysis.tables.marks import best_rows
from analysis.tables.table import Table
from analysis.text import cell, clean
from sae_sweeps.config.evaluations import BUILTIN

if TYPE_CHECKING:
    import pandas as pd

SAID = ("model", "layer.index", "layer.hook", "data", "architecture", "architecture.d_sae", "architecture.k", "penalty")
"""Keys that say what was trained, where all runs have them alike."""
SHORT = {"layer.index": "layer", "layer.hook": "hook"}
LISTED = 6
"""Values that are listed, at most."""
STATES = ("completed", "running", "queued", "diverged", "failed")


def sentences(study: Study, unfit: dict[str, str]) -> list[str]:
    """How many runs there are, what varies, what came out best, and whether the seeds allow to say so.

    unfit: runs that are never called best, by id, and why.
    """
    full = study.full
    table = Table(full, unfit=unfit)
    said = [states(full)]
    said += [told] if (told := varied(full)) else []
    said += [told] if (told := shared(full)) else []
    if not (full["run", "state"] == "completed").any():
        return [*said, "No run has results yet; the curves show how far the training came."]
    for name in FIRST:
        if name in ("l0", "penalty_loss", "tokens_to_fvu", "seconds_to_fvu") or ("metrics", name) not in full.columns:
            continue
        said += [told] if (told := best(study, table, name)) else []
    return said + targets(full)


def states(full: "pd.DataFrame") -> str:
    counts = Counter(full["run", "state"])
    order = [state for state in STATES if state in counts] + [state for state in counts if state not in STATES]
    runs = "1 run" if len(full) == 1 else f"{len(full):,} runs"
    return f"{runs}: {', '.join(f'{counts[state]:,} {clean(state, 20)}' for state in order)}."


def varied(full: "pd.DataFrame") -> str:
    columns = differing(full)
    names, told = labels(columns), []
    for column in columns:
        values = list(dict.fromkeys(cell(v, "config") for v in full[column] if v == v))
        listed = ", ".join(values) if len(values) <= LISTED else f"{len(values)} values"
        told.append(f"{names[column]} ({clean(listed, 120)})")
    return f"What varies: {'; '.join(told)}." if told else ""


def shared(full: "pd.DataFrame") -> str:
    told = []
    for name in (*SAID, "num_tokens"):
        if ("config", name) in full.columns:
            values = {cell(v, "config") for v in full["config", name] if v == v}
            if len(values) == 1:
                told.append(f"{SHORT.get(name, name.removeprefix('architecture.'))} {clean(values.pop(), 60)}")
    return f"The same in all: {', '.join(told)}." if told else ""


def best(study: Study, table: Table, name: str) -> str:
    """The best of a metric, and whether variants differ by more than their seeds do."""
    rows = best_rows(table, ("metrics", name))
    column = study.column(name)
    if not rows or len(rows) == len(column):
        return ""
    values = [v for v in column if v == v]
    variant_of = {row: variant for variant in study.variants for row in variant.rows}
    row = min(rows)
    others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    better = {"lower": "lowest", "higher": "highest", "one": "nearest to 1"}[direction(name) or "lower"]
    told = (
        f"{name}, {better}: {column[row]:.4g} ({clean(variant_of[row].label, 60)}{others}); "
        f"all runs from {min(values):.4g} to {max(values):.4g}."
    )
    means = [study.mean(variant, name) for variant in study.variants if study.values(variant, name)]
    spreads = [max(v) - min(v) for variant in study.variants if len(v := study.values(variant, name)) > 1]
    if spreads and len(means) > 1:
        between, within = max(means) - min(means), sum(spreads) / len(spreads)
        if between <= within:
            told += f" Seeds alone make as much difference ({within:.2g}) as configurations do ({between:.2g})."
    return told


def targets(full: "pd.DataFrame") -> list[str]:
    said = []
    for _, name in of_kind(full, "metrics"):
        if name not in TARGETS:
            continue
        better, target = TARGETS[name]
        values = [v for v in full["metrics", name] if v == v]
        n = sum(v < target if better == "lower" else v > target for v in values)
        side = "below" if better == "lower" else "above"
        said.append(f"Target for {name} ({side} {target:g}): reached by {n} of {len(values)} runs.")
    measured = {name for _, name in of_kind(full, "metrics")}
    if not said and any(BUILTIN + name in measured for name in TARGETS):
        said.append("Targets are set for SAEBench's data; these runs were judged on built-in data.")
    return said
