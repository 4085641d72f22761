"""Filters of runs: `k = 320 and penalty in (none, ortho)`.

    expression := term {or term}          term := factor {and factor}
    factor     := not factor | ( expression ) | comparison
    comparison := column (= | != | < | <= | > | >=) literal | column ~ text | column [not] in ( literal {, literal} )

A column is named as in `find_columns`. A literal is a number (1e-3), a word (bare, or quoted where it has blanks or
signs), true, false or null. null also matches a key that a run does not have. `~` matches a part of a text without
regard to case, or all of it where the pattern has `*` or `?`.
"""

import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NoReturn

import pandas as pd

from analysis.columns import find_column
from analysis.metrics import Column
from analysis.text import cell, clean
from sae_sweeps.errors import ConfigError

TOKEN = re.compile(r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<sign><=|>=|!=|==|[=<>~(),])|(?P<word>[^\s()<>=!~,"']+))""")
NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?")
ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
COMPARISONS = ("=", "!=", "~", *ORDERS)
KEYWORDS = ("and", "or", "not", "in")
DEEPEST = 50
"""The deepest nesting of parentheses and nots."""

Test = Callable[["Row"], bool]
Row = dict[Column, Any]


@dataclass(frozen=True)
class Token:
    kind: str
    """quoted, sign, word, or end."""
    text: str
    position: int
    """Of its first character, counted from 1."""

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else f"'{clean(self.text)}'"

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text.lower() in words

    def is_sign(self, *signs: str) -> bool:
        return self.kind == "sign" and self.text in signs


@dataclass(frozen=True)
class Literal:
    text: str
    quoted: bool

    @property
    def number(self) -> int | float | None:
        if self.quoted or not NUMBER.fullmatch(self.text):
            return None
        return int(self.text) if re.fullmatch(r"[+-]?[\d_]*\d", self.text) else float(self.text)

    @property
    def is_null(self) -> bool:
        return not self.quoted and self.text.lower() == "null"

    def equals(self, value: Any) -> bool:
        if is_empty(value):
            return self.is_null
        if isinstance(value, bool):
            return not self.quoted and self.text.lower() == str(value).lower()
        if isinstance(value, int | float):
            return value == self.number
        return not self.is_null and words_of(value) == self.text


@dataclass
class Where:
    """A parsed expression, bound to the columns of a frame."""

    text: str
    full: pd.DataFrame
    columns: list[Column] = field(default_factory=list)
    """The columns that the expression compares."""
    test: Test = field(init=False)
    _tokens: list[Token] = field(init=False)
    _depth: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._tokens = list(self._split())
        self.test = self._expression()
        if self._next.kind != "end":
            self._refuse("cannot follow here; join conditions with and or or, and quote a value of several words")

    def rows(self) -> list[bool]:
        """For each row of the frame whether it matches."""
        columns = list(dict.fromkeys(self.columns))
        cells = zip(*(self.full[column] for column in columns), strict=True)
        return [self.test(dict(zip(columns, values, strict=True))) for values in cells]

    # Words -----------------------------------------------------------------------------------------------------------

    def _split(self) -> Iterator[Token]:
        place, end = 0, len(self.text.rstrip())
        while place < end:
            match = TOKEN.match(self.text, place)
            if match is None:
                rest = self.text[place:]
                at = place + len(rest) - len(rest.lstrip()) + 1
                mend = "is a quote without its end; close it" if rest.lstrip()[0] in "\"'" else "is no operator; "
                mend += "" if mend.endswith("it") else f"use one of {', '.join(COMPARISONS)} or in"
                self._tokens = [Token("sign", rest.lstrip()[0], at)]
                self._refuse(mend)
            kind = str(match.lastgroup)
            yield Token(kind, match[kind], match.start(kind) + 1)
            place = match.end()
        yield Token("end", "", len(self.text) + 1)

    @property
    def _next(self) -> Token:
        return self._tokens[0]

    def _take(self) -> Token:
        return self._tokens.pop(0) if len(self._tokens) > 1 else self._tokens[0]

    def _takes(self, text: str) -> bool:
        """Take the next token if it is this word or sign."""
        fits = self._next.is_word(text) or self._next.is_sign(text)
        if fits:
            self._take()
        return fits

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigError(f"--where {clean(self.text)!r}: {self._next} at position {self._next.position} {what}.")

    # Grammar ---------------------------------------------------------------------------------------------------------

    def _expression(self) -> Test:
        return self._joined("or", any, lambda: self._joined("and", all, self._factor))

    def _joined(self, word: str, join: Callable[[Iterator[bool]], bool], part: Callable[[], Test]) -> Test:
        tests = [part()]
        while self._takes(word):
            tests.append(part())
        return tests[0] if len(tests) == 1 else lambda row: join(test(row) for test in tests)

    def _factor(self) -> Test:
        self._depth += 1
        if self._depth > DEEPEST:
            self._refuse(f"is nested more than {DEEPEST} deep; write it with fewer parentheses")
        if self._takes("not"):
            inner = self._factor()
            test: Test = lambda row: not inner(row)  # noqa: E731
        elif self._takes("("):
            test = self._expression()
            if not self._takes(")"):
                self._refuse("comes where a parenthesis should close; add )")
        else:
            test = self._comparison()
        self._depth -= 1
        return test

    def _comparison(self) -> Test:
        if self._next.kind not in ("word", "quoted") or self._next.is_word(*KEYWORDS):
            self._refuse("is not a condition; write one as in k = 320")
        token = self._take()
        name = token.text[1:-1] if token.kind == "quoted" else token.text
        column = find_column(self.full, name)
        self.columns.append(column)
        negated = self._takes("not")
        if self._takes("in"):
            literals = self._list()
            return lambda row: any(literal.equals(row[column]) for literal in literals) != negated
        if negated or not self._next.is_sign(*COMPARISONS, "=="):
            self._refuse(f"is not an operator; use one of {', '.join(COMPARISONS)} or in after {token}")
        sign = self._take().text
        literal_token = self._next
        literal = self._literal()
        if sign in ("=", "==", "!="):
            return lambda row: literal.equals(row[column]) != (sign == "!=")
        if sign == "~":
            return lambda row: found_in(literal.text, row[column])
        if literal.is_null or literal.text.lower() in ("true", "false") and not literal.quoted:
            self._tokens.insert(0, literal_token)
            self._refuse(f"has no order; use = or != instead of {sign}")
        return self._ordered(column, sign, literal)

    def _ordered(self, column: Column, sign: str, literal: Literal) -> Test:
        """A number compares with numbers only, a word with words. Raises ConfigError for a column without any."""
        compare, bound = ORDERS[sign], literal.text if literal.number is None else literal.number
        kinds: tuple[type, ...] = (str,) if isinstance(bound, str) else (int, float)
        values = [value for value in self.full[column] if not is_empty(value)]
        if values and not any(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
            name, what = clean(column[1]), "words" if isinstance(bound, str) else "numbers"
            raise ConfigError(
                f"--where {clean(self.text)!r}: {name} has no {what} to compare with {clean(literal.text)!r}; it is "
                f"{summary_of(values)}."
            )

        def test(row: Row) -> bool:
            value = row[column]
            fits = isinstance(value, kinds) and not isinstance(value, bool)
            return fits and not is_empty(value) and compare(value, bound)

        return test

    def _list(self) -> list[Literal]:
        if not self._takes("("):
            self._refuse("is not a list; write in (a, b)")
        literals = [self._literal()]
        while self._takes(","):
            literals.append(self._literal())
        if not self._takes(")"):
            self._refuse("comes where the list should go on or end; write in (a, b)")
        return literals

    def _literal(self) -> Literal:
        if self._next.kind not in ("word", "quoted") or self._next.is_word(*KEYWORDS):
            self._refuse("is not a value; write a number, a word or a quoted text")
        token = self._take()
        quoted = token.kind == "quoted"
        return Literal(token.text[1:-1] if quoted else token.text, quoted)


def select(full: pd.DataFrame, text: str) -> pd.DataFrame:
    """The runs that match. Raises ConfigError for a mistake in the text, and where no run matches."""
    where = Where(text, full)
    rows = where.rows()
    if not any(rows):
        values = (f"{clean(column[1])} is {summary_of(full[column])}" for column in dict.fromkeys(where.columns))
        raise ConfigError(f"no run of {len(full)} matches --where {clean(text)!r}; {', '.join(values)}.")
    return full[rows].reset_index(drop=True)


def summary_of(values: Any) -> str:
    """The distinct values of a column as text, four at most."""
    words = list(dict.fromkeys("null" if is_empty(value) else cell(value, "config") for value in values))
    return " or ".join(words) if len(words) <= 4 else f"{words[0]}, {words[1]}, {words[2]} or {len(words) - 3} others"


def found_in(pattern: str, value: Any) -> bool:
    if is_empty(value):
        return False
    words, pattern = words_of(value).lower(), pattern.lower()
    if not set("*?") & set(pattern):
        return pattern in words
    return fnmatchcase(words, pattern.replace("[", "[[]"))


def words_of(value: Any) -> str:
    """A value as text, as a user types it."""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
