"""How a run finds its active features: by the product in float32, or exactly by one in bfloat16 and its bound.

Both give the same features. Where it is known in which order the library adds up a product in float32
(`product_block`), both give the same values to the last bit; otherwise they differ by rounding. So the way of a run is
chosen once, recorded beside its checkpoint and taken from there ever after.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae_sweeps.kernels import bounded
from sae_sweeps.kernels.launching import StepShape

if TYPE_CHECKING:
    from sae_sweeps.kernels.choose import Kernels

LEAST = 2**30
"""Multiply-adds of a product below which the way in bfloat16 is not measured: it would save a few milliseconds."""
FASTER = 0.9
"""Share of the time of the product in float32 that the way in bfloat16 may take to be chosen."""
SECONDS = 0.5
"""A measurement is repeated until it has taken so long."""
FEW_ABOVE = 2.4
"""Threshold of a measurement: 1 in 120 of its pre-activations, normal numbers, exceeds it."""
BLOCKS = (*range(64, 513, 4), 640, 768, 1024, 2**14)
"""Lengths of blocks that libraries are known to add up a product by, the longest for no blocks."""


@dataclass(frozen=True)
class Selection:
    way: str
    """plain: the product in float32; bounded: one in bfloat16, exactly; bfloat16: one in bfloat16 alone."""
    block: int = 0
    """bounded: as `bounded_numba.dots` has it."""


WAYS = ("plain", "bounded", "bfloat16")
PLAIN = Selection("plain")


def choose_selection(requested: str, kernels: Kernels | None, shape: StepShape, device: torch.device) -> Selection:
    """The way of a run that has none recorded: plain or bounded.

    requested: one of them, or auto for the faster one, by a measurement at the run's shape.
    """
    single = shape.dtype == shape.products == torch.float32 and shape.d_in <= bounded.LONGEST
    if requested == "plain" or kernels is None or not single or device.type != "cpu":
        return PLAIN
    if requested == "bounded":
        return Selection("bounded", product_block(shape, device))
    if (shape, device) not in _measured:
        _measured[shape, device] = _measure(kernels, shape, device)
    return _measured[shape, device]


_measured: dict[tuple[StepShape, torch.device], Selection] = {}
"""What was found in this process: runs of a group have one way."""


def _measure(kernels: Kernels, shape: StepShape, device: torch.device) -> Selection:
    if shape.batch * shape.d_in * shape.d_sae < LEAST:
        return PLAIN
    centred, W_enc, b_enc = _example(shape, device)
    way = Selection("bounded", product_block(shape, device))
    z = centred.new_empty(len(centred), shape.d_sae)

    def plain(n: int) -> object:
        if shape.k:
            return kernels.product_and_largest(centred[:n], W_enc, b_enc, shape.k, z[:n])
        return kernels.above(torch.addmm(b_enc, centred[:n], W_enc, out=z[:n]), FEW_ABOVE, z.numel())

    def exact(n: int) -> object:
        if shape.k:
            return kernels.bounded_largest(centred[:n], W_enc, b_enc, shape.k, way.block)
        return kernels.bounded_active(centred[:n], W_enc, b_enc, FEW_ABOVE, way.block)

    seconds = [_seconds(work, shape.batch) for work in (plain, exact)]
    return way if seconds[1] < FASTER * seconds[0] else PLAIN


def _example(shape: StepShape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random activations [B, d_in], W_enc [d_in, d_sae] as `SAE` makes it, b_enc [d_sae]."""
    generator = torch.Generator().manual_seed(0)
    centred = torch.randn(shape.batch, shape.d_in, generator=generator)
    W = torch.randn(shape.d_sae, shape.d_in, generator=generator)
    W /= W.norm(dim=1, keepdim=True)
    return centred.to(device), W.to(device).T, torch.zeros(shape.d_sae, device=device)


def _seconds(work: Callable[[int], object], n_tokens: int) -> float:
    """The least processor time of work(n_tokens), of all threads: what else the machine does is not in it."""
    work(1)  # compiles
    found: list[float] = []
    while sum(found) < SECONDS:
        start = time.process_time()
        work(n_tokens)
        found.append(time.process_time() - start)
    return min(found)


def product_block(shape: StepShape, device: torch.device) -> int:
    """The block in which the library adds up products of this shape on a CPU; 0 where it is not found, or on a GPU.

    Compared to the last bit at elements of all its parts, in a product of the run's own size.
    """
    if device.type != "cpu":
        return 0
    from sae_sweeps.kernels import bounded_numba

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape.batch, shape.d_in, generator=generator)
    W_enc = torch.randn(shape.d_sae, shape.d_in, generator=generator).T
    token = torch.linspace(0, shape.batch - 1, min(shape.batch, 64)).long()
    feature = (torch.arange(64) * 2654435761 % shape.d_sae).unique()
    z = (x @ W_enc)[token][:, feature]
    start, features = torch.arange(len(token) + 1) * len(feature), feature.int().repeat(len(token))
    for block in BLOCKS:
        found = bounded_numba.dots(start.numpy(), features.numpy(), W_enc, x[token], block)
        if torch.equal(torch.from_numpy(found).view_as(z), z):
            return block
        if block >= shape.d_in:
            break
    return 0
