"""The section of one run: facts, config differences, curves, scores and provenance."""

import json
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.columns import UNSHOWN
from analysis.grouped import grouped
from analysis.metrics import group
from analysis.plots.study import Study, Variant
from analysis.report.defaults import defaults_of
from analysis.report.sparkline import sparkline
from analysis.text import cell, clean
from sae_sweeps.storage.run_folder import DAMAGED

CURVES = ("loss", "fvu", "held_out_fvu", "held_out_fvu_per_token", "l0", "dead_features", "recon_loss", "sparsity_loss",
          "penalty_loss", "penalty_weight", "lr", "k", "grad_norm/total")  # fmt: skip
MORE = 6
"""The most terms of penalties that are drawn after CURVES."""


@dataclass
class Section:
    """What the page shows of one run; text has no control characters, and is not yet escaped for HTML."""

    anchor: str
    run_id: str
    label: str
    state: str
    progress: str
    folder: str
    headline: str
    description: list[str]
    """Its lines."""
    facts: list[tuple[str, str]]
    against_baseline: list[tuple[str, str, str]]
    """Key, baseline, here."""
    against_defaults: list[tuple[str, str, str]]
    curves: list[tuple[str, str, str]]
    """Name, SVG (markup of our own), first and last value."""
    scores: list[tuple[str, list[tuple[str, str]]]]
    """Group, then names and values."""
    made: list[tuple[str, str]] = field(default_factory=list)
    """Provenance that is not the same in all runs."""
    warnings: list[str] = field(default_factory=list)


Values = dict[str, dict[str, Any]]
"""A row's values under run, config and metrics; keys that the run does not have are absent."""


def values_of(full: pd.DataFrame, row: int) -> Values:
    found: Values = {"run": {}, "config": {}, "metrics": {}}
    for (kind, name), value in zip(full.columns, full.iloc[row].tolist(), strict=True):
        if kind == "run" or value is None or value == value:
            found[kind][name] = value
    return found


def is_own(study: Study, row: int) -> bool:
    """Whether the row is a run's folder, not an imported record."""
    return study.full["run", "source"].iloc[row] in (None, "run")


def section(
    study: Study, row: int, variant: Variant, baseline: dict[str, Any] | None, common: dict[str, str]
) -> Section:
    values = values_of(study.full, row)
    run, config, metrics = values["run"], values["config"], values["metrics"]
    status = study.folder(row).status() if is_own(study, row) and study.state(row) != DAMAGED else None
    step, total = run["step"], run["total_steps"]
    facts = []
    if total:
        facts.append(("steps", f"{step or 0:,} of {total:,}"))
    for key in ("started", "ended", "host", "slurm_job_id"):
        if status and status.get(key):
            facts.append((key.replace("_", " "), clean(status[key], 60)))
    if run["error"]:
        facts.append(("error", clean(run["error"], 400)))
    made = [(key, value) for key, value in provenance(run["provenance"]).items() if common.get(key) != value]
    shown = [f"{name} {metrics[name]:.4g}" for name in ("fvu", "ce_loss_score", "l0") if name in metrics]
    done = f"{100 * (step or 0) / total:.0f} %" if total and run["state"] != "completed" else ""
    return Section(
        anchor=f"run-{row + 1}",
        run_id=clean(run["run_id"], 40),
        label=clean(run["title"] or variant.label, 160),
        state=clean(run["state"], 20),
        progress=done,
        folder=clean(run["folder"], 300),
        headline=", ".join(shown),
        description=[clean(line, 2_000) for line in (run["description"] or "").splitlines()],
        facts=facts,
        against_baseline=[] if baseline is None else differences(baseline, config, shown_key),
        against_defaults=differences(defaults_of(config), config, shown_key, missing=False),
        curves=curves_of(study, row),
        scores=scores_of(metrics),
        made=made,
        warnings=[clean(warning, 400) for warning in run["warnings"]],
    )


def shown_key(key: str) -> bool:
    return key.partition(".")[0] not in UNSHOWN


def differences(
    before: dict[str, Any], here: dict[str, Any], shown: Any, missing: bool = True
) -> list[tuple[str, str, str]]:
    """Keys with different values: name, before, here. Without `missing`, keys that only one side has are left out."""
    keys = [key for key in (here | before) if shown(key) and (missing or (key in before and key in here))]
    found = []
    for key in keys:
        a = shown_value(before[key]) if key in before else "–"
        b = shown_value(here[key]) if key in here else "–"
        if a != b:
            found.append((clean(key, 80), a, b))
    return found


def shown_value(value: Any) -> str:
    if isinstance(value, list | dict):
        value = json.dumps(value)
    return clean(value, 120) if isinstance(value, str) else cell(value, "config")


def curves_of(study: Study, row: int) -> list[tuple[str, str, str]]:
    if not is_own(study, row):
        return []
    curves = study.curves(row)
    terms = [name for name in curves if name.startswith("penalty/")][:MORE]
    found = []
    for name in (*CURVES, *terms):
        if name not in curves:
            continue
        values = curves[name][curves[name] == curves[name]]
        if not len(values) or not values.any():
            continue
        drawn = sparkline(curves["step"], curves[name])
        found.append((clean(name, 40), drawn, f"{short(values[0])} → {short(values[-1])}"))
    return found


def short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def scores_of(metrics: dict[str, float]) -> list[tuple[str, list[tuple[str, str]]]]:
    shown = {name: cell(value, "whole" if value == int(value) else "number") for name, value in metrics.items()}
    return list(grouped((group(name), (clean(name, 60), words)) for name, words in shown.items()).items())


def provenance(made: Any) -> dict[str, str]:
    """Dotted names and words."""
    flat: dict[str, str] = {}
    for key, value in made.items() if isinstance(made, dict) else ():
        if isinstance(value, dict):
            flat |= {f"{clean(key, 30)} {name}": words for name, words in provenance(value).items()}
        elif value is not None:
            flat[clean(key, 40)] = cell(value, "config") if isinstance(value, int | float) else clean(value, 120)
    return flat


def common_provenance(study: Study) -> dict[str, str]:
    """The provenance with one value in all runs that have any."""
    all_made = [made for value in study.full["run", "provenance"] if (made := provenance(value))]
    if not all_made:
        return {}
    first, *rest = all_made
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in rest)}
