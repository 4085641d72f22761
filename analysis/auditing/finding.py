"""What a rule of the audit found."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.text import clean

if TYPE_CHECKING:
    pass

LEVELS = ("error", "warning", "note")
"""error: the number is not what it says it is, or the comparison is not one; warning: it may mislead; note: to know."""


@dataclass(frozen=True)
class Finding:
    code: str
    """Stable: scripts may name it."""
    level: str
    """One of LEVELS."""
    sentence: str
    runs: tuple[str, ...]
    """Run ids concerned."""

    def text(self, n_runs: int, longest: int = 400) -> str:
        """The sentence with the runs that it is about, among `n_runs`."""
        return clean(f"{who(self.runs, n_runs)}{self.sentence}", longest)


def who(runs: Collection[str], n_runs: int) -> str:
    """`a, b: `, or nothing where all runs are meant."""
    if len(runs) == n_runs > 1:
        return ""
    return ", ".join(list(runs)[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "") + ": "
