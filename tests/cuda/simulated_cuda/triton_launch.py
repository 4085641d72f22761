"""Triton's kernels, all of them, by Triton's own interpreter on the real tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from simulated_cuda import order
from simulated_cuda.log import LOG, DeviceError, place
from simulated_cuda.streams import current_stream
from simulated_cuda.tensor import SimulatedTensor


def interpret() -> None:
    """Every `@triton.jit` function is interpreted; TRITON_INTERPRET=1 was set before Triton was imported."""
    from triton.runtime import interpreter

    run, patch = interpreter.InterpretedFunction.run, interpreter._patch_lang

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        name = getattr(self.fn, "__name__", "?")
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        for tensor in tensors:
            _check(name, tensor)
        keys = set(map(order.key_of, tensors))
        order.works(current_stream(), keys, keys, f"triton {name}")
        LOG.launches[f"triton {name}"] += 1
        args, kwargs = tree_map(lambda a: a.held if isinstance(a, SimulatedTensor) else a, (args, kwargs))
        interpreter._patch_lang = _once_for_each_module(patch)
        try:
            with _disable_current_modes():
                return run(self, *args, grid=grid, warmup=warmup, **kwargs)
        finally:
            interpreter._patch_lang = patch

    interpreter.InterpretedFunction.run = launch


def _check(name: str, tensor: Tensor) -> None:
    current = torch.device("cuda", torch.cuda.current_device())
    if tensor.device != current:
        raise DeviceError(
            f"triton {name}: launched on {current}, the current device, with a tensor on {tensor.device}, at {place()}"
        )


def _once_for_each_module(patch: Any) -> Any:
    """The interpreter exchanges triton.language at each call of a device function, half of its time: once is enough."""
    done: set[int] = set()

    def once(function: Any) -> Any:
        if id(function.__globals__) in done:
            return None
        done.add(id(function.__globals__))
        return patch(function)

    return once
