"""Rules that compare what text claims with the figures beside it."""

import re
from collections.abc import Iterator

from analysis.auditing.comparison import Comparison
from analysis.auditing.finding import joined, run_names
from analysis.auditing.prose import (
    CONCEDED,
    DENIED,
    EVERY,
    INTENDED,
    RANGE,
    WORDS,
    agrees,
    metrics_named,
    praise,
    runs_named,
    sentences,
)
from analysis.auditing.rules.rule import Found, Rules
from analysis.auditing.run import Run, number
from analysis.metrics import direction
from sae_sweeps.config.evaluations import plain_name

RULES = Rules()


MENTIONS = {
    "lr_schedule.lr": r"(?:learning rate|\blr)(?: of| is| was| at|:| ?=)? ?([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)",
    "architecture.k": r"\bk ?= ?([0-9]+)\b",
    "architecture.d_sae": r"(?:\bd_sae|dictionary size)(?: of| is| was|:| ?=)? ?([0-9][0-9,]*)\b",
    "layer.index": r"\blayer(?: ?=)? ?([0-9]+)\b",
    "steps": r"(?:trained for|after) ([0-9][0-9,]*) (?:training )?steps\b",
    "final_loss": r"final loss(?: of| is| was|:| ?=)? ?(-?[0-9][0-9,]*(?:\.[0-9]+)?)",
}
"""Patterns that find a recorded number in prose."""
OF_OTHERS = re.compile(r"\brecords?\b|\brecorded\b|\bearlier\b|\bthe paper\b", re.IGNORECASE)
"""Of a sentence about other runs than the one that it describes."""
CORRECT = "correct the text"


@RULES.add("prose-number", "warning", CORRECT, each="runs")
def prose_number(run: Run) -> Iterator[str]:
    """The description or title gives a number that is not the recorded one."""
    text = " ".join(part for part in sentences(f"{run.title}. {run.description}") if not OF_OTHERS.search(part))
    for key, pattern in MENTIONS.items():
        values = (run.number(key), number(run.steps if key == "steps" else run.metrics.get(key)))
        recorded = [value for value in values if value is not None]
        written = re.findall(pattern, text, re.IGNORECASE) if recorded else []
        if written and not any(agrees(number_text, value) for number_text in written for value in recorded):
            name = key.rpartition(".")[2].replace("index", "layer")
            yield f"its text has {name} {written[0]}, its record {recorded[0]:g}."


@RULES.add("prose-stable", "error", CORRECT)
def praised(comparison: Comparison) -> Found:
    """A text praises a run as stable or converged whose loss is not a number."""
    diverged = [run for run in comparison.runs if run.diverged]
    for run in diverged:
        if word := own_praise(run):
            yield f"its text has `{word}`, its loss is not a number.", [run]
    for sentence, line in statements(comparison):
        word = praise(sentence)
        named = [run for run in diverged if run.place in set(runs_named(sentence))]
        if word and named:
            yield f"the study's text (line {line} on) has `{word}` of it, its loss is not a number.", named


@RULES.add("prose-range", "error", CORRECT)
def out_of_range(comparison: Comparison) -> Found:
    """A text gives a range for all runs in which some are not."""
    for sentence, line in statements(comparison):
        span, named = RANGE.search(sentence), metrics_named(sentence)
        if not span or not EVERY.search(sentence) or len(named) != 1:
            continue
        metric, low, high = named[0], span[1], span[2]
        outside = [
            run
            for run in comparison.measured
            if (value := run.metrics.get(metric)) is not None
            and not float(low) <= value <= float(high)
            and not agrees(low, value)
            and not agrees(high, value)
        ]
        nan = [run for run in comparison.runs if metric in run.not_finite]
        if outside or nan:
            shown = [f"{run_names([run.name])} has {run.metrics[metric]:.7g}" for run in outside[:4]]
            shown += [f"{run_names(run.name for run in nan)} NaN"] * bool(nan)
            yield (
                f"the study's text (line {line} on) has a {metric} of {low}-{high} for all runs, but {joined(shown)}.",
                [*outside, *nan],
            )


@RULES.add("prose-run", "warning", "run it, or take it out of the text")
def no_such_run(comparison: Comparison) -> Found:
    """A text names a run of which there is no result."""
    places = {run.place for run in comparison.runs} - {None}
    if not places:
        return
    lines: dict[int, int] = {}
    for sentence, line in statements(comparison):
        for named in runs_named(sentence):
            lines.setdefault(named, line)
    for run in comparison.runs:
        for named in runs_named(run.description):
            lines.setdefault(named, run.recorded.line)
    absent = sorted(set(lines) - places)
    if absent:
        where = ", ".join(dict.fromkeys(f"line {lines[named]}" for named in absent[:4] if lines[named]))
        yield (
            f"the text names {run_names(map(str, absent))}{f' ({where})' * bool(where)}, of which there is no result.",
            list(comparison.runs),
        )


CLAIMS = {
    "improved": r"\b(?:improv\w+|better)\b",
    "higher": r"\b(?:increas\w+|higher|ris(?:es|en)|rose)\b",
    "lower": r"\b(?:decreas\w+|lower|reduc\w+|drops?|dropped)\b",
    "similar": r"\b(?:similar|unchanged|same|comparable|identical)\b",
}
SIMILAR = 0.05
"""Two figures that are called similar differ by at most this share of the larger."""


@RULES.add("prose-improved", "warning", CORRECT)
def claimed_wrongly(comparison: Comparison) -> Found:
    """A text calls a figure better, higher, lower or similar which is not."""
    for run, claim, metric, other in claims(comparison):
        if not holds(claim, metric, run.metrics[metric], other.metrics[metric]):
            yield (
                f"its text calls its {metric} {claim}, which is {run.metrics[metric]:.7g} beside "
                f"{other.metrics[metric]:.7g} of {run_names([other.name])}.",
                [run],
            )


@RULES.add("prose-baseline", "note", "write both")
def improved_below_baseline(comparison: Comparison) -> Found:
    """A text calls a figure an improvement that is worse than the baseline's."""
    for run, claim, metric, other in claims(comparison):
        value = run.metrics[metric]
        base = next((first.metrics.get(metric) for first in comparison.baselines if first not in (other, run)), None)
        if claim == "improved" and base is not None and holds(claim, metric, value, other.metrics[metric]):
            if not holds(claim, metric, value, base):
                yield (
                    f"its text calls its {metric} of {value:.7g} improved on {run_names([other.name])}; the baseline's "
                    f"{base:.7g} is still better.",
                    [run],
                )


def claims(comparison: Comparison) -> Iterator[tuple[Run, str, str, Run]]:
    """(run, kind of CLAIMS, metric, run that it is compared with) of the remarks beside figures."""
    by_number = {run.name: run for run in comparison.runs}
    for run in comparison.runs:
        for metric, words in run.recorded.remarks.items():
            found = [kind for kind, pattern in CLAIMS.items() if re.search(pattern, words, re.IGNORECASE)]
            if len(found) != 1 or DENIED.search(words) or INTENDED.search(words) or CONCEDED.search(words):
                continue
            named = [str(n) for n in runs_named(words)]
            other = by_number.get(named[0]) if named else next(iter(comparison.baselines), None)
            if other is not None and other is not run and metric in run.metrics and metric in other.metrics:
                yield run, found[0], metric, other


def holds(claim: str, metric: str, value: float, other: float) -> bool:
    if claim == "similar":
        return abs(value - other) <= SIMILAR * max(abs(value), abs(other))
    if claim == "improved":
        claim = "lower" if metric == "final_loss" else direction(metric) or "any"
    return {"lower": value < other, "higher": value > other, "one": abs(value - 1) < abs(other - 1)}.get(claim, True)


UNCHANGED = re.compile(
    r"\b(?:other|all|remaining)(?: \w+)? metrics?(?: \w+)? (unchanged|the same|identical|similar|comparable)\b",
    re.IGNORECASE,
)
ACROSS = re.compile(r"\bconsisten\w+", re.I)


@RULES.add("prose-unmeasured", "warning", "record the figures, or take it out of the text")
def unmeasured(comparison: Comparison) -> Found:
    """A text gives a finding without the figures that it would follow from."""
    if not comparison.imported:
        return
    of_baselines = {name for run in comparison.baselines for name in run.metrics}
    for run in comparison.runs:
        words = next((UNCHANGED.search(text) for text in own_sentences(run) if UNCHANGED.search(text)), None)
        missing = of_baselines - set(run.metrics) - {"steps", "tokens"}
        if words and len(missing) > 1 and not run.diverged:
            lacking = f"{len(missing)} metrics of the baseline are not recorded"
            yield f"its text calls other metrics {words[1]}, but {lacking}.", [run]
        if (word := own_praise(run)) and not run.diverged and "final_loss" not in run.metrics:
            yield f"its text has `{word}`, and no loss of it is recorded.", [run]
    having = {metric: [run for run in comparison.measured if metric in run.metrics] for metric in WORDS}
    spoken: dict[str, int] = {}
    for sentence, line in statements(comparison):
        if EVERY.search(sentence) or ACROSS.search(sentence):
            for metric in metrics_named(sentence):
                if len(having[metric]) < 2 <= len(comparison.runs):
                    spoken.setdefault(metric, line)
    if spoken:
        runs = {run.name: run for metric in spoken for run in having[metric]}
        whose = f"recorded of {run_names(runs)} alone" if runs else "not recorded of any"
        first, verb = min(spoken.values()), "which is" if len(spoken) == 1 else "which are"
        yield (
            f"the study's text (line {first} on) compares {joined(spoken)} of all runs, {verb} {whose}.",
            list(comparison.runs),
        )


FAMILIES = ("pythia", "gemma", "gpt2", "gpt-2", "llama", "mistral", "qwen")


@RULES.add("prose-model", "warning", CORRECT)
def other_model_planned(comparison: Comparison) -> Found:
    """The plan of a study names a model that none of its runs used."""
    text = f"{comparison.notes.title}. {comparison.notes.experiment}"
    used = dict.fromkeys(str(run.config["model"]) for run in comparison.runs if run.config.get("model"))
    named = [m[0] for m in re.finditer(rf"\b(?:{'|'.join(FAMILIES)})[\w.-]*", text, re.IGNORECASE)]
    for model in dict.fromkeys(named):
        family = next(family for family in FAMILIES if model.lower().startswith(family)).replace("-", "")
        if used and not any(family in name.lower().replace("-", "") for name in used):
            yield f"the plan names {model.rstrip('.-')}, the runs used {joined(used)}.", list(comparison.runs)


MEASURES = {
    r"\bnormali[sz]ed mutual information|\bNMI\b": ("nmi",),
    r"\bsilhouette": ("silhouette",),
    r"\babsorption": ("mean_*absorption_score", "absorption*"),
    r"\bsparse[- _]probing": ("sae_*test_accuracy",),
    r"\bunlearning (?:performance|scores?)": ("unlearning_score",),
    r"\bautointerp": ("autointerp_score",),
    r"\bhierarchical prob\w+": ("hierarchy_*",),
    r"\bcross-validation": ("hierarchy_*",),
    r"\bconvergence speed": ("tokens_to_fvu", "seconds_to_fvu"),
}
"""Measures by the words of a plan, with the names of their metrics."""


@RULES.add("announced", "note", "measure it, or take it out of the plan")
def announced(comparison: Comparison) -> Found:
    """The plan of a study names a measure that is recorded of none of its runs."""
    from fnmatch import fnmatchcase

    metrics = {plain_name(name) for run in comparison.runs for name in (*run.metrics, *run.nulls)}
    missing = [
        found[0]
        for words, names in MEASURES.items()
        if (found := re.search(words, comparison.notes.experiment, re.IGNORECASE))
        and not any(fnmatchcase(metric, name) for metric in metrics for name in names)
    ]
    if missing:
        yield f"the plan names {joined(missing)}, which no run records.", list(comparison.runs)


def own_sentences(run: Run) -> list[str]:
    return [*sentences(run.title), *sentences(run.description), *run.recorded.remarks.values()]


def own_praise(run: Run) -> str | None:
    """The first words with which a run's own text praises its training."""
    return next(filter(None, map(praise, own_sentences(run))), None)


def statements(comparison: Comparison) -> Iterator[tuple[str, int]]:
    """The sentences of an imported study's text outside its runs, each with the line of its passage."""
    for passage in comparison.notes.passages:
        for sentence in sentences(passage.get("text", "")):
            yield sentence, int(passage.get("line") or 0)
