"""Python and JSON dicts found in text, read as far as they are whole, without running anything."""

import ast
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

DEEPEST = 50
"""Levels of nesting that are read."""

FARTHEST = 2_000
"""Characters after which a value that is no literal has to have ended."""
LONGEST = 200
"""Characters of a value that is no literal that are quoted."""

NAMES = {
    "None": None, "null": None, "True": True, "true": True, "False": False, "false": False,
    "nan": math.nan, "NaN": math.nan, "NAN": math.nan, "inf": math.inf, "Infinity": math.inf, "Inf": math.inf,
}  # fmt: skip
"""Names of values in Python and JSON, also after a dot (`np.nan`, `math.inf`) -> the value."""

NUMBERS = {
    "float", "int", "tensor", "array", "float16", "float32", "float64", "bfloat16", "int32", "int64", "bool_", "str_",
}  # fmt: skip
"""What a number is wrapped in where an array's or a tensor's repr was written down; after a dot too (`np.float64`)."""

OPENING = re.compile(r"\{(?=\s*(?:['\"}]|[-+]?\d|(?:None|True|False)\b))")
"""A brace that may open a dict: a key or its end follows."""
TOKEN = re.compile(
    r"""(?:\s|\#[^\n]*)*
    (?:(?P<string>[bBrRuU]{0,2}(?:'''(?:[^\\]|\\.)*?'''|\"\"\"(?:[^\\]|\\.)*?\"\"\"|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"))
    |(?P<number>[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?(?![\w.]))
    |(?P<name>[-+]?[A-Za-z_][\w.]*)
    |(?P<mark>[][{}(),:]))""",
    re.VERBOSE | re.DOTALL,
)
SKIPPED = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|[][{}(),]""")
"""What matters in an expression that is passed over: strings whole, brackets and commas."""


class Literal(dict):
    """A dict literal; `doubled` names keys that were given twice with different values (the first is kept)."""

    doubled: tuple[str, ...] = ()


@dataclass
class Found:
    """A dict as read."""

    value: Literal
    end: int
    """Where it ends in the text; of a dict that was cut short, after what is whole."""
    cut: str | None = None
    """Why it does not close, or None: `value` then holds what came whole before that place."""
    unread: list[tuple[int, str]] = field(default_factory=list)
    """(place, key and what was written) of values that are no literals; the dict is without them."""


class Cut(Exception):
    """The dict does not go on; `args` are the reason and what its innermost container held."""


NO_END = f"a value has no end within {FARTHEST:,} characters"
NOTHING = object()
"""In the place of a value that is no literal."""


def read_dict(text: str, start: int) -> Found | None:
    """The dict whose `{` is at `start`: strings, numbers, NAMES, lists, tuples and dicts; None where it is no dict.

    Any other value is passed over and listed as unread. A dict that does not close is read up to the last whole value.
    """
    if not OPENING.match(text, start):
        return None
    reader = _Reader(text, start)
    reader.token()
    value = Literal()
    try:
        reader.entries(value, 0)
    except Cut as cut:
        return Found(value, reader.place, cut.args[0], reader.unread)
    return Found(value, reader.place, None, reader.unread)


class _Reader:
    def __init__(self, text: str, place: int):
        self.text, self.place = text, place
        """`place` is after the last token that was taken."""
        self.unread: list[tuple[int, str]] = []

    def peek(self) -> re.Match[str] | None:
        return TOKEN.match(self.text, self.place)

    def token(self) -> re.Match[str] | None:
        found = self.peek()
        if found:
            self.place = found.end()
        return found

    def takes(self, mark: str) -> bool:
        """Take the mark if it is next."""
        found = self.peek()
        if found and found["mark"] == mark:
            self.place = found.end()
            return True
        return False

    def entries(self, into: Literal, depth: int) -> None:
        """Read entries up to and with the `}`."""
        doubled = []
        while not self.takes("}"):
            before = self.place
            try:
                key = self.key()
            except Cut as cut:
                raise Cut(*cut.args, into) from None
            if not self.takes(":"):
                self.place = before
                raise Cut("a key without a value", into)
            try:
                value = self.item(depth, "}", str(key))
            except Cut as cut:
                if len(cut.args) > 1:
                    into.setdefault(key, cut.args[1])
                else:
                    self.place = before
                raise Cut(cut.args[0], into) from None
            if value is not NOTHING:
                if key in into and not same(into[key], value):
                    doubled.append(str(key))
                into.setdefault(key, value)
            into.doubled = tuple(doubled)

    def key(self) -> Any:
        before, found = self.place, self.token()
        if found and (found["string"] or found["number"] or (found["name"] and found["name"] in NAMES)):
            key = self.scalar(found)
            if key is not NOTHING:
                return key
        self.place = before
        raise Cut("the brackets do not close")

    def item(self, depth: int, closer: str, name: str) -> Any:
        """One value and the comma after it, if there is one; NOTHING for what is no literal, which is passed over."""
        blank = TOKEN.match(self.text, self.place)
        start = self.place if blank is None else blank.start(blank.lastgroup or 0)
        if blank is None and not self.text[self.place :].strip():
            raise Cut("the text ends")
        value = self.value(depth + 1)
        if value is not NOTHING and (self.takes(",") or self.closes(closer)):
            return value
        if value is not NOTHING and not self.text[self.place :].partition("\n")[0].strip():
            self.place = start  # what follows is no part of it, and its last digits may be missing
            raise Cut("the text ends" if not self.text[self.place :].strip() else "the line ends")
        self.place = start
        written = self.skip(closer)
        self.unread.append((start, f"{name}: {' '.join(written[:LONGEST].split())}"))
        return NOTHING

    def closes(self, closer: str) -> bool:
        found = self.peek()
        return bool(found and found["mark"] == closer)

    def value(self, depth: int) -> Any:
        """The value at this place, or NOTHING."""
        found = self.token()
        if found is None or depth > DEEPEST:
            return NOTHING
        match found["mark"]:
            case "{":
                inner = Literal()
                self.entries(inner, depth)
                return inner
            case "[" | "(":
                return self.sequence("]" if found["mark"] == "[" else ")", depth)
            case None:
                return self.scalar(found, depth)
        return NOTHING

    def sequence(self, closer: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not self.takes(closer):
            try:
                value = self.item(depth, closer, str(len(items)))
            except Cut as cut:
                items += cut.args[1:]
                raise Cut(cut.args[0], items) from None
            items.append(None if value is NOTHING else value)
        return items

    def scalar(self, found: re.Match[str], depth: int = 0) -> Any:
        if found["string"]:
            return text_of(found["string"])
        if found["number"]:
            return number_of(found["number"])
        sign, name = -1 if found["name"][0] == "-" else 1, found["name"].lstrip("+-").rpartition(".")[2]
        if name in NAMES:
            value = NAMES[name]
            return sign * value if isinstance(value, float) else value
        if name in NUMBERS and self.takes("("):
            value = self.value(depth + 1)
            if value is NOTHING or not (self.closes(")") or self.takes(",")):
                return NOTHING
            while not self.takes(")"):  # device='cuda:0'
                self.skip(")")
            return number_of(value) if isinstance(value, str) and name == "float" else value
        return NOTHING

    def skip(self, closer: str) -> str:
        """Pass over an expression and the comma after it; what it was. Raises Cut where it has no end."""
        depth, start, before = 0, self.place, self.place
        for found in SKIPPED.finditer(self.text, start, start + FARTHEST):
            mark = found[0]
            if depth == 0 and "\n" in self.text[before : found.start()]:
                raise Cut("the line ends")
            before = found.end()
            if mark in "([{":
                depth += 1
            elif mark in ")]}" and depth:
                depth -= 1
            elif mark == closer or (mark == "," and depth == 0):
                self.place = found.end() if mark == "," else found.start()
                return self.text[start : found.start()]
            elif depth == 0 and mark in ")]}":
                raise Cut("the brackets do not close")
        raise Cut(NO_END if len(self.text) > start + FARTHEST else "the brackets do not close")


def text_of(literal: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # \/ of JSON
            value = ast.literal_eval(literal)
        return value if isinstance(value, str) else value.decode("utf-8", "replace")
    except (ValueError, SyntaxError, MemoryError):
        return NOTHING


def number_of(text: str) -> Any:
    """The int or float of a text; NOTHING where it is none, or no float is as large."""
    try:
        value = int(text) if re.fullmatch(r"[-+]?[\d_]+", text) else float(text)
        float(value)
        return value
    except (ValueError, OverflowError):
        return NOTHING


def same(a: Any, b: Any) -> bool:
    """Equality in which nan equals nan."""
    return a == b or (a != a and b != b)


def leaves(tree: dict[Any, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that is not a dict, with the keys that lead to it."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value
