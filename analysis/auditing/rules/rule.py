"""A rule of the audit."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from analysis.auditing.comparison import Comparison
from analysis.auditing.run import Run

Found = Iterable[tuple[str, list[Run]]]
"""Sentences, each with the runs that it is about. The audit lists each sentence once, with all its runs."""


@dataclass(frozen=True)
class Rule:
    code: str
    level: str
    mend: str
    """What to do about a finding, as the end of a sentence; empty where its sentence has it."""
    across: bool
    """Whether it sees all runs at once, rather than those of one study."""
    about: str
    """What it guards against, in one sentence."""
    find: Callable[[Comparison], Found]


class Rules(list[Rule]):
    """The rules of one subject, in the order in which their findings are listed."""

    def add(
        self, code: str, level: str, mend: str = "", *, across: bool = False, each: str = ""
    ) -> Callable[[Any], Any]:
        """Decorates the function that finds; its docstring is what the rule guards against.

        It is given a comparison; with `each`, a list of a Comparison, one of its runs at a time, of which it gives a
        sentence, several, or None.
        """

        def register(function: Any) -> Any:
            about = " ".join((function.__doc__ or "").split())
            self.append(Rule(code, level, mend, across, about, of_each(function, each) if each else function))
            return function

        return register


def of_each(sentences: Callable[[Run], str | Iterable[str] | None], name: str) -> Callable[[Comparison], Found]:
    """What `sentences` gives of each run of a comparison's list of that name."""

    def find(comparison: Comparison) -> Iterator[tuple[str, list[Run]]]:
        for run in getattr(comparison, name):
            found = sentences(run)
            yield from ((sentence, [run]) for sentence in ([found] if isinstance(found, str) else found or ()))

    return find
