"""Launches of Triton kernels: on the device of their tensors, or compiled only, for tensors of the device "meta".

A module of kernels has a function `compile_for(shape)` that calls each of its operations once, with tensors of the
device "meta" that have a step's shapes: so a step's kernels are compiled before it, and for GPUs that are not there
(`python -m scripts.compile_kernels`), with the same constants and the same alignments as when they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepShape:
    """What decides which variants of the kernels a training step launches."""

    batch: int
    d_in: int
    d_sae: int
    k: int
    """Active features per token; 0 where a threshold decides."""
    dtype: torch.dtype = torch.float32
    """Of weights and activations."""
    products: torch.dtype = torch.float32
    """In which the dense products are taken, that of the encoder among them."""
    competition: bool = False
    """Whether a penalty sums over the pairs of features that are active together."""

    def meta(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor without memory, float of the step's dtype unless another is given."""
        return torch.empty(size, dtype=dtype or self.dtype, device="meta")

    def __str__(self) -> str:
        return f"{self.d_in} -> {self.d_sae}, k {self.k}, batch {self.batch}"


def launch(kernel: Any, grid: Sequence[int], *args: Any, **constants: Any) -> None:
    """Launch kernel[grid] on the device of its first tensor; compile it alone where that is "meta".

    An error of Triton's names the kernel in a note.
    """
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    try:
        if device.type == "meta":
            if hasattr(kernel, "cache_key"):  # the interpreter's have none, and compile nothing
                kernel.warmup(*args, grid=tuple(grid), **constants)
        elif device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # Triton launches on the current one
                kernel[tuple(grid)](*args, **constants)
        else:
            kernel[tuple(grid)](*args, **constants)
    except Exception as error:
        error.add_note(f"in the kernel {kernel.fn.__name__}")
        raise
