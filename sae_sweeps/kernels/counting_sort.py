"""Lists of items per row, transposed to lists of rows per item, on the CPU."""

# mypy: disable-error-code="no-untyped-def"
from typing import Any

import numpy as np

from sae_sweeps.kernels.threads import compiled

Array = np.ndarray[Any, Any]


def starts(count: Array) -> Array:
    """Start of each list, and the end of the last [n + 1], from their lengths [n]."""
    return np.concatenate([[0], count.cumsum()])


def transposed(start: Array, item: Array, n_items: int) -> tuple[Array, Array, Array]:
    """Start of each item's list [n_items + 1], its rows, ascending, and their positions in `item`.

    The items of row r are item[start[r] : start[r + 1]].
    """
    out_start = starts(np.bincount(item, minlength=n_items))
    row, origin = np.empty(len(item), np.int32), np.empty(len(item), np.int32)
    _transpose(start, item, out_start[:-1].copy(), row, origin)
    return out_start, row, origin


@compiled()
def _transpose(start, item, place, row, origin):
    for r in range(len(start) - 1):
        for p in range(start[r], start[r + 1]):
            q = place[item[p]]
            row[q], origin[q] = r, p
            place[item[p]] = q + 1
