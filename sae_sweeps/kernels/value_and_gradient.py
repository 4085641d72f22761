"""Functions that compute their gradient together with their value, where both share most of the work."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def differentiable(tensor: Tensor, compute: Callable[..., tuple[Any, ...]], *args: Any) -> Any:
    """compute(tensor, *args) = (value, gradient, *more) as (value, *more), or the value where there is no more.

    value: scalar, differentiable in the tensor with that gradient [the tensor's shape]; more: without gradient.
    """
    found = ValueAndGradient.apply(tensor, compute, args)
    return found if len(found) > 1 else found[0]


class ValueAndGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, compute: Callable[..., tuple[Any, ...]], args: tuple[Any, ...]) -> Any:
        with torch.autocast(tensor.device.type, enabled=False):  # in the tensor's own precision
            value, gradient, *more = compute(tensor, *args)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(*(one for one in more if isinstance(one, Tensor)))
        return value, *more

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None, None
