"""What a rule of the audit found."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from analysis.text import clean
from sae_sweeps.storage.printing import spans

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
    study: str | None = ""
    """The imported study of its runs, empty for runs of this project; None where they are of several."""
    mend: str = ""
    """What to do about it, as the end of a sentence."""

    def text(self, n_runs: int, longest: int = 400) -> str:
        """The sentence with the runs that it is about, among `n_runs`."""
        return clean(f"{who(self.runs, n_runs)}{self.sentence}", longest)

    def advice(self) -> str:
        """The sentence, and what to do."""
        return f"{self.sentence.rstrip('.')}; {self.mend}." if self.mend else self.sentence


def who(runs: Collection[str], n_runs: int) -> str:
    """`a, b: `, or nothing where all runs are meant."""
    if len(runs) == n_runs > 1:
        return ""
    return ", ".join(list(runs)[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "") + ": "


def run_names(names: Iterable[str]) -> str:
    """Numbers of runs as `Run 3`, `Runs 1, 2 and 5 to 9`; other names as they are, after them."""
    listed = list(dict.fromkeys(names))
    numbers = sorted({int(name) for name in listed if name.isdecimal() and len(name) < 6})
    words = [
        word for part in spans(numbers) for word in (map(str, part) if len(part) < 3 else [f"{part[0]} to {part[-1]}"])
    ]
    shown = [f"Run{'s' * (len(numbers) != 1)} {joined(words)}"] if words else []
    return ", ".join([*shown, *(name for name in listed if not (name.isdecimal() and len(name) < 6))])


def joined(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
