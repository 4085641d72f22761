"""Figures that text gives: `label: number` lists, `label number` results, `key=value` and `label (number)` phrases."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from analysis.metrics import metric_named
from analysis.reading.names import CONFIG_NAMES, LABELS, PLAIN_CONFIG, STEPS, is_config

NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
VALUE = rf"(?:{NUMBER}|NaN|nan|None|null|[-+]?inf(?:inity)?)"
ENDS = r"(?![\w%×]|[.,:/-]\d|\.\.)"
"""What cannot follow a number that is whole: 5M, 10x, 25%, 3/4, 0.79-0.80."""
ITEM = re.compile(
    rf"^\s*(?P<mark>[-*+•]|\d+[.)])?\s*\**(?P<label>[A-Za-z][^:=\n{{}}]{{0,60}}?)\**\s*(?P<sign>[:=])\**\s*"
    rf"(?P<value>{VALUE}){ENDS}(?P<rest>.*)$"
)
ATTEMPT = re.compile(
    r"^\s*(?P<mark>[-*+•]|\d+[.)])?\s*\**(?P<label>[A-Za-z][^:=\n{}]{0,60}?)\**\s*[:=]\**\s*(?P<value>[~≈<>]?\s*[-+.]?\d\S*)"
)
"""A list's item whose value begins as a number and is none."""
PAIR = re.compile(rf"\b(?P<label>[A-Za-z][\w -]{{1,40}}?)\s+(?P<value>{VALUE}){ENDS}\s*(?:,|;|$|and\b)")
PAIR_ATTEMPT = re.compile(r"\b(?!and\b)(?P<label>[A-Za-z][\w -]{1,40}?)\s+(?P<value>[~≈<>]?[-+.]?\d[^\s,;]*)")
"""A pair whose value begins as a number and may be none."""
LABEL = re.compile(
    r"^\s*(?P<mark>[-*+•]\s+|\d+[.)]\s+)?\**(?P<label>[A-Z][^:.\n{}]{0,60}?)\**:\**(?:\s+(?P<rest>.*))?$"
)
TRAILING = re.compile(r"([^.:;]+):\s*$")
"""The end of a line that introduces a list."""
COMMENT = re.compile(
    r"\b(?:analysis|insights?|observations?|next|plan(?:ned|s)?|suggest\w*|consider|recommend\w*|conclusions?|future|"
    r"implementation|interpretation|limitations?|ideas?|todo|hypothes\w+|expect\w*|command|note)\b",
    re.IGNORECASE,
)
"""Labels of blocks that comment on figures or plan: no figures of the run are read there."""
RESULTS = re.compile(r"\b(?:results?|metrics?|scores?|evaluations?|final)\b", re.IGNORECASE)
HEDGE = re.compile(
    r"\b(?:consider|need|needs|may|might|should|could|would|will|plan|target|suggest\w*|propose\w*|try|instead|"
    r"baseline|compared|versus|vs|next|previous|than|runs?\s+\d)\b",
    re.IGNORECASE,
)
"""Words after which a number of a sentence may be another run's, or none's."""
HEDGE_AFTER = re.compile(r"\b(?:needs?\s+to|might|should|could|would|will|plan\w*|next|tr(?:y|ied))\b", re.IGNORECASE)
"""Words that make a proposal of what is before them."""
PLAIN = (name for name in PLAIN_CONFIG if "_" in name or name == "seed")  # the others are words of any sentence
NAMED = sorted({*LABELS, *CONFIG_NAMES, *STEPS, *PLAIN}, key=len, reverse=True)
PHRASE = re.compile(
    rf"\b(?P<label>{'|'.join(re.escape(name) for name in NAMED)})"
    rf"(?:\s*[=(]\s*|\s+(?:of|at|to|is|was|(?:remain|stay)(?:s|ed)\s+at|from\s+{NUMBER}\s+to)\s+)(?P<value>{NUMBER}){ENDS}",
    re.IGNORECASE,
)
SPACED = re.compile(r"\b(?P<label>layer)\s+(?P<value>\d+)\b(?!\s*(?:-|to|and)\s*\d)", re.IGNORECASE)
STEPS_DONE = re.compile(rf"\b(?:at|for|completed|after)\s+(?P<value>{NUMBER})\s+(?P<label>(?:training )?steps)\b", re.I)
PERCENT = re.compile(r"\btop (?P<value>\d+(?:\.\d+)?)% (?:most )?active\b", re.IGNORECASE)
INITIAL = re.compile(rf"\bscal(?:e|ing) starting at (?P<value>{NUMBER}){ENDS}", re.IGNORECASE)

ROW = re.compile(r"^\s*\|(.*?)\|?\s*$")
"""A row of a table in Markdown."""
PHRASES = (PHRASE, SPACED, STEPS_DONE, PERCENT, INITIAL)
ASIDE = re.compile(rf"\((?=[^()]*(?:{HEDGE.pattern}|\bfrom\b))[^()]*\)", re.IGNORECASE)
"""Brackets that speak of another run: `(vs baseline 2441)`, `(up from 1)`."""


@dataclass(frozen=True)
class TextFigure:
    """One figure that text gives."""

    name: str
    """As a dict would call it."""
    value: Any
    line: int
    phrase: str
    is_config: bool
    remark: str = ""


def value_of(text: str) -> Any:
    """The number that a text has; nan and infinities as floats, None for None."""
    word = text.strip().lower().replace(",", "")
    if word in ("none", "null"):
        return None
    if word.lstrip("+-") in ("nan", "inf", "infinity"):
        return float(word)
    value = float(word)
    whole = re.fullmatch(r"[-+]?\d+", word) and abs(value) < 2**53
    return int(word) if whole else (value if math.isfinite(value) else None)


def name_of(label: str) -> str | None:
    """The name that a label has in dicts, or None for a label that nothing is known of."""
    words = " ".join(label.strip(" *_`").split()).lower()
    snake = re.sub(r"[^\w]+", "_", words).strip("_")
    if words in LABELS:
        return LABELS[words]
    for name in (words, snake):
        if is_config(name) or name in STEPS:
            return name
    return metric_named(snake) or (snake if re.search(r"_(?:score|accuracy|loss|metric)$", snake) else None)


def figures_in(lines: list[tuple[int, str]]) -> Iterator[TextFigure | tuple[int, str, str]]:
    """The figures of a run's text, in order, and (line, text, why) of what looks like one and cannot be read.

    Args:
        lines: (line number, text) of the run's own text, without its dicts.
    """
    comment, results, table = False, False, ""
    for number, text in lines:
        row = ROW.match(text)
        if row:
            cells = [cell.strip(" *`") for cell in row[1].split("|")]
            is_header = not table and not any(re.search(r"\d", cell) for cell in cells[1:])
            table = table or (cells[0] if is_header else "-")
            if not (comment or is_header or re.fullmatch(r"[\s|:-]+", text)):
                yield from row_figures(number, text.strip(), cells, results or RESULTS.search(table) is not None)
            continue
        table = ""
        if not text.strip():
            continue
        item = ITEM.match(text)
        label = None if item and name_of(item["label"]) else LABEL.match(text)
        if label and not item:
            is_comment = COMMENT.search(label["label"]) is not None
            if label["mark"]:  # an item of a list is of its block
                comment = comment or is_comment
            else:
                comment, results = is_comment, RESULTS.search(label["label"]) is not None
        if not comment:
            yield from line_figures(number, text, item, label, results)
        if not (label and label["mark"]) and text.rstrip().endswith(":") and (found := TRAILING.search(text)):
            tail = found[1]
            comment = COMMENT.search(tail) is not None
            results = RESULTS.search(tail) is not None


def row_figures(number: int, text: str, cells: list[str], results: bool) -> Iterator[TextFigure | tuple[int, str, str]]:
    """The figures of a table's row: of two cells as `label: number`."""
    if len(cells) != 2:
        if any(re.search(r"\d", cell) for cell in cells):
            yield number, text, "a table's row of two cells is read, a name and a number"
        return
    line = f"- {cells[0]}: {cells[1]}"
    found = list(line_figures(number, line, ITEM.match(line), None, results))
    for one in found:
        yield replace(one, phrase=text) if isinstance(one, TextFigure) else (number, text, one[2])
    if not found:
        yield number, text, "no name and number"


def line_figures(
    number: int, text: str, item: re.Match[str] | None, label: re.Match[str] | None, results: bool
) -> Iterator[TextFigure | tuple[int, str, str]]:
    """The figures of one line."""
    if item:
        name = name_of(item["label"])
        if name is None and item["mark"] and item["sign"] == ":" and len(item["label"].split()) <= 5:
            name = re.sub(r"\W+", "_", item["label"].strip().lower()).strip("_")
            known = not results
        else:
            known = name is not None and (is_config(name) or name in STEPS)
        if name is not None:
            remark = item["rest"].strip().strip("()").strip()
            yield TextFigure(name, value_of(item["value"]), number, text.strip(), known, remark)
            return
    elif (tried := ATTEMPT.match(text)) and (name_of(tried["label"]) or tried["mark"]):
        yield number, text.strip(), no_number(tried["value"])
        return
    if label and label["rest"] and results:
        for pair in PAIR.finditer(label["rest"]):
            phrase = pair[0].removesuffix("and").strip(" ,;")
            if name := name_of(pair["label"]):
                yield TextFigure(name, value_of(pair["value"]), number, phrase, is_config(name))
            elif RESULTS.search(label["label"]) and len(pair["label"].split()) <= 3:
                yield number, phrase, f"{pair['label']} is the name of no figure"
        for pair in PAIR_ATTEMPT.finditer(label["rest"]):
            if name_of(pair["label"]) and not re.fullmatch(VALUE, pair["value"]):
                yield number, pair[0].strip(" ,;"), no_number(pair["value"])
    for sentence in re.split(r"[.;]\s+(?=[A-Z])", label["rest"] or "" if label else text):
        sentence = ASIDE.sub("", sentence)
        hedge = HEDGE.search(sentence)
        end = hedge.start() if hedge else len(sentence)
        start = max((found.start() for found in HEDGE_AFTER.finditer(sentence)), default=-1)
        for pattern in PHRASES:
            for found in pattern.finditer(sentence):
                if start < found.end() and found.start() < end:
                    yield phrase_figure(number, found, pattern)


def no_number(value: str) -> str:
    """Why a value that begins as a number is not read."""
    if found := re.fullmatch(rf"({NUMBER})%[.,;]?", value):
        return f"a percentage; write it as {value_of(found[1]) / 100:.10g}"
    return f"{value} is no whole number"


def phrase_figure(number: int, found: re.Match[str], pattern: re.Pattern[str]) -> TextFigure:
    value = value_of(found["value"])
    if pattern is PERCENT:
        return TextFigure("active_fraction", value / 100, number, found[0], True)
    if pattern is INITIAL:
        return TextFigure("initial_scale", value, number, found[0], True)
    name = name_of(found["label"]) or found["label"].lower()
    return TextFigure(name, value, number, found[0].strip(), is_config(name) or name in STEPS)
