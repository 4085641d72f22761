"""Triton's kernels, all of them, by Triton's own interpreter on the real tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from simulated_cuda.log import LOG, DeviceError, place
from simulated_cuda.tensor import SimulatedTensor


def interpret() -> None:
    """Every `@triton.jit` function is interpreted; TRITON_INTERPRET=1 was set before Triton was imported."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        name = getattr(self.fn, "__name__", "?")
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                _check(name, tensor)
        LOG.launches[f"triton {name}"] += 1
        args, kwargs = tree_map(lambda a: a.held if isinstance(a, SimulatedTensor) else a, (args, kwargs))
        with _disable_current_modes():
            return run(self, *args, grid=grid, warmup=warmup, **kwargs)

    InterpretedFunction.run = launch


def _check(name: str, tensor: Tensor) -> None:
    current = torch.device("cuda", torch.cuda.current_device())
    if tensor.device != current:
        raise DeviceError(
            f"triton {name}: launched on {current}, the current device, with a tensor on {tensor.device}, at {place()}"
        )
