"""A small set of combinations in which every two values of different factors meet."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product

Row = dict[str, str]
"""A value for each factor."""


def full(factors: Mapping[str, Sequence[str]], allowed: Callable[[Row], bool]) -> Iterator[Row]:
    """All allowed combinations, factors and values in their order."""
    rows = (dict(zip(factors, values, strict=True)) for values in product(*factors.values()))
    return (row for row in rows if allowed(row))


def cover(factors: Mapping[str, Sequence[str]], allowed: Callable[[Row], bool]) -> list[Row]:
    """Rows, each the allowed combination with most pairs that have not met; the first of equals, so always the same."""
    rows = list(full(factors, allowed))
    bit: dict[tuple, int] = {}  # of each pair of values
    met = [sum(1 << bit.setdefault(pair, len(bit)) for pair in combinations(row.items(), 2)) for row in rows]
    missing, chosen = (1 << len(bit)) - 1, []
    while missing:
        best = max(range(len(rows)), key=lambda i: ((met[i] & missing).bit_count(), -i))
        missing &= ~met[best]
        chosen.append(rows[best])
    return chosen
