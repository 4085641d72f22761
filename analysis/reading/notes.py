"""Run notes, one block per run, read as imported runs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis.reading.imports import imported_run
from analysis.reading.literals import Literal, braces, leaves, read_literal, same
from analysis.reading.names import STEPS, config_name, is_config
from analysis.reading.own_notes import findings_in, is_own, own_run
from analysis.text import clean
from sae_sweeps.errors import DataError

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
"""A dict at the beginning of a line, or after a label at the beginning of a line."""
CONFIG_BLOCK = re.compile(r"config|varied|common|setting|hyper|argument|param", re.I)
RESULT_BLOCK = re.compile(r"result|metric|score|eval|loss", re.I)
SKIPPED = ("eval_config", "eval_result_details", "eval_result_unstructured")
"""Nested blocks without metrics of the run."""
OWN_LINES = re.compile(r"^(Run id|State|Against the baseline)\b.*(?:\n {2,}\S.*)*\n?", re.M)
"""The lines of notes written by `analysis.output.notes` that are not part of the description."""
MOST_BRACES = 100
"""The most braces in one section that may hold no literal."""
AUDITED = re.compile(r"^(?:error|warning|note), ([a-z0-9-]+): ")
"""A finding of the audit in a `Warnings:` list."""


def parse_notes(text: str, name: str, path: Path) -> list[dict[str, Any]]:
    """The imported runs (see `imported_run`) in run notes, written by this project or by hand.

    Dicts may be Python or JSON literals, on one line or many, fenced or not, nested, several per run; nan, NaN, inf,
    -Infinity, None and null are read, and runs without a number. Nothing is evaluated. Contradictions become warnings
    of the run, all other text its description. Raises DataError for notes without runs, and for a dict of results or
    config that is not a literal.
    """
    common: dict[str, Any] = {}
    runs: list[dict[str, Any]] = []
    taken: set[str] = set()
    findings: list[str] = []
    for heading, title, body, line in sections(text):
        if heading is not None and is_own(body):
            number, _ = unique_number(heading, taken)
            taken.add(number)
            runs.append(own_run(f"{name}/{number}", title, body, common, findings, f"{path}, line {line}"))
            continue
        blocks, prose = split_blocks(body, path, line)
        if heading is None:  # before the first run, or a heading of another kind
            findings += findings_in(body)
            common |= {config_name(k): v for label, b in blocks if CONFIG_BLOCK.search(label) for k, v in b.items()}
            continue
        number, doubts = unique_number(heading, taken)
        taken.add(number)
        config, metrics, contradictions = merged(blocks)
        config = common | config
        steps = next((value for key, value in config.items() if key in STEPS), metrics.get("steps"))
        state = re.search(r"^State: (\w+)", body, re.M)
        prose, _, listed = OWN_LINES.sub("", prose).partition("\nWarnings:\n")
        runs.append(
            imported_run(
                run_id=f"{name}/{number}",
                title=clean(title.strip(" *#"), 200),
                config={key: value for key, value in config.items() if key not in STEPS},
                metrics=metrics,
                steps=int(steps) if isinstance(steps, int | float) and steps == steps else None,
                state=state[1] if state else "completed",
                description=described(prose),
                warnings=[*doubts, *contradictions, *own_warnings(listed)],
            )
        )
    if not runs:
        raise DataError(f"{path} holds no run notes; a run begins with a line such as `## Run 1: title`.")
    return runs


def unique_number(heading: str, taken: set[str]) -> tuple[str, list[str]]:
    """A run's number that is not `taken`, and a warning where it is not the one of its heading ("" for none)."""
    if not heading:
        number = next(str(n) for n in range(len(taken) + 1000) if str(n) not in taken)
        return number, [f"the notes give this run no number; it is counted as {number}"]
    if heading in taken:
        number = next(f"{heading}-{n}" for n in range(2, 1000) if f"{heading}-{n}" not in taken)
        return number, [f"the notes use the number {heading} twice; this run is counted as {number}"]
    return heading, []


def described(prose: str) -> str:
    """The text of a section in one line, without heading marks and the label `Description:`."""
    return " ".join(re.sub(r"^\s*(?:#+ |\**Description\**:?\**)", "", prose, flags=re.M).split())


def own_warnings(listed: str) -> Iterator[str]:
    """The warnings listed in the notes, without the findings of the audit, which are computed anew."""
    for item in re.findall(r"^- (.*(?:\n {2,}.*)*)", listed, re.M):
        words = " ".join(item.split())
        found = AUDITED.match(words)
        if found is None or found[1] == "run-warning":
            yield words[found.end() :] if found else words


def sections(text: str) -> Iterator[tuple[str | None, str, str, int]]:
    """(number, title, body, first line) of each section; number is None outside runs, "" for a run without a number."""
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
    """The dicts of a section, each with its label, and the text between them."""
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
    """The last non-empty line before a dict without a label on its own line."""
    lines = [line.strip(" *#:=") for line in before.splitlines() if line.strip(" *#:=")]
    return lines[-1][-80:] if lines else ""


def merged(blocks: list[tuple[str, Literal]]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Config, metrics and contradictions of a run's blocks; nested metrics are under their last name.

    A name with different values keeps the first; further values of a metric are kept under their full dotted names.
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
