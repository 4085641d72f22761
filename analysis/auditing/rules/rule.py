"""A rule of the audit."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from analysis.auditing.comparison import Comparison
from analysis.auditing.run import Run

Found = Iterable[tuple[str, list[Run]]]
"""Sentences, each with the runs that it is about."""
Find = Callable[[Comparison], Found]


@dataclass(frozen=True)
class Rule:
    code: str
    level: str
    about: str
    """What it guards against, in one sentence."""
    mend: str
    """What to do about a finding, as the end of a sentence; empty where its sentence has it."""
    find: Find
    across: bool = False
    """Whether it sees all runs at once, rather than those of one study."""


class Rules(list[Rule]):
    """The rules of one subject, in the order in which their findings are listed."""

    def add(self, code: str, level: str, about: str, mend: str = "", across: bool = False) -> Callable[[Find], Find]:
        """Decorates the function that finds."""

        def register(find: Find) -> Find:
            self.append(Rule(code, level, about, mend, find, across))
            return find

        return register


def by_sentence(found: Iterable[tuple[Run, str]]) -> Found:
    """Each sentence once, with all its runs."""
    runs: dict[str, list[Run]] = {}
    for run, sentence in found:
        runs.setdefault(sentence, []).append(run)
    return runs.items()


def by_run(runs: Iterable[Run], sentence: Callable[[Run], str | None]) -> Found:
    """What `sentence` finds in each run, each sentence once, with all its runs."""
    return by_sentence((run, found) for run in runs if (found := sentence(run)))
