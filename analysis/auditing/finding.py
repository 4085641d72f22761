"""What a rule of the audit found."""

from collections.abc import Collection
from dataclasses import dataclass

from analysis.text import clean

LEVELS = ("error", "warning", "note")
"""error: a number or a comparison is invalid; warning: it may mislead; note: for information."""


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
