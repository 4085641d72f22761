"""The lines of notes without what quotes and fences them."""

import re
from dataclasses import dataclass

PROMPT = re.compile(r"^#### ?")
IS_PROMPT = re.compile(r"^####(?:\s*$| *[{\-*0-9])")
"""No Markdown heading is empty or a list: where one line is such, `#### ` quotes what a chat was given."""
QUOTE = re.compile(r"^ {0,3}(?:> ?)+")
FENCE = re.compile(r"^\s*(?:[-*+] +)?(```+|~~~+) *([\w+.-]*)\s*$")
TEXT_FENCES = ("", "text", "txt", "markdown", "md", "json", "console")
"""Languages of fences in which notes are; what is in others is code."""
EDIT, EDIT_ENDS = re.compile(r"^\s*<{5,} \w+"), re.compile(r"^\s*>{5,} \w+")

OWN, GIVEN, TOOL, CODE = "own", "given", "tool", "code"


@dataclass(frozen=True)
class Line:
    text: str
    """Without the marks of a quote; empty for a fence's own line."""
    voice: str = OWN
    """own: the notes' text; of a chat's transcript also given (its prompts) and tool; code: of a fence or an edit."""


def read_lines(text: str) -> list[Line]:
    """The lines of notes, one for each line of the text."""
    raw = text.splitlines()
    chat = any(IS_PROMPT.match(line) for line in raw)
    lines: list[Line] = []
    fence, edit, before = "", False, OWN
    for line in raw:
        voice = OWN
        if chat and PROMPT.match(line):
            line, voice = PROMPT.sub("", line), GIVEN
        elif quoted := QUOTE.match(line):
            if not EDIT_ENDS.match(line):
                line, voice = line[quoted.end() :], TOOL if chat else OWN
        if chat and voice != before:
            fence, edit = "", False  # the next speaker's line closes it
        before = voice
        if mark := FENCE.match(line):
            if fence:
                fence = ""
            else:
                fence = "text" if mark[2].lower() in TEXT_FENCES else CODE
            lines.append(Line("", voice))
            continue
        edit = edit or EDIT.match(line) is not None
        lines.append(Line(line, CODE if edit or fence == CODE else voice))
        edit = edit and not EDIT_ENDS.match(line)
    return lines
