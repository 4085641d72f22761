"""Run notes as text, in the shape of the studies' records: one block per run, the baseline first.

    ## Run 3: penalty=ortho lambda2_max=0.5
    State: {'run_id': '5b3371b56c56', 'state': 'completed', 'step': 400, 'total_steps': 400}
    Against Run 0, varied: {'penalty.lambda2_max': 0.5}
    Results: {'training results': {'config': {...}, 'final_info': {...}}, 'core evaluation results': {...}}
    Description: What the run is for, in its author's words.

The dicts are Python literals. `analysis.reading.own_notes` reads these notes back to the same facts, from which the
same text is written.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.auditing.audit import audit
from analysis.auditing.comparison import baselines_of
from analysis.auditing.run import Run, runs_of
from analysis.columns import UNSHOWN
from analysis.metrics import FIRST, badness, direction, group, outside
from analysis.reading.evaluated import evaluated
from analysis.reading.names import COLUMN_NAMES
from analysis.reading.notes import parse_notes
from analysis.reading.own_notes import (
    COMMON,
    COMPOSED,
    COUNTED,
    DESCRIPTION,
    EVALUATION,
    FIELDS,
    FINDINGS,
    RESULTS,
    SAE,
    STATE,
    TRAINING,
)  # fmt: skip
from analysis.reading.record import ABSENT, Recorded, submodule_name
from analysis.reading.run_folders import or_warned
from analysis.text import cell, clean
from sae_sweeps.errors import ConfigError, DataError

WIDTH = 100
COMPARED = 8
"""The most metrics in a comparison with the baseline."""
VALUES = 6
"""The most keys, and values of a key, in the title and the description of the experiment."""
OMITTED = tuple(key for key in UNSHOWN if key != "tags")
"""Config keys and groups that notes leave out: of where and how a run was made."""
NOT_VARIED = ("tags", "eval")
"""Config keys and groups that do not count where runs are compared."""
PENALTY_WORDS = {"penalty.lambda2_max": "weight", "schedule": "schedule"}
REPEATING = ("run-warning", "import-doubt")
"""Codes of findings that repeat the run's own warnings, which its state has."""
EVALUATION_OF = {
    "core": "core", "sparsity": "core", "probing": "sparse_probing", "absorption": "absorption",
    "unlearning": "unlearning", "autointerp": "autointerp", "hierarchy": "hierarchy", "geometry": "separation",
    "labels": "separation",
}  # fmt: skip
BEGINNINGS = (("scr_", "scr"), ("tpp_", "tpp"), ("total_tokens_eval_", "core"))
"""Group of a metric, or how its name begins, and the evaluation that gives it."""
OF_TRAINING = ("final_loss", "recon_loss", "sparsity_loss", "penalty_loss", "dead_features")
"""Metrics of these groups that the training gives."""
EMPTY = (
    "# Title: x",
    "## Run 0: x",
    f"{STATE}: {{'run_id': '', 'state': ''}}",
    f"{RESULTS}: {{'{TRAINING}': {{'config': {{}}, 'final_info': {{}}}}}}",
)
"""The lines before the description of a run that has nothing else."""
NUMBER = r"\d+[a-z]?"


@dataclass(eq=False)
class Noted:
    """A run of the notes."""

    run: Run
    number: str = ""
    is_baseline: bool = False
    baseline: "Noted | None" = None
    """The run that it is compared with, if any."""
    findings: list[str] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        return str(self.run.recorded.own.get("run_id", self.run.run_id))

    @property
    def values(self) -> dict[str, Any]:
        """The metrics, with None or nan for those without a number."""
        missing = {name: ABSENT if name in self.run.not_finite else None for name in self.run.nulls}
        counted = {"steps"} if self.run.recorded.counted else set[str]()
        return {name: value for name, value in self.run.metrics.items() if name not in counted} | missing

    def value(self, key: str) -> str:
        """The value of a config key, so written that equal texts are equal values."""
        return repr(self.run.config.get(key, ABSENT))

    @property
    def recorded_number(self) -> str:
        """The number that the run has in the notes it comes from, or that its title carries (`Run 3, as recorded`)."""
        last = self.run.run_id.rpartition("/")[2] if self.run.source else ""
        carried = re.match(rf"Run ({NUMBER})\b", self.run.title)
        return last if re.fullmatch(NUMBER, last) else carried[1] if carried else ""


def notes(full: pd.DataFrame, baseline: str | None = None, varied: tuple[str, ...] = ()) -> str:
    """Notes of the runs of a frame of `records`. The same runs give the same text.

    Args:
        baseline: a run id (or its beginning) or a title; by default see `baselines_and_reason`.
        varied: keys that the sweep varies, for the audit.

    Raises ConfigError for a baseline that is no run, or several.
    """
    runs = noted(full)
    baselines, reason = baselines_and_reason(runs, baseline)
    runs = baselines + sorted((run for run in runs if not run.is_baseline), key=by_number)
    study = runs[0].run.recorded.study
    one_file = all(run.run.recorded.study is study for run in runs)
    if one_file and all(run.run.recorded.own for run in runs):  # whole notes, which list what their own audit found
        for run in runs:
            run.findings = run.run.recorded.own.get("findings", [])
    else:
        add_findings(runs, full, varied)
    shared = [text for text in runs[0].findings if len(runs) > 1 and all(text in run.findings for run in runs)]
    common = common_config(runs)
    lines = [f"# Title: {(one_file and study.title) or composed_title(runs)}", ""]
    lines += [f"# Experiment description: {(one_file and study.experiment) or composed_experiment(runs, reason)}", ""]
    lines += literal(COMMON, common) if common else []
    lines += finding_lines(shared)
    for run in runs:
        lines += ["", "", *section(run, common, [text for text in run.findings if text not in shared])]
    return "\n".join(lines) + "\n"


def noted(full: pd.DataFrame) -> list[Noted]:
    """The runs of a frame, their config sorted by its keys, without OMITTED ones."""
    runs = runs_of(full)
    for run in runs:
        run.config = {key: run.config[key] for key in sorted(run.config) if key.partition(".")[0] not in OMITTED}
        if run.config.get("submodule_name") == submodule_name(run.config):
            run.config.pop("submodule_name", None)
        if not run.source:
            read = partial(evaluated, run.evidence.folder, run.state)
            run.recorded = or_warned(run.warnings, read, Recorded())
        elif not run.recorded.own:
            run.recorded = replace(run.recorded, evaluations=evaluations_of(run))
    return [Noted(run) for run in runs]


def evaluations_of(run: Run) -> dict[str, dict[str, Any]]:
    """The evaluations of an imported run; metrics for which none is recorded are under the usual one."""
    found = {name: dict(content) for name, content in run.recorded.evaluations.items()}
    known = {metric for content in found.values() for metric in content.get("metrics", ())}
    for metric in (*run.metrics, *run.nulls):
        if metric not in known and (name := evaluation_of(metric)):
            content = found.setdefault(name, {})
            content["metrics"] = [*content.get("metrics", ()), metric]
    return found


def evaluation_of(metric: str) -> str | None:
    """The evaluation that gives a metric, as far as its name has it; None for one of the training."""
    if metric in OF_TRAINING:
        return None
    return next((name for begin, name in BEGINNINGS if metric.startswith(begin)), EVALUATION_OF.get(group(metric)))


def add_findings(runs: Sequence[Noted], full: pd.DataFrame, varied: tuple[str, ...]) -> None:
    """Give each run what the audit finds about it, errors first."""
    for finding in audit(full, varied):
        text, concerned = clean(f"{finding.level}, {finding.code}: {finding.sentence}", 400), set(finding.runs)
        for run in runs if finding.code not in REPEATING else ():
            if text not in run.findings and (run.run.run_id in concerned or not concerned):
                run.findings.append(text)


# Baselines, numbers and order ----------------------------------------------------------------------------------------


def baselines_and_reason(runs: Sequence[Noted], word: str | None) -> tuple[list[Noted], str]:
    """The baselines, the one from which all runs differ in the fewest keys first, and how they were chosen.

    They are the run that `word` names, or those of `analysis.auditing.comparison.baselines_of`, or the first run with
    results. Where that is every run, only the first is one. Every other run gets the baseline from which it differs in
    the fewest keys.
    """
    found, reason = named(runs, word), "as requested"
    if not found:
        chosen, reason = baselines_of([run.run for run in runs])
        found = [run for run in runs if any(run.run is one for one in chosen)]
    if not found and len(runs) > 1:
        found, reason = [run for run in runs if run.run.measured][:1], "the first with results"
    keys = [key for key in differing(runs) if key.partition(".")[0] not in NOT_VARIED]
    values = {id(run): [run.value(key) for key in keys] for run in runs}

    def n_differences(run: Noted, base: Noted) -> int:
        return sum(a != b for a, b in zip(values[id(run)], values[id(base)], strict=True))

    totals = {id(base): sum(n_differences(run, base) for run in runs) for base in found}
    first = min(found, key=lambda base: totals[id(base)], default=None)
    found = [base for base in found if base is first] if len(found) == len(runs) else found
    reason += ", from which the others differ in the fewest keys" if len(found) > 1 else ""
    give_numbers(runs, [*filter(None, [first]), *(base for base in found if base is not first)])
    found.sort(key=lambda base: (base is not first, by_number(base)))
    for run in runs:
        run.is_baseline = run in found
        run.baseline = None if run.is_baseline else min(found, key=lambda base: n_differences(run, base), default=None)
    return found, reason


def named(runs: Sequence[Noted], word: str | None) -> list[Noted]:
    """The run that a word names; none without a word. Raises ConfigError where it names none or several."""
    if word is None:
        return []
    found = [run for run in runs if word in (run.run.run_id, run.run_id, run.run.title)]
    found = found or [run for run in runs if run.run.run_id.startswith(word) or run.run_id.startswith(word)]
    if len(found) != 1:
        what = "no run" if not found else f"{len(found)} runs"
        raise ConfigError(f"--baseline {clean(word)}: {what} of these paths; give a run id or a whole title.")
    return found


def give_numbers(runs: Sequence[Noted], baselines: Sequence[Noted]) -> None:
    """Number the runs: as recorded, baselines 0, the others onwards; a number that is taken gets a letter (0b, 0c)."""
    taken: set[str] = set()

    def give(run: Noted, number: str) -> None:
        letters = ["", *"bcdefghijklmnopqrstuvwxyz"] if number.isdigit() else [""]
        run.number = next((number + letter for letter in letters if number + letter not in taken), "")
        taken.add(run.number)

    for run in runs:
        if run.recorded_number:
            give(run, run.recorded_number)
    for run in baselines:
        if not run.number:
            give(run, "0")
    highest = max((by_number(run)[0] for run in runs if run.number), default=-1)
    for number, run in enumerate((run for run in runs if not run.number), highest + 1):
        give(run, str(number))


def by_number(run: Noted) -> tuple[int, str]:
    digits = run.number.rstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits), run.number


# Config --------------------------------------------------------------------------------------------------------------


def differing(runs: Sequence[Noted]) -> list[str]:
    """The config keys whose values are not the same in all runs, absent ones included."""
    keys = {key for run in runs for key in run.run.config}
    return sorted(key for key in keys if len({run.value(key) for run in runs}) > 1)


def common_config(runs: Sequence[Noted]) -> dict[str, Any]:
    """The config that all of several runs share, without what each has under the records' names."""
    left_out = {*differing(runs), *(COLUMN_NAMES.get(name, name) for name in FIELDS)}
    return {key: value for key, value in runs[0].run.config.items() if key not in left_out and len(runs) > 1}


def composed_title(runs: Sequence[Noted]) -> str:
    varied = ", ".join(f"{key} {values}" for key, values in varied_words(runs)[:3])
    return clean(f"{len(runs)} run{'s' * (len(runs) != 1)}" + (f": {varied}" if varied else ""), 200)


def composed_experiment(runs: Sequence[Noted], reason: str) -> str:
    """What all runs share, what was varied, and the baseline, as numbered points on one line."""
    differing_keys = differing(runs)
    points = [sae_description({key: value for key, value in runs[0].run.config.items() if key not in differing_keys})]
    varied = [f"{key} ({values})" for key, values in varied_words(runs)]
    if varied:
        more = f" and {len(varied) - VALUES} more keys" if len(varied) > VALUES else ""
        points.append(f"varied: {', '.join(varied[:VALUES])}{more}")
    if any(run.baseline for run in runs):
        points.append(f"the baseline is Run {runs[0].number} ({clean(runs[0].run_id)}), {reason}")
    evaluations = dict.fromkeys(name for run in runs for name in run.run.recorded.evaluations)
    points += [f"evaluated: {', '.join(evaluations)}"] if evaluations else []
    return clean(" ".join(f"{n}. {point[:1].upper()}{point[1:]}." for n, point in enumerate(points, 1)), 2_000)


def varied_words(runs: Sequence[Noted]) -> list[tuple[str, str]]:
    """The keys with more than one value, by their last part, each with its first values."""
    found = []
    for key in differing(runs):
        if key.partition(".")[0] not in NOT_VARIED:
            values = list(dict.fromkeys(cell(run.run.config[key], "config") for run in runs if key in run.run.config))
            more = ", ..." if len(values) > VALUES else ""
            if len(values) > 1:
                found.append((clean(key.rpartition(".")[2]), ", ".join(values[:VALUES]) + more))
    return found


def described(run: Run) -> str:
    """The description of a run in its author's words, or else composed from its config."""
    if run.description:
        return clean(run.description, 20_000)
    parts = [sae_description(run.config), penalty_description(run.config)]
    if run.steps is not None:
        batch = run.config.get("batch_size")
        parts.append(f"trained for {run.steps:,.0f} steps" + (f" of {cell(batch, 'config')} tokens" if batch else ""))
    return clean(", ".join(parts) + ".", 2_000)


def sae_description(config: dict[str, Any]) -> str:
    """`topk SAE of 2,048 features (k = 32) on MODEL layer N`, as far as the config has these keys."""
    get = config.get
    text = f"{get('architecture') or 'an'} SAE"
    text += f" of {cell(get('architecture.d_sae'), 'config')} features" if get("architecture.d_sae") else ""
    text += f" (k = {get('architecture.k')})" if get("architecture.k") is not None else ""
    text += f" on {get('model')}" if get("model") else ""
    if get("layer.index") is not None and get("model") != "synthetic":
        text += f" layer {get('layer.index')}"
    return text


def penalty_description(config: dict[str, Any]) -> str:
    """`with penalty NAME (weight X, schedule Y)`, `without a penalty`, or `penalty not recorded`."""
    penalty = config.get("penalty")
    if penalty == "none":
        return "without a penalty"
    settings = [f"{name} {config[key]}" for key, name in PENALTY_WORDS.items() if config.get(key) is not None]
    text = "penalty not recorded" if penalty is None else f"with penalty {penalty}"
    return text + (f" ({', '.join(settings)})" if settings else "")


# One run -------------------------------------------------------------------------------------------------------------


def section(run: Noted, common: dict[str, Any], findings: Sequence[str]) -> list[str]:
    """The lines of one run."""
    base, title = run.baseline, clean(run.run.title or run.run_id, 200)
    heading = re.sub(rf"^Run {by_number(run)[0]}[a-z]?[,:]? +", "", title)
    if run.is_baseline and not re.search(r"\bbaseline\b", title, re.I):
        heading = f"Baseline: {heading}"
    lines = [f"## Run {run.number}: {heading}", *literal(STATE, state_of(run, heading))]
    if base is not None:
        keys = [key for key in run.run.config if key.partition(".")[0] not in NOT_VARIED]
        varied = {key: run.run.config[key] for key in keys if run.value(key) != base.value(key)}
        lines += literal(f"Against Run {base.number}, varied", varied) if varied else []
        if base.run.measured and run.run.measured:
            lines += wrap(f"Against Run {base.number}: {compared(run.run, base.run)}")
    return [*lines, *finding_lines(findings), *literal(RESULTS, results_of(run, common)), *description_lines(run)]


def state_of(run: Noted, heading: str) -> dict[str, Any]:
    """What is neither config nor metric. The title is left out where the heading is it, in plain characters."""
    state = run.run
    fields = ("state", "step", "total_steps", "error", "warnings")
    content = {"run_id": run.run_id} | {name: getattr(state, name) for name in fields}
    content |= {"described": outside(state.metrics)}
    content |= {"steps": COUNTED} if run.run.recorded.counted else {}
    content = {key: value for key, value in content.items() if value not in (None, [], {})}
    is_plain = re.fullmatch(r"\w([\w =.,+/()-]*[\w)])?", heading) and heading == state.title
    return content if is_plain else content | {"title": state.title or None}


def results_of(run: Noted, common: dict[str, Any]) -> dict[str, Any]:
    """The results in the records' shape: of the training, then of each evaluation."""
    values, parts = run.values, {}
    for name, content in run.run.recorded.evaluations.items():
        part: dict[str, Any] = {"eval_type_id": name}
        part |= {theirs: plain(content[key]) for key, theirs in EVALUATION.items() if key in content}
        measured = [metric for metric in content.get("metrics", ()) if metric in values]
        part["eval_result_metrics"] = {metric: plain(values.pop(metric)) for metric in measured}
        if name in run.run.recorded.details:
            part["eval_result_details"] = plain(run.run.recorded.details[name])
        if sae := {theirs: content[key] for key, theirs in SAE.items() if key in content}:
            part["sae_cfg_dict"] = sae
        parts[f"{name.replace('_', ' ')} evaluation results"] = part
    return {TRAINING: training_of(run, common, values), **parts}


def training_of(run: Noted, common: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The config, FIELDS under the records' names, and the metrics of the training."""
    config, steps = run.run.config, None if run.run.steps is None else int(run.run.steps)
    renamed = {COLUMN_NAMES.get(name, name): name for name in FIELDS}
    fields = {name: config.get(key) for key, name in renamed.items()}
    own = fields | {"steps": steps, "submodule_name": submodule_name(config)}
    info = {
        "training_steps": steps,
        "layer": fields["layer"],
        "dict_size": fields["dict_size"],
        "learning_rate": config.get("lr_schedule.lr_logged", fields["lr"]),
        "sparsity_penalty": config.get("architecture.l1_penalty_logged", fields["l1_penalty"]),
    }
    own, info = ({key: value for key, value in part.items() if value is not None} for part in (own, info))
    own |= {renamed.get(key, key): value for key, value in config.items() if key not in common}
    info |= {name: plain(values[name]) for name in sorted(values, key=lambda name: (name != "final_loss", name))}
    return {"config": own, "final_info": info}


def description_lines(run: Noted) -> list[str]:
    """The description: as it is where it reads back so, as a quoted literal where it does not."""
    words = run.run.description
    if not words:
        return wrap(f"{COMPOSED}: {described(run.run)}")
    lines = f"{DESCRIPTION}: {words}".split("\n")
    if all(map(str.isprintable, lines)):
        try:
            back = parse_notes("\n".join([*EMPTY, *lines, ""]), "", Path()).runs
        except DataError:
            back = []
        if [found["description"] for found in back] == [words]:
            return lines
    return [f"{DESCRIPTION}: {words!r}"]


def compared(run: Run, base: Run) -> str:
    """The differences of two runs in the metrics that have a direction, those of FIRST first, COMPARED at most."""
    names = [name for name in FIRST if direction(name)] + sorted(name for name in run.metrics if name not in FIRST)
    parts = []
    for name in dict.fromkeys(names):
        if direction(name) and name in run.metrics and name in base.metrics:
            value, base_value = run.metrics[name], base.metrics[name]
            better = badness(name, base_value) - badness(name, value)
            way = "higher" if value > base_value else "lower"
            how = "equal" if value == base_value else f"{abs(value - base_value):.3g} {way}"
            verdict = "" if better == 0 else f", {'better' if better > 0 else 'worse'}"
            parts.append(f"{name} {cell(value)} ({how}{verdict})")
    more = f"; and {len(parts) - COMPARED} more" if len(parts) > COMPARED else ""
    return ("; ".join(parts[:COMPARED]) + more or "no metric in common") + "."


# Lines ---------------------------------------------------------------------------------------------------------------


def literal(label: str, content: dict[str, Any]) -> list[str]:
    """`label: {...}` as lines, a Python literal; a dict within begins a line of its own."""
    lines, line = [], f"{label}: "
    for piece in pieces(content):
        opens = piece.startswith("\n")
        if opens or (len(line) + len(piece) > WIDTH and not line.endswith(": ")):
            lines.append(line.rstrip())
            line = "    "
        line += piece.removeprefix("\n") + " "
    return [*lines, line.rstrip()]


def pieces(value: Any) -> Iterator[str]:
    """The literal of a value in pieces between which a line may break; one that begins with a line break has to."""
    if not value or not isinstance(value, dict | list) or (isinstance(value, list) and not isinstance(value[0], dict)):
        yield repr(value)
        return
    ends = "{}" if isinstance(value, dict) else "[]"
    items = [(f"{key!r}: ", v) for key, v in value.items()] if isinstance(value, dict) else [("", v) for v in value]
    for place, (key, content) in enumerate(items):
        opens = "\n" if place and isinstance(content, dict) and content else ""
        inner = list(pieces(content))
        inner[0] = opens + ("" if place else ends[0]) + key + inner[0].removeprefix("\n")
        inner[-1] += ends[1] if place == len(items) - 1 else ","
        yield from inner


def plain(value: Any) -> Any:
    """The value as Python ints, floats, bools, texts and None in lists and dicts; whole numbers from 1,000 as ints."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, dict):
        return {str(key): plain(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [plain(content) for content in value]
    if isinstance(value, float) and value.is_integer() and abs(value) >= 1000:
        return int(value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def finding_lines(findings: Iterable[str]) -> list[str]:
    """The findings as a list below FINDINGS; empty where there are none."""
    lines = [line for text in findings for line in wrap(f"- {text}")]
    return [FINDINGS, *lines] if lines else []


def wrap(words: str) -> list[str]:
    """Text in lines of WIDTH; all but the first are indented, so that none is read as a heading or a label."""
    return textwrap.wrap(words, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False) or [""]
