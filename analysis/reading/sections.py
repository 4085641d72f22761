"""Notes cut into runs and what is between them."""

import bisect
import re
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from analysis.reading.figures_in_dicts import CONFIG_BLOCK, RESULT_BLOCK, Block, Figure, block_of
from analysis.reading.figures_in_text import TextFigure, figures_in
from analysis.reading.lines import CODE, OWN, Line, read_lines
from analysis.reading.literals import NO_END, Found, read_dict
from analysis.reading.names import STEPS, config_name
from analysis.reading.older_notes import OWN_RUN, STATE
from analysis.text import clean

RUN = r"\**\s*Run\b(?:\s+(?:no\.?\s*|#\s*)?([0-9]+[a-z]?)\b)?\s*\**\s*"
HEADING = re.compile(rf"^ {{0,3}}(#{{1,6}})\s*{RUN}(?:[:.–—-]|$)\s*\**(.*)$", re.IGNORECASE)
"""`## Run 3: title`, `## Run: title`."""
NUMBERED_HEADING = re.compile(r"^ {0,3}(#{1,6})\s*\**\s*Run\s+#?([0-9]+[a-z]?)\b\**\s*(.*)$", re.IGNORECASE)
"""`## Run 3 (title)`."""
LINE = re.compile(rf"^ {{0,3}}()(?=\**\s*Run\s+\W*(?:no\.?\s*)?[0-9]){RUN}(?:[:.–—-]|$)\s*\**(.*)$", re.IGNORECASE)
"""`Run 3: title` without a #; `Run 3 went well` is prose."""
OTHER_HEADING = re.compile(r"^(#{1,6})\s+(.*)$")
ABOUT = re.compile(
    r"^\W*(?:analysis|results?|summary|discussion|conclusions?|notes|continued|completed)\b", re.IGNORECASE
)
"""How a heading goes on that mentions a run and does not begin one."""
PLAN = re.compile(r"\b(?:plan(?:s|ned)?|next steps?|to ?do|future|proposed|implementation)\b", re.IGNORECASE)
PLANNED_RUN = re.compile(r"^\s*(?:[-*+]|\d+[.)])?\s*(?:#+\s*)?\**\s*Run\s+#?([0-9]+[a-z]?)\b", re.IGNORECASE)
LABEL_LINE = re.compile(r"^\s*\**[A-Z][^.:\n]{0,80}\**:\**\s*$")
RUN_RESULTS = re.compile(r"^\W*(?:results?\s+(?:of|for|from)\s+)?Run\s+#?([0-9]+[a-z]?)\b", re.IGNORECASE)
"""A line above a dict that names its run: `Run 1 completed. Here are the results:`."""
BASELINE_RESULTS = re.compile(r"^\W*(?:results?\s+(?:of|for|from)\s+)?(?:the\s+)?baseline\b", re.IGNORECASE)
OPEN = re.compile(r"^ {0,3}(?:[-*>+] +)?(?:([^\s{}=][^\n{}=]{0,199}?) *[:=] *\**[ \t]*)?(?=\{)", re.M)
"""A dict at the beginning of a line, or after a label at the beginning of a line."""


@dataclass
class Section:
    """A run, or what is outside runs."""

    number: str | None
    """None outside runs, "" for a run without a number."""
    title: str
    line: int
    level: int = 0
    introduced: bool = False
    """Whether a line above its dict began it, not a heading."""
    blocks: list[Block] = field(default_factory=list)
    text: list[tuple[int, str]] = field(default_factory=list)
    """(line, text) of its own text, without dicts and code."""
    text_figures: list[Figure] = field(default_factory=list)
    unread: list[dict[str, Any]] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    planned: list[tuple[str, int]] = field(default_factory=list)
    """Numbers of runs that it plans, each with its line."""
    state: str = ""
    listed: str = ""
    moved: str = ""

    @property
    def is_run(self) -> bool:
        return self.number is not None

    @property
    def is_own(self) -> bool:
        """Whether this project wrote it."""
        return any(OWN_RUN.match(text) for _, text in self.text)

    @property
    def is_baseline(self) -> bool:
        return self.number == "0" or re.search(r"\bbaseline\b", self.title, re.IGNORECASE) is not None

    @property
    def figures(self) -> list[Figure]:
        return [*(figure for block in self.blocks for figure in block.figures), *self.text_figures]


@dataclass
class Dict:
    """A dict of the notes and the lines that it is on, from 0."""

    label: str
    label_line: int | None
    """Where a line of its own has the label."""
    found: Found
    first: int
    last: int
    rest: str
    """What is on its last line after it."""


def sections_of(text: str) -> list[Section]:
    """The sections of notes in their order, with their dicts and the figures of their text."""
    lines = read_lines(text)
    dicts, unread = dicts_in(lines)
    sections = cut(lines, dicts)
    for place, why in unread:
        section = [s for s in sections if s.line <= place + 1][-1]
        section.unread.append({"line": place + 1, "text": clean(lines[place].text, 200), "why": why})
    for section in sections:
        if section.is_run:
            read_text(section)
    return sections


def dicts_in(lines: list[Line]) -> tuple[list[Dict], list[tuple[int, str]]]:
    """The dicts of the lines, and (line, why) of what is labelled as one and is none."""
    text = "\n".join(line.text for line in lines)
    starts = [0, *accumulate(len(line.text) + 1 for line in lines)]

    def line_at(place: int) -> int:
        return bisect.bisect_right(starts, place) - 1

    found, unread, place = [], [], 0
    own = any(OWN_RUN.match(line.text) for line in lines)
    while opening := OPEN.search(text, place):
        at = line_at(opening.end())
        if own and (lines[at].text.startswith("-") or ":" in (opening[1] or "")):  # what a warning quotes
            place = opening.end() + 1
            continue
        label, label_line = (opening[1] or "").strip(" *"), None
        if not label:
            label, label_line = label_above(lines, at)
        read = None
        if lines[at].voice != CODE or not opening[1]:
            read = read_dict(text, opening.end())
        if read is None or (not read.value and (read.cut or read.unread)):
            if lines[at].voice != CODE and (RESULT_BLOCK.search(label) or CONFIG_BLOCK.search(label)):
                unread.append((at, (read.cut if read else None) or "no dict"))
            place = opening.end() + 1
            continue
        last = line_at(max(read.end - 1, opening.end()))
        rest = lines[last].text[read.end - starts[last] :]
        found.append(Dict(label, label_line, read, at, last, "" if read.cut else rest))
        place = starts[last + 1] if read.cut else read.end
        place = max(place, opening.end() + 1)
    return found, unread


def label_above(lines: list[Line], at: int) -> tuple[str, int | None]:
    """The last non-empty line before a dict without a label on its own line, and where it is."""
    for place in range(at - 1, max(at - 6, -1), -1):
        words = lines[place].text.strip(" *#:=")
        if words:
            return words[-200:], place
    return "", None


def cut(lines: list[Line], dicts: list[Dict]) -> list[Section]:
    """Sections by headings and by lines that introduce a run's dict."""
    sections = [Section(None, "", 1)]
    starting = {found.first: found for found in dicts}
    within = {place for found in dicts for place in range(found.first, found.last + 1)}
    labels = {found.label_line for found in dicts if found.label_line is not None}
    plan_level, plan = 0, False
    chat = any(line.voice not in (OWN, CODE) for line in lines)
    place = -1
    while place + 1 < len(lines):
        place += 1
        line, current = lines[place], sections[-1]
        if place in starting:
            found = starting[place]
            current = introduced(sections, found)
            add_dict(current, found, lines)
            if found.rest.strip():
                current.text.append((found.last + 1, found.rest))
            continue
        if place in within or line.voice == CODE:
            continue
        text = line.text
        heading = HEADING.match(text) or NUMBERED_HEADING.match(text) or LINE.match(text)
        other = OTHER_HEADING.match(text)
        level = len(heading[1]) if heading else len(other[1]) if other else 0
        if plan and ((level and level <= plan_level) or (level and not plan_level)):
            plan = False
        if (run := PLANNED_RUN.match(text)) and (plan or not heading):
            current.planned.append((run[1], place + 1))
        if heading and (plan or is_about(heading, sections)):
            heading = None
            if level and PLAN.search(text):
                plan, plan_level = True, level
        elif heading:
            sections.append(Section(heading[2] or "", heading[3].strip(), place + 1, level or 2))
            continue
        elif other and not (chat and line.voice != OWN):
            plan, plan_level = (
                PLAN.search(other[2]) is not None or (plan and level > plan_level),
                (plan_level if plan and level > plan_level else level),
            )
            if level <= (current.level or 6):
                sections.append(Section(None, other[2].strip(), place + 1))
                continue
        elif LABEL_LINE.match(text) and not run:
            plan, plan_level = PLAN.search(text) is not None, 0
        if not chat or line.voice == OWN:
            if place not in labels or not RUN_RESULTS.match(text):
                current.text.append((place + 1, text))
    return sections


def is_about(heading: re.Match[str], sections: list[Section]) -> bool:
    """Whether a heading that names a run without a colon mentions an existing one, or plans one."""
    rest = heading[3]
    plain = HEADING.match(heading.string) or LINE.match(heading.string)
    if plain is not None and not ABOUT.match(rest):
        return False
    exists = any(section.number == heading[2] for section in sections)
    return (ABOUT.match(rest) is not None and exists) or (plain is None and PLAN.search(rest) is not None)


def introduced(sections: list[Section], found: Dict) -> Section:
    """The section of a dict: a new one where its label names another run than the current one's."""
    current = sections[-1]
    line = (found.label_line if found.label_line is not None else found.first) + 1
    if run := RUN_RESULTS.match(found.label):
        if current.number != run[1]:
            sections.append(Section(run[1], "", line, 0, introduced=True))
    elif BASELINE_RESULTS.match(found.label) and (current.introduced or not current.is_baseline):
        title = re.sub(r"(?i)\b(?:results?|from|of|for|the)\b", " ", found.label)
        sections.append(Section("", " ".join(title.split()), line, 0, introduced=True))
    if sections[-1] is not current and current.text and current.text[-1][0] == line:
        current.text.pop()
    return sections[-1]


def add_dict(section: Section, found: Dict, lines: list[Line]) -> None:
    block = block_of(found.label[-80:], found.found.value, found.first + 1)
    block.after = text_after(lines, found)
    section.blocks.append(block)
    section.doubts += block.doubts
    section.unread += block.unread
    for _, written in found.found.unread:
        section.unread.append({"line": found.first + 1, "text": written, "why": "no literal"})
    if found.found.cut:
        tail = lines[found.last].text[-60:]
        why = f"{'read up to there' if found.found.cut == NO_END else 'cut short'}, {found.found.cut}"
        section.unread.append({"line": found.last + 1, "text": f"... {tail}", "why": why})


def text_after(lines: list[Line], found: Dict) -> str:
    """The first text after a dict, without the label `Description:`."""
    following = [found.rest, *(line.text for line in lines[found.last + 1 : found.last + 4])]
    words = next((text for text in following if text.strip()), "")
    return re.sub(r"^\W*(?:Description\W*)?", "", words, flags=re.IGNORECASE)


def read_text(section: Section) -> None:
    """The figures of a run's text, and its state and warnings in notes of this project."""
    states = (STATE.match(text) for _, text in section.text)
    section.state = next((found[1] for found in states if found), "")
    section.listed = "\n".join(text for _, text in section.text).partition("\nWarnings:\n")[2]
    if section.is_own:
        return
    for one in figures_in(section.text):
        if isinstance(one, TextFigure):
            name = one.name if not one.is_config else "steps" if one.name in STEPS else config_name(one.name)
            figure = Figure(name, one.value, one.line, one.phrase, one.is_config, "text", "", one.remark)
            section.text_figures.append(figure)
        else:
            line, text, why = one
            section.unread.append({"line": line, "text": text, "why": why})
