"""Rules on budgets: what compared runs must have in common."""

from functools import partial
from typing import Any

from analysis.auditing.comparison import Comparison
from analysis.auditing.finding import joined
from analysis.auditing.rules.rule import Found, Rule, Rules
from analysis.auditing.run import Run
from analysis.grouped import grouped
from sae_sweeps.storage.budget import AS_RECORDED, BUDGET, kept_values, unequal

RULES = Rules()


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
    values = {id(run): budget_of(run, key) for run in comparison.compared}
    sentence = unequal(key, values.values(), comparison.varied)
    if sentence:
        yield f"{sentence}.", [run for run in comparison.compared if values[id(run)] is not None]


UNEQUAL = {
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
"""Key of BUDGET -> what its rule, budget-KEY, guards against."""
ERRORS = {"num_tokens": "budget-tokens", "total_steps": "budget-steps"}
"""Those that are errors, with their codes; the others are warnings."""
MEND = {
    "num_tokens": "train them on the same number of tokens",
    "total_steps": "train them for the same number of steps",
    "recon": "compare fvu, or train them with one form",
}
USUAL = "train the others with the same value, or vary it on purpose in one sweep"
for _key, _about in UNEQUAL.items():
    _code, _level = ERRORS.get(_key, f"budget-{_key.replace('_', '-')}"), "error" if _key in ERRORS else "warning"
    RULES.append(Rule(_code, _level, MEND.get(_key, USUAL), False, _about, partial(unequal_budget, _key)))


@RULES.add("budget-recorded", "warning", "they reproduce the record; draw conclusions from the other runs")
def recorded_budgets(comparison: Comparison) -> Found:
    """Runs keep an earlier record's budget on purpose, which is not the one of the runs beside them."""
    keeping = [run for run in comparison.measured if run.as_recorded]
    differing = []
    for key in BUDGET:
        kept, all_values = ([budget_of(run, key) for run in runs] for runs in (keeping, comparison.measured))
        if found := kept_values(key, kept, all_values, comparison.varied):
            differing.append(found)
    if differing:
        yield f"the runs tagged {AS_RECORDED} keep the budgets of their record: {'; '.join(differing)}.", keeping


NEAR = 1.5
"""L0 of two runs at matched sparsity differ by at most this factor."""


@RULES.add("no-control", "warning", "train a baseline at their L0")
def no_control(comparison: Comparison) -> Found:
    """No baseline has the sparsity of the runs that it is compared with, so nothing shows what their method changes."""
    controls = [(run, l0) for run in comparison.baselines if (l0 := run.metrics.get("l0"))]
    alone = [
        run
        for run in comparison.others
        if (l0 := run.metrics.get("l0")) and not any(1 / NEAR <= l0 / other <= NEAR for _, other in controls)
    ]
    if controls and alone:
        listed = joined(
            f"{l0:,.0f}" for l0 in dict.fromkeys(l0 for _, l0 in sorted(controls, key=lambda pair: pair[1]))
        )
        own = joined(f"{l0:,.0f}" for l0 in sorted({run.metrics["l0"] for run in alone}))
        yield (
            f"L0 is {own}, that of the baseline{'s' * (len(controls) > 1)} {listed}: nothing shows what the method "
            "changes.",
            alone,
        )


@RULES.add("budget-seeds", "warning", "train each with the same seeds")
def seed_policy(comparison: Comparison) -> Found:
    """Some configurations were repeated with other seeds than others."""
    seeds = (frozenset(run.config.get("seed") for run in group) - {None} for group in comparison.configurations)
    kinds = grouped((own, group) for own, group in zip(seeds, comparison.configurations, strict=True) if own)
    if len(kinds) > 1:
        listed = ["{" + ", ".join(map(str, sorted(own, key=str))) + "}" for own in kinds]
        shown = ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")
        yield (
            f"the configurations were repeated with different seeds ({shown}): they do not compare.",
            [run for groups in kinds.values() for group in groups for run in group],
        )
