"""Rows copied from many blocks of memory into one, by a compiled loop that does not hold Python's lock."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sae_sweeps.kernels.threads import compiled


@intrinsic
def _copy(typing: Any, to: Any, source: Any, size: Any) -> Any:
    """memcpy between two addresses."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, source = (builder.inttoptr(address, cgutils.voidptr_t) for address in arguments[:2])
        cgutils.raw_memcpy(builder, to, source, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@compiled()
def gather(address: np.ndarray, per_block: int, index: np.ndarray, to: int, width: int) -> None:
    """Copy row index[i] of blocks of `per_block` rows to address `to` + i * `width`.

    Args:
        address: of each block's first row, int64 [n_blocks]; rows are contiguous.
        index: int64 [n].
        width: bytes of a row.
    """
    for i in range(len(index)):
        block = index[i] // per_block
        source = address[block] + (index[i] - block * per_block) * width
        _copy(to + i * width, source, width)  # type: ignore[call-arg]
