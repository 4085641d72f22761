"""Rules on budgets: what compared runs must have in common."""

from functools import partial
from typing import Any

from analysis.auditing.comparison import Comparison
from analysis.auditing.rules.rule import Found, Rule, Rules
from analysis.auditing.run import Run
from sae_sweeps.storage.budget import BUDGET, unequal

RULES = Rules()


LEVEL_OF = {"num_tokens": "error", "total_steps": "error"}
"""The rest of BUDGET is a warning."""


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


@RULES.add("budget-seeds", "warning", "Some configurations were repeated with other seeds than others.")
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
