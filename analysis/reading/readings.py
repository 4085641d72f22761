"""Several readings of one figure: which is the record's, which agree, which contradict each other."""

import math
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from analysis.grouped import grouped
from analysis.reading.figures_in_dicts import LOGGED_ONLY, OF_SAE, USED, Figure
from analysis.reading.literals import same
from analysis.reading.names import LOGGED


def readings_of(figures: Iterable[Figure]) -> dict[str, list[Figure]]:
    """The readings of each figure by its name, in order; what a trainer only logged is under a name of LOGGED."""
    found = grouped((figure.name, figure) for figure in figures)
    for name, logged in LOGGED.items():
        own = found.get(name, [])
        if any(f.role == USED for f in own):
            others = [f for f in own if f.place == "dict" and f.role not in (USED, OF_SAE)]
            if others:
                found[name] = [f for f in own if f not in others]
                found[logged] = [*found.get(logged, []), *others]
        elif not own and logged in found and name.startswith("lr"):
            found[name] = found.pop(logged)  # the only one
    return found


RANK = {USED: 0, "": 0, LOGGED_ONLY: 0, OF_SAE: 2}


def first(found: list[Figure]) -> Figure:
    """The reading that is the record's: of a dict, or else of text, or else of SAEBench's description of the SAE."""
    given = [f for f in found if f.value is not None] or found
    return min(given, key=lambda f: 1 if f.place == "text" else RANK.get(f.role, 0))


def agree(a: Figure, b: Figure) -> bool:
    """Whether two readings are one value, of which text may give fewer digits; None agrees with anything."""
    if a.value is None or b.value is None or same(a.value, b.value):
        return True
    x, y = a.value, b.value
    if isinstance(x, str) and isinstance(y, str):
        return x.lower().rpartition("/")[2] == y.lower().rpartition("/")[2]
    if not (is_finite(x) and is_finite(y)) or a.place == b.place == "dict":
        return False
    return abs(x - y) <= max(half_a_digit(f.value) for f in (a, b) if f.place == "text") * (1 + 1e-6)


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def half_a_digit(value: float) -> float:
    exponent = Decimal(repr(value)).as_tuple().exponent
    return 0.5 * 10.0 ** (exponent if isinstance(exponent, int) else 0)


def contradictions_of(by_name: dict[str, list[Figure]]) -> tuple[list[str], list[str], list[str]]:
    """Sentences on dicts that contradict each other, on all contradictions with their lines, and the names."""
    in_dicts, all_of_them, names = [], [], []
    for name, found in by_name.items():
        chosen = first(found)
        for other in found:
            if agree(chosen, other) or (OF_SAE in (chosen.role, other.role) and name in ("architecture", "layer.hook")):
                continue
            sentence = f"{name} is {chosen.value} in one place and {other.value} in another"
            if chosen.place == other.place == "dict":
                in_dicts.append(sentence)
            all_of_them.append(f"{name} is {chosen.value} in line {chosen.line} and {other.value} in line {other.line}")
            names.append(name)
    return list(dict.fromkeys(in_dicts)), list(dict.fromkeys(all_of_them)), list(dict.fromkeys(names))
