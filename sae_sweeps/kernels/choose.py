"""Choice of a run's kernels, made here alone and recorded in its results."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sae_sweeps.kernels.pairs import Pairs, per_token


class Kernels(Protocol):
    """The sparse operations of a training step; `sparse_reference` defines each."""

    NAME: str
    SPARSE_UP_TO: float

    def largest(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]: ...

    def product_and_largest(
        self, centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, z: Tensor
    ) -> tuple[Tensor, Tensor]: ...

    def bounded_largest(
        self, centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, block: int
    ) -> tuple[Tensor, Tensor]: ...

    def bounded_above(
        self, centred: Tensor, W_enc: Tensor, b_enc: Tensor, guess: float, n: int, block: int
    ) -> tuple[Tensor, Tensor, Tensor] | None: ...

    def above(self, z: Tensor, threshold: float | Tensor, at_most: int) -> tuple[Tensor, Tensor, Tensor] | None: ...

    def decode(self, pairs: Pairs, values: Tensor, W: Tensor) -> Tensor: ...

    def residual(
        self, pairs: Pairs, values: Tensor, W: Tensor, b: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def dots(self, pairs: Pairs, W: Tensor, g: Tensor) -> Tensor: ...

    def transposed(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]: ...

    def weight_gradient(self, pairs: Pairs, values: Tensor, g: Tensor) -> Tensor: ...

    def sums(self, pairs: Pairs, values: Tensor) -> Tensor: ...

    def combination(self, factors: Tensor, rows: Tensor) -> Tensor: ...

    def remove_parallel(self, grad: Tensor, W: Tensor) -> None: ...

    def normalize(self, W: Tensor) -> None: ...


FAST = {"cpu": "numba", "cuda": "triton"}
"""Kind of device -> package that compiles its kernels."""

_faults: dict[torch.device, str] = {}
"""GPU on which Triton's kernels cannot be built -> why; empty: they can."""


def choose(requested: str, device: torch.device) -> Kernels | None:
    """The fast kernels of this device; None, for the plain dense formulas, where requested or where there are none.

    Warns, once for a GPU, where its kernels cannot be built.
    """
    package = FAST.get(device.type, "")
    if requested == "reference" or not package:
        return None
    if package == "triton":
        return _triton(device)
    if importlib.util.find_spec(package) is None:
        return None
    from sae_sweeps.kernels import sparse_numba

    return sparse_numba


def _triton(device: torch.device) -> Kernels | None:
    """Triton's kernels, once one was built and run on the GPU."""
    if device not in _faults:
        note(device, "" if importlib.util.find_spec("triton") else "the package triton is not installed", _try_triton)
    if _faults[device]:
        return None
    from sae_sweeps.kernels import sparse_triton

    return sparse_triton


def _try_triton(device: torch.device) -> None:
    from sae_sweeps.kernels import sparse_triton

    pairs = per_token(torch.zeros(1, 1, dtype=torch.int64, device=device), 1, sparse_triton)
    pairs.transposed = (pairs.start, *torch.zeros(2, 1, dtype=torch.int32, device=device))
    sparse_triton.sums(pairs, torch.zeros(1, device=device))


def note(device: torch.device, fault: str, attempt: Callable[[torch.device], None]) -> None:
    """Record whether Triton can build what `attempt` does on the GPU; warn where it cannot, or for the fault given."""
    try:
        if not fault:
            attempt(device)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # no compiler, no headers, no ptxas, a GPU that is too old: each has its own class
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        parts = [f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__]
        fault = ", ".join([*parts, *getattr(error, "__notes__", [])])
    _faults[device] = fault
    if fault:
        warnings.warn(
            f"{device}: Triton cannot build its kernels ({fault}), so plain torch formulas are used, several times "
            "slower; Triton needs a C compiler (CC=gcc) and Python's headers on this machine.",
            RuntimeWarning,
            stacklevel=2,
        )


def name(kernels: Kernels | None) -> str:
    return "reference" if kernels is None else kernels.NAME


def recorded_name(kernels: Kernels | None, device: torch.device) -> str:
    """Name of a run's kernels for its results, with what kept it from a GPU's where something did."""
    fault = _faults.get(device, "")
    return f"{name(kernels)} (Triton cannot build its kernels: {fault})" if kernels is None and fault else name(kernels)


def loops(kernels: Kernels | None, tensor: Tensor) -> bool:
    """Whether the penalties' compiled loops, which run on a CPU alone, are used for a tensor."""
    return kernels is not None and not asynchronous(tensor)


def asynchronous(tensor: Tensor) -> bool:
    """Whether reading a number of a tensor would wait for its device; then no size may depend on one."""
    return tensor.device.type != "cpu"


def pairwise(kernels: Kernels | None, W: Tensor) -> str:
    """How sums over pairs of features that are active together are taken: loops, plain, tiles or triton (tiles too)."""
    if asynchronous(W):
        return "triton" if kernels is not None and W.dtype == torch.float32 else "tiles"
    return "loops" if loops(kernels, W) else "plain"
