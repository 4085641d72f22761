"""Choice of a run's kernels, made here alone and recorded in its results."""

from __future__ import annotations

import importlib.util
import threading
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


def choose(requested: str, device: torch.device) -> Kernels | None:
    """The fast kernels of this device; None, for the plain dense formulas, where requested or where there are none."""
    package = FAST.get(device.type, "")
    if requested == "reference" or not package or importlib.util.find_spec(package) is None:
        return None
    if package == "numba":
        from sae_sweeps.kernels import sparse_numba

        return sparse_numba
    from sae_sweeps.kernels import sparse_triton

    return sparse_triton


def prepare(requested: str, device: torch.device) -> threading.Thread:
    """Compile the kernels of this device, or read them from the disk, in a thread, while activations are harvested."""
    needed = requested == "auto" and device.type == "cpu"
    thread = threading.Thread(target=_prepare if needed else lambda device: None, args=(device,), daemon=True)
    thread.start()
    return thread


def _prepare(device: torch.device) -> None:
    kernels = choose("auto", device)
    if kernels is None:
        return
    W = torch.eye(8)
    kernels.largest(W, 2)
    _, indices = kernels.product_and_largest(W, W, W[0], 2, torch.empty_like(W))
    found = kernels.above(W, 0.5, W.numel())
    assert found is not None
    pairs = per_token(indices, len(W), kernels)
    values = torch.ones(indices.numel())
    kernels.decode(pairs, values, W)
    kernels.residual(pairs, values, W, W[0], W)
    kernels.dots(pairs, W, W)
    grad, m, v = kernels.weight_gradient(pairs, values, W), torch.zeros_like(W), torch.zeros_like(W)
    kernels.combination(kernels.sums(pairs, values), W)
    from sae_sweeps.kernels import adam_numba as adam

    adam.square_sum(grad)
    dots, _ = adam.parallel(grad, W)
    rates = [1.0, 0.1, 0.999, 0.001, 1e-3, 1.0, 1e-8]
    adam.adam(grad, rates, m, v, W)
    adam.adam_on_unit_rows(grad, dots, rates, m, v, W)


def name(kernels: Kernels | None) -> str:
    return "reference" if kernels is None else kernels.NAME


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
