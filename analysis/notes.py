"""Run notes, one block per run: written for people, and read back.

    ## Run 3: penalty=ortho lambda2_max=0.5
    Varied: {'penalty.lambda2_max': 0.5}
    Results: {'fvu': 0.1984, 'l0': 32.0}
    Description: 400 steps of 1,024 tokens ...

Written, the dicts are Python literals, text from runs stands in single lines or indented, so that it never passes for a
heading. Read, notes may be of any hand: see `parse_notes`.
"""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.importing import imported_run
from analysis.literals import Literal, braces, leaves, read_literal, same
from analysis.names import STEPS, config_name, is_config
from analysis.text import cell, clean
from sae_sweeps.errors import ConfigError, DataError
from sae_sweeps.storage.budget import BUDGET

if TYPE_CHECKING:
    import pandas as pd

    from analysis.audit import Run

WIDTH = 100

# Reading -------------------------------------------------------------------------------------------------------------

RUN = r"\**\s*Run\b(?:\s+(?:no\.?\s*|#\s*)?([0-9]+[a-z]?)\b)?\s*\**\s*"
HEADING = re.compile(rf"^ {{0,3}}(#{{1,6}})\s*{RUN}(?:[:.–—-]|$)\s*\**(.*)$", re.IGNORECASE)
"""`## Run 3: title`, `## Run: title`."""
NUMBERED_HEADING = re.compile(r"^ {0,3}(#{1,6})\s*\**\s*Run\s+#?([0-9]+[a-z]?)\b\**\s*(.*)$", re.IGNORECASE)
"""`## Run 3 (title)`."""
LINE = re.compile(rf"^ {{0,3}}()(?=\**\s*Run\s+\W*(?:no\.?\s*)?[0-9]){RUN}(?:[:.–—-]|$)\s*\**(.*)$", re.IGNORECASE)
"""`Run 3: title` without a #; `Run 3 went well` is prose."""
OTHER_HEADING = re.compile(r"^(#{1,6})\s+(.*)$")
FENCE = re.compile(r"^\s*(```|~~~)\w*\s*$")
OPEN = re.compile(r"^ {0,3}(?:[-*>] +)?(?:([^\n{}:=]{1,80}?) *[:=] *\**\s*)?(?=\{)", re.M)
"""Where a dict begins a line, or follows the label that does."""
CONFIG_BLOCK = re.compile(r"config|varied|common|setting|hyper|argument|param", re.I)
RESULT_BLOCK = re.compile(r"result|metric|score|eval|loss", re.I)
SKIPPED = ("eval_config", "eval_result_details", "eval_result_unstructured")
"""Nested blocks that hold no metric of the run."""
OWN_LINES = re.compile(r"^(Run id|State|Against the baseline)\b.*(?:\n {2,}\S.*)*\n?", re.M)
"""What written notes say beside Varied, Results and Description."""


def parse_notes(text: str, name: str, path: Path) -> list[dict[str, Any]]:
    """Imported runs (see `importing.imported_run`) of notes in the studies' form, by any hand.

    Read are: dicts that are Python or JSON literals, on one line or many, in fences or not, nested, several of them per
    run; nan, NaN, inf, -Infinity, None and null; runs without a number. Nothing is evaluated. What contradicts itself
    is kept as a warning of the run, all prose as its description. Raises DataError for notes without runs, and for a
    dict of results that is no literal.
    """
    common: dict[str, Any] = {}
    runs: list[dict[str, Any]] = []
    taken: set[str] = set()
    for heading, title, body, line in sections(text):
        blocks, prose = split_blocks(body, path, line)
        if heading is None:  # before the first run, or a heading of another kind
            common |= {config_name(k): v for label, b in blocks if CONFIG_BLOCK.search(label) for k, v in b.items()}
            continue
        doubts = []
        number = heading
        if not number:
            number = next(str(n) for n in range(len(taken) + 1000) if str(n) not in taken)
            doubts.append(f"the notes give this run no number; it is counted as {number}")
        elif number in taken:
            number = next(f"{number}-{n}" for n in range(2, 1000) if f"{number}-{n}" not in taken)
            doubts.append(f"the notes use the number {heading} twice; this run is counted as {number}")
        taken.add(number)
        config, metrics, told = merged(blocks)
        state = re.search(r"^State: (\w+)", body, re.M)
        prose = OWN_LINES.sub("", prose)
        prose, _, own = prose.partition("\nWarnings:\n")
        doubts += told + list(own_warnings(own))
        config = common | config
        steps = next((value for key, value in config.items() if key in STEPS), metrics.get("steps"))
        config = {key: value for key, value in config.items() if key not in STEPS}
        runs.append(
            imported_run(
                f"{name}/{number}",
                clean(title.strip(" *#"), 200),
                config,
                metrics,
                int(steps) if isinstance(steps, int | float) and steps == steps else None,
                state[1] if state else "completed",
                " ".join(re.sub(r"^\s*(?:#+ |\**Description\**:?\**)", "", prose, flags=re.M).split()),
                doubts,
            )
        )
    if not runs:
        raise DataError(f"{path} holds no run notes; a run begins with a line such as `## Run 1: title`.")
    return runs


def own_warnings(listed: str) -> Iterator[str]:
    """The warnings that written notes list, but for those of the audit, which finds them again."""
    for item in re.findall(r"^- (.*(?:\n {2,}.*)*)", listed, re.M):
        words = " ".join(item.split())
        found = AUDITED.match(words)
        if found is None or found[1] == "run-warning":
            yield words[found.end() :] if found else words


def sections(text: str) -> Iterator[tuple[str | None, str, str, int]]:
    """(number, title, body, first line) of each section: number None outside runs, empty for a run without one."""
    number: str | None = None
    title, start, level, body = "", 1, 0, list[str]()
    fenced = False
    for place, line in enumerate(text.splitlines(), 1):
        if FENCE.match(line):
            fenced = not fenced
            body.append("")
            continue
        found = HEADING.match(line) or NUMBERED_HEADING.match(line) or LINE.match(line)
        other = None if fenced or found else OTHER_HEADING.match(line)
        if found or (other and len(other[1]) <= (level or 6)):
            yield number, title, "\n".join(body), start
            number, title = (found[2] or "", found[3]) if found else (None, "")
            level = len(found[1]) or 2 if found else 0
            start, body = place + 1, []
        else:
            body.append(line)
    yield number, title, "\n".join(body), start


def split_blocks(body: str, path: Path, first_line: int) -> tuple[list[tuple[str, Literal]], str]:
    """The dicts of a section, each with its label, and the prose that is left."""
    blocks: list[tuple[str, Literal]] = []
    prose, place, failed = "", 0, 0
    while found := OPEN.search(body, place):
        label = found[1] or label_above(body[: found.start()])
        line = first_line + body.count("\n", 0, found.end())
        try:
            end = braces(body, found.end())
            content = read_literal(body[found.end() : end])
        except ValueError as error:
            if RESULT_BLOCK.search(label) or CONFIG_BLOCK.search(label):
                raise DataError(
                    f"{path}, line {line}: {clean(label)} does not read as a dict ({error}); mend it."
                ) from None
            failed += 1
            if failed > MOST_BRACES:
                raise DataError(f"{path}, line {line}: too many braces that hold no literal; mend the notes.") from None
            prose += body[place : found.end() + 1]  # braces in prose
            place = found.end() + 1
            continue
        prose += body[place : found.start()]
        if isinstance(content, Literal):
            blocks.append((label, content))
        place = end
    return blocks, prose + body[place:]


def label_above(before: str) -> str:
    """The last line of text before a dict that stands alone."""
    lines = [line.strip(" *#:=") for line in before.splitlines() if line.strip(" *#:=")]
    return lines[-1][-80:] if lines else ""


def merged(blocks: list[tuple[str, Literal]]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Config keys and metrics of a run's blocks, nested ones under their last name, and what contradicts itself.

    A name that stands in several places with different values keeps its first value; metrics keep the others under
    the names of their blocks too.
    """
    config: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    doubts: list[str] = []
    for label, block in blocks:
        in_config = CONFIG_BLOCK.search(label) is not None and not RESULT_BLOCK.search(label)
        doubts += [f"{key} is given twice with different values in {label or 'a dict'}" for key in doubled(block)]
        for path, value in leaves(block):
            key = path[-1]
            if any(part in SKIPPED for part in path) or (
                isinstance(value, list) and any(isinstance(v, dict) for v in value)
            ):
                continue
            within = in_config or any(CONFIG_BLOCK.search(part) for part in path[:-1])
            is_metric = (value is None or isinstance(value, int | float)) and not isinstance(value, bool)
            if within or not is_metric or is_config(key) or (key in STEPS and key != "steps"):
                name = config_name(".".join(path) if in_config else key)
                if name in config and not same(config[name], value):
                    doubts.append(f"{name} is {config[name]} in one place and {value} in another")
                config.setdefault(name, value)
            elif key not in metrics:
                metrics[key] = value
            elif not same(metrics[key], value):
                metrics[".".join(path)] = value
                doubts.append(f"{key} is {metrics[key]} in one place and {value} in another")
    return config, metrics, doubts


def doubled(block: Literal) -> list[str]:
    return [*block.doubled, *(key for value in block.values() if isinstance(value, Literal) for key in doubled(value))]


MOST_BRACES = 100
"""Braces in the prose of a run that are looked at."""
AUDITED = re.compile(r"^(?:error|warning|note), ([a-z0-9-]+): ")

# Writing -------------------------------------------------------------------------------------------------------------

COMPARED = 8
"""Metrics that the comparison with the baseline speaks of."""


def notes(full: "pd.DataFrame", baseline: str | None = None, varied: tuple[str, ...] = ()) -> str:
    """Notes of the runs of a frame of `analysis.records.records`, in its order. The same runs give the same text.

    Args:
        baseline: a run id (or its beginning) or a title; by default the first run without a penalty, else the first
            with results.
        varied: keys that the sweep varies, for the audit's warnings.

    Raises ConfigError for a baseline that is no run, or several.
    """
    from analysis.audit import audit, runs_of

    runs, findings = runs_of(full), audit(full, varied)
    for run in runs:
        if run.steps is not None and "steps" not in run.metrics:
            run.config["steps"] = int(run.steps)
    base, why = chosen_baseline(runs, baseline)
    own = [key for key in all_keys(runs) if key.partition(".")[0] not in UNTOLD]
    differing = [key for key in own if len({str(run.config.get(key)) for run in runs}) > 1]
    budget = [place.removesuffix(".name") for place in BUDGET.values()]
    common = {key: runs[0].config[key] for key in (*COMMON, *budget, "steps") if key in own and key not in differing}
    whole = [f for f in findings if len(f.runs) == len(runs) > 1 or not f.runs]
    lines = ["# Run notes", "", f"{len(runs)} run{'s' * (len(runs) != 1)}."]
    if base is not None and len(runs) > 1:
        lines += wrap(f"Baseline: {named(base)}, {why}.")
    lines += literal("In common", common) if common else []
    lines += ["", *warned([f"{f.level}, {f.code}: {f.sentence}" for f in whole])] if whole else []
    for number, run in enumerate(runs):
        lines += ["", "", f"## Run {number}: {clean(run.title or run.run_id, 200)}", "", f"Run id: {clean(run.run_id)}"]
        if run.state != "completed":
            at = f" at step {run.step:,} of {run.total_steps:,}" if run.step and run.total_steps else ""
            lines += wrap(clean(f"State: {run.state}{at}{f': {run.error}' if run.error else ''}", 2_000))
        own_values = {key: run.config[key] for key in differing if key in run.config}
        lines += literal("Varied", own_values) if own_values else []
        lines += literal("Results", run.metrics | dict.fromkeys(run.nulls))
        lines += ["", *wrap(f"Description: {described(run)}")]
        if base is not None and base is not run and base.measured and run.measured:
            lines += ["", *wrap(f"Against the baseline: {compared(run, base)}")]
        concerned = [f for f in findings if f not in whole and run.run_id in f.runs]
        if concerned:
            lines += ["", *warned([f"{f.level}, {f.code}: {f.sentence}" for f in concerned])]
    return "\n".join(lines) + "\n"


UNTOLD = ("outputs", "device", "title", "dry_run", "logger", "cluster", "activations", "eval", "tags")
"""Config groups that say where and how a run was made."""

COMMON = (
    "model", "model.path", "model.d_in", "architecture", "architecture.l1_penalty", "penalty", "schedule",
    "lr_schedule", "lr_schedule.lr", "lr_schedule.warmup", "seed",
)  # fmt: skip
"""Config keys that notes give once, beside the budget, where all runs agree."""


PENALTY_WORDS = {"penalty.lambda2_max": "weight", "schedule": "schedule"}


def all_keys(runs: list["Run"]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.config))


def chosen_baseline(runs: list["Run"], word: str | None) -> tuple["Run | None", str]:
    """The run that others are compared with, and why it is."""
    if word is not None:
        found = [run for run in runs if word in (run.run_id, run.title)]
        found = found or [run for run in runs if run.run_id.startswith(word)]
        if len(found) != 1:
            what = "no run" if not found else f"{len(found)} runs"
            raise ConfigError(f"--baseline {clean(word)}: {what} of these paths; give a run id or a whole title.")
        return found[0], "as asked for"
    measured = [run for run in runs if run.measured]
    plain = [run for run in measured if run.config.get("penalty", "none") == "none"]
    if plain:
        return plain[0], "the first run without a penalty"
    return (measured[0], "the first run with results") if measured else (None, "")


def named(run: "Run") -> str:
    return f"{clean(run.title, 200)} ({clean(run.run_id)})" if run.title else clean(run.run_id)


def described(run: "Run") -> str:
    """What a record says of itself, or what its config means in words."""
    if run.description:
        return clean(run.description, 20_000)
    get = run.config.get
    words = [f"{get('architecture') or 'an'} SAE"]
    words[0] += f" of {get('architecture.d_sae'):,} features" if get("architecture.d_sae") else ""
    words[0] += f" (k = {get('architecture.k')})" if get("architecture.k") is not None else ""
    words[0] += f" on {get('model')}" if get("model") else ""
    words[0] += f" layer {get('layer.index')}" if get("layer.index") is not None and get("model") != "synthetic" else ""
    words.append("without a penalty" if get("penalty", "none") == "none" else f"with penalty {get('penalty')}")
    more = [f"{name} {get(key)}" for key, name in PENALTY_WORDS.items() if get(key) is not None]
    words[-1] += f" ({', '.join(more)})" if more and get("penalty", "none") != "none" else ""
    if run.steps is not None:
        batch = get("batch_size")
        words.append(f"trained for {run.steps:,.0f} steps" + (f" of {batch:,} tokens" if batch else ""))
    return clean(", ".join(words) + (f"; {run.source}" if run.source else "") + ".", 2_000)


def compared(run: "Run", base: "Run") -> str:
    """How the ranked metrics of two runs differ, those that tables show first."""
    from analysis.metrics import FIRST, badness, direction

    names = [name for name in FIRST if direction(name)] + [name for name in run.metrics if name not in FIRST]
    said = []
    for name in dict.fromkeys(names):
        if direction(name) and name in run.metrics and name in base.metrics:
            here, there = run.metrics[name], base.metrics[name]
            better = badness(name, there) - badness(name, here)
            how = "equal" if here == there else f"{abs(here - there):.3g} {'higher' if here > there else 'lower'}"
            verdict = "" if better == 0 else f", {'better' if better > 0 else 'worse'}"
            said.append(f"{name} {cell(here)} ({how}{verdict})")
    more = f"; and {len(said) - COMPARED} more" if len(said) > COMPARED else ""
    return ("; ".join(said[:COMPARED]) + more or "no metric in common") + "."


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
    """A value of Python's own, so that its repr is a literal."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value.is_integer() and abs(value) >= 1000:
        value = int(value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def warned(sentences: list[str]) -> list[str]:
    return ["Warnings:", *(line for sentence in sentences for line in wrap(f"- {clean(sentence, 400)}"))]


def wrap(words: str) -> list[str]:
    """Prose in lines; what follows the first is indented, so that no line of it passes for a heading or a label."""
    return textwrap.wrap(words, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False) or [""]
