"""Compiling of a run's kernels before its first step."""

from __future__ import annotations

import threading
from collections.abc import Collection

import torch

from sae_sweeps.kernels.choose import choose, note
from sae_sweeps.kernels.launching import StepShape
from sae_sweeps.kernels.pairs import per_token


def prepare(requested: str, device: torch.device, shapes: Collection[StepShape] = ()) -> threading.Thread:
    """Compile the kernels of this device, or read them from the disk, in a thread, while activations are harvested.

    shapes: steps of the runs that will train; a GPU's kernels are compiled for each.
    """

    def compile_all() -> None:
        if device.type == "cpu":
            _prepare_cpu(device)
        elif device.type == "cuda" and choose("auto", device) is not None:
            note(device, "", lambda device: _prepare_gpu(device, shapes))

    needed = requested == "auto"
    thread = threading.Thread(target=compile_all if needed else lambda: None, daemon=True)
    thread.start()
    return thread


def _prepare_gpu(device: torch.device, shapes: Collection[StepShape]) -> None:
    """Compile what steps of these shapes launch. Nothing runs on the GPU."""
    from sae_sweeps.kernels import adam_triton, coactivation_triton, dead_columns_triton, largest_triton, sparse_triton

    with torch.cuda.device(device):
        for shape in shapes:
            for module in (largest_triton, sparse_triton, adam_triton):
                module.compile_for(shape)
            if shape.dtype == torch.float32:
                dead_columns_triton.compile_for(shape)
                if shape.competition:
                    coactivation_triton.compile_for(shape)


def _prepare_cpu(device: torch.device) -> None:
    """Compile the loops of a CPU by running them once."""
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
