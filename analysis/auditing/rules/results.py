"""Rules that find runs without valid results: untrained, dead, dense, diverged, unfinished."""

import re
from collections.abc import Iterator
from functools import lru_cache

from analysis.auditing.comparison import Comparison
from analysis.auditing.rules.rule import Found, Rules
from analysis.auditing.run import Run
from analysis.grouped import grouped
from sae_sweeps.config.data import TOP_VARIANCE
from sae_sweeps.config.evaluations import plain_name
from sae_sweeps.storage.run_folder import DAMAGED

RULES = Rules()


ENDED_EARLY = ("failed", "interrupted", "preempted", "cancelled", "lost")
PENDING = ("queued", "running")
SPARSE_SHARE = 0.1
"""L0 above this share of d_sae is not sparse."""
PERFECT = 0.999
"""A CE score that only an SAE which is not sparse reaches."""


@RULES.add("never-trained", "error", "train it, or leave it out of every comparison", each="runs")
def never_trained(run: Run) -> str | None:
    """A run of 0 steps is compared with trained ones."""
    shown = run.steps == 0 and (run.measured or run.source)
    return "0 steps: never trained, so the numbers are those of initial weights." if shown else None


@RULES.add("one-step", "error", "train it, or leave it out of every comparison", each="measured")
def one_step(run: Run) -> str | None:
    """A run of a single step is compared with trained ones."""
    return "trained for 1 step." if run.steps == 1 else None


@RULES.add("dead", "error", "train it again: it is no baseline", each="measured")
def dead(run: Run) -> str | None:
    """The SAE is dead: L0 is 0, every probe is at exactly 0.5, or its output has no direction."""
    probes = [value for name, value in run.metrics.items() if is_probe(name)]
    signs = ["L0 = 0"] * (run.metrics.get("l0") == 0)
    signs += ["every probe accuracy exactly 0.5"] * (len(probes) > 1 and set(probes) == {0.5})
    signs += ["cosine similarity not a number"] * ("cossim" in run.nulls and "mse" in run.metrics)
    return f"the SAE is dead: {', '.join(signs)}." if signs else None


@lru_cache(maxsize=4096)
def is_probe(metric: str) -> bool:
    return re.fullmatch(r"sae_(top_\d+_)?test_accuracy", plain_name(metric)) is not None


def density(run: Run) -> str | None:
    """Why a run is not sparse, or None."""
    l0, d_sae, d_in = run.metrics.get("l0"), run.number("architecture.d_sae"), run.d_in
    if l0 is None:
        return None
    if d_in is not None and l0 > d_in:
        return f"is above d_in = {d_in:,.0f}"
    if d_sae is not None and l0 > SPARSE_SHARE * d_sae:
        return f"of {d_sae:,.0f} features"
    return None


@RULES.add("not-sparse", "warning", "raise its sparsity term, or leave it out of comparisons with sparse SAEs")
def not_sparse(comparison: Comparison) -> Found:
    """More than a tenth of the features, or more than d_in of them, fire on a token."""
    below = (run for run in comparison.measured if run.metrics.get("ce_loss_score", 0) < PERFECT)  # else an error
    for why, runs in grouped((why, run) for run in below if (why := density(run))).items():
        yield f"not sparse: {l0_of(runs)} {why}.", runs


def l0_of(runs: list[Run]) -> str:
    """`L0 = 103`, or `L0 = 103 to 128` of several runs."""
    shown = dict.fromkeys(f"{l0:,.0f}" for l0 in sorted(run.metrics["l0"] for run in runs))
    return f"L0 = {' to '.join([next(iter(shown)), *list(shown)[1:][-1:]])}"


@RULES.add("not-overcomplete", "note", "name the size beside the results", each="measured")
def not_overcomplete(run: Run) -> str | None:
    """A dictionary is no larger than the activations that it explains."""
    d_sae, d_in = run.number("architecture.d_sae"), run.d_in
    if d_sae is None or d_in is None or d_sae > d_in:
        return None
    return f"d_sae = {d_sae:,.0f} is no larger than d_in = {d_in:,.0f}."


@RULES.add("perfect-score", "error", "compare at matched L0", each="measured")
def perfect_score(run: Run) -> str | None:
    """A perfect CE score comes from an SAE that is not sparse."""
    score, why = run.metrics.get("ce_loss_score", 0), density(run)
    if score < PERFECT or not why:
        return None
    return f"a CE score of {score:.4g} from an SAE that is not sparse ({l0_of([run])} {why}) means nothing."


@RULES.add(
    "diverged",
    "error",
    "train again with clipping, a lower weight or a lower learning rate, and leave the scores out",
    each="runs",
)
def diverged(run: Run) -> str | None:
    """The loss of a run stopped being a number; whatever else it shows is not a result."""
    if not run.diverged:
        return None
    if run.source is None:
        return f"diverged ({run.error or 'no error recorded'}), so there is no result."
    others = [name for name in run.metrics if name not in ("tokens", "steps")]
    shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    return f"the loss is not a number{f', so {shown} is not a result' if others else ''}."


@RULES.add("unfinished", "warning", "launch the same command again", each="runs")
def unfinished(run: Run) -> str | None:
    """A run failed or was interrupted, cancelled or lost, and has no result."""
    if run.state not in ENDED_EARLY:
        return None
    at = f" at step {run.step:,} of {run.total_steps:,}" if run.step and run.total_steps else ""
    return f"{run.state}{at}, so there is no result{f' ({run.error})' if run.error else ''}."


@RULES.add("damaged", "warning", "restore the file, or do as the sentence advises", each="runs")
def damaged(run: Run) -> str | None:
    """A file of a run does not read back, so nothing of the run is shown."""
    return run.error if run.state == DAMAGED else None


@RULES.add("no-result", "warning", "run it, or leave it out", each="runs")
def no_result(run: Run) -> str | None:
    """A run of an imported study has no result."""
    return "no result is recorded." if run.study and not run.measured and not run.diverged else None


@RULES.add("pending", "note")
def pending(comparison: Comparison) -> Found:
    """A run is queued or still running."""
    for state in PENDING:
        runs = [run for run in comparison.runs if run.state == state]
        if runs:
            yield f"{len(runs)} of {len(comparison.runs)} runs are {state}.", runs


@RULES.add("penalty-silent", "error", "call it a run without the penalty, or raise the weight", each="measured")
def silent_penalty(run: Run) -> Iterator[str]:
    """A penalty never acted: its weight, value or gradient was 0 in every row."""
    name = str(run.config.get("penalty") or "none")
    for term in name.split("+") if name != "none" else ():
        if why := never_acted(run, term if "+" in name else "penalty"):
            yield f"penalty={term} never acted: {why}."


def never_acted(run: Run, term: str) -> str | None:
    """Why a loss term changed nothing, or None."""
    peak = run.config.get("penalty.lambda2_max" if term == "penalty" else f"penalty.{term}.lambda2_max")
    if peak == 0:
        return "its weight is 0"
    for what, key in (("weight", f"{term}_weight"), ("value", f"{term}_loss"), ("gradient", f"grad_norm/{term}")):
        # a penalty may act on one of the two matrices only
        acted = [run.evidence.ever(name) for name in ((key, f"{key}_enc") if what == "gradient" else (key,))]
        if any(answer is not None for answer in acted) and not any(acted):
            return f"its {what} is 0 in every row of metrics.jsonl"
    return None


@RULES.add(
    "few-tokens",
    "warning",
    "compare fvu_per_token, or leave such tokens out with data.max_norm=10",
    each="runs",
)
def few_tokens(run: Run) -> str | None:
    """A thousandth of the tokens holds so much of the variance that loss and fvu are about them."""
    share = run.top_variance
    if share is None or share <= TOP_VARIANCE:
        return None
    return f"a thousandth of the training tokens holds {share:.0%} of the variance of the activations."


@RULES.add(
    "other-tokens", "warning", "compare their CE scores, or evaluate them again with eval.exclude_outliers=false"
)
def other_tokens(comparison: Comparison) -> Found:
    """The fvu of some runs leaves out tokens beyond a norm that is in that of others."""
    runs = [run for run in comparison.measured if run.source is None and "fvu" in run.metrics]
    limits = {run.config.get("data.max_norm") for run in runs}
    if len(limits) > 1 and any(run.metrics.get("outlier_tokens") for run in runs):
        yield "the runs differ in data.max_norm, so fvu is not over the same tokens.", runs


@RULES.add("run-warning", "warning", each="runs")
def own_warnings(run: Run) -> list[str]:
    """What a run itself warns of."""
    restated = ("L0 = ", "the SAE is dead", "a thousandth of the training tokens")  # by the rules above
    return [warning for warning in run.warnings if run.source is None and not warning.startswith(restated)]
