"""Rules on what an imported study lacks."""

import math
import re
from itertools import pairwise
from typing import Any

from analysis.auditing.comparison import Comparison
from analysis.auditing.finding import joined, run_names
from analysis.auditing.rules.rule import Found, Rules
from analysis.auditing.run import Run
from analysis.grouped import grouped
from sae_sweeps.storage.budget import listed

RULES = Rules()


@RULES.add("alone", "warning", "there is nothing to compare it with: run the others")
def alone(comparison: Comparison) -> Found:
    """An imported study has a single run."""
    if comparison.imported and len(comparison.runs) == 1:
        yield "the only run of its study.", comparison.runs


@RULES.add("run-missing", "warning", "find its results, or record why it has none")
def missing_run(comparison: Comparison) -> Found:
    """The numbers of an imported study's runs have a gap."""
    places = {run.place for run in comparison.runs if run.place is not None}
    gap = [str(place) for place in range(min(places, default=0), max(places, default=0)) if place not in places]
    if gap:
        yield f"{run_names(gap)} {'is' if len(gap) == 1 else 'are'} missing between the others.", comparison.runs


@RULES.add(
    "unrecorded",
    "warning",
    "find the logs, or train again: without them it is unknown how far training went",
    each="measured",
)
def unrecorded(run: Run) -> str | None:
    """Steps or final loss of an imported run are not recorded."""
    missing = ["steps"] * (run.steps is None)
    missing += ["final loss"] * ("final_loss" not in run.metrics and not run.diverged)
    return f"no {' and no '.join(missing)} recorded." if missing and run.study and run.steps != 0 else None


@RULES.add("method-unrecorded", "warning", "record the penalty's settings and its loss")
def unrecorded_method(comparison: Comparison) -> Found:
    """The config of an imported run that is no baseline has no penalty."""
    runs = [
        run
        for run in comparison.others
        if run.study and run.config.get("lr_schedule.lr") is not None and not any(map(METHOD.match, run.config))
    ]
    if comparison.baselines and runs:
        yield "the recorded config has no penalty, weight or schedule, so nothing shows that the method was on.", runs


METHOD = re.compile(r"(penalty|schedule|group_layer)(\.|$)")


@RULES.add("confounded", "note", "change one at a time")
def confounded(comparison: Comparison) -> Found:
    """An imported run differs from the one before it in several settings at once."""
    runs = [run for run in comparison.others if run.place is not None]
    for before, run in pairwise(sorted(runs, key=lambda run: run.place or 0)):
        keys = [
            key
            for key in comparison.method_keys
            if key != "num_tokens"
            and None not in (before.config.get(key), run.config.get(key))
            and before.config[key] != run.config[key]
        ]
        names = [key.rpartition(".")[2] for key in keys if key.partition(".")[0] not in keys or "." not in key]
        names += ["steps"] * (None not in (before.steps, run.steps) and before.steps != run.steps)
        if len(names) > 1:
            yield (
                f"differs from {run_names([before.name])} in {joined(names)} at once, so that their effects are mixed.",
                [run],
            )


@RULES.add("loss-only", "warning", "evaluate the others as the baseline was, and compare fvu at matched L0")
def loss_only(comparison: Comparison) -> Found:
    """The final loss is the one figure that a baseline and other runs share, and it contains the penalty."""
    first = {name for run in comparison.baselines for name in run.metrics}
    runs = [run for run in comparison.others if "final_loss" in run.metrics]
    shared = {name for run in runs for name in run.metrics} & first - {"steps", "tokens"}
    informative = {
        name for name in shared if len({run.metrics.get(name) for run in (*comparison.baselines, *runs)} - {None}) > 1
    }
    if runs and informative == {"final_loss"}:
        yield "final_loss is all that separates them from the baseline, and it contains each one's own penalty.", runs


@RULES.add("recon-unknown", "note", "record train.recon")
def unknown_form(comparison: Comparison) -> Found:
    """An imported run's form of the reconstruction loss is not recorded."""
    runs = [run for run in comparison.runs if run.study and run.config.get("train.recon") is None]
    found = grouped((fit[0], (run, fit[1])) for run in runs if (fit := fitting_form(run)))
    for form, fits in found.items():
        yield (
            f"the form of the reconstruction loss is not recorded; the figures fit {form} ({fits[0][1]}).",
            [run for run, _ in fits],
        )


def fitting_form(run: Run) -> tuple[str, str] | None:
    """The form that the loss without its L1 term is closer to, and the figures for it.

    The forms are `squared`, the squared error summed over d_in, and `norm`, its root; the error is the evaluation's.
    """
    loss, mse, d_in = run.metrics.get("final_loss"), run.metrics.get("mse"), run.d_in
    if loss is None or mse is None or d_in is None:
        return None
    weight = run.number("architecture.l1_penalty") if has_l1(run) else 0.0
    rest = loss - (weight or 0.0) * run.metrics.get("l1", 0.0)
    forms = {"squared": mse * d_in, "norm": math.sqrt(mse * d_in)}
    if min(rest, *forms.values()) <= 0:
        return None
    form = min(forms, key=lambda name: abs(math.log(rest / forms[name])))
    shown = " and ".join(f"{value:,.4g} for {name}" for name, value in forms.items())
    return form, f"{rest:,.4g}{' without L1' * bool(weight)}, beside {shown}"


def has_l1(run: Run) -> bool:
    return str(run.config.get("architecture", "")).lower() not in ("topk", "batch_topk")


@RULES.add("unread", "warning", "correct the notes and import again")
def unread(comparison: Comparison) -> Found:
    """An import could not read what looks like a figure."""
    parts = [(run, part) for run in comparison.runs for part in run.recorded.unread]
    if parts:
        shown = joined(f"line {part.get('line')} (`{str(part.get('text', ''))[:40]}`)" for _, part in parts[:4])
        more = f" and {len(parts) - 4} more" if len(parts) > 4 else ""
        yield f"could not be read: {shown}{more}.", [run for run, _ in parts]


@RULES.add("moved", "note", "check it", each="runs")
def moved(run: Run) -> str | None:
    """An import gave results to another run than the one whose heading they are under."""
    return run.recorded.moved or None


@RULES.add("studies-differ", "warning", "compare runs within one study only", across=True)
def studies_differ(comparison: Comparison) -> Found:
    """Runs of several studies are shown together that differ in model, layer, size or steps."""
    from analysis.auditing.rules.budgets import budget_of

    def value(run: Run, key: str) -> Any:
        found = budget_of(run, key)
        fit = fitting_form(run) if key == "recon" and found is None and run.study else None
        return fit[0] if fit else found

    studies = dict.fromkeys(run.study for run in comparison.measured)
    differing = []
    for key in ("model", "layer", "d_sae", "total_steps", "recon"):
        of_study = [
            frozenset(value(run, key) for run in comparison.measured if run.study == study) - {None}
            for study in studies
        ]
        known = {found for found in of_study if found}
        if len(known) > 1:
            differing.append(f"{key} ({listed(set().union(*known))})")
    if len(studies) > 1 and differing:
        yield f"{len(studies)} studies are shown together that differ in {joined(differing)}.", comparison.runs
