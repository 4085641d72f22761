"""Sums of squared products over all pairs of rows, through the smaller of the two Gram matrices.

sum_{i<j} (w_i . w_j)^2 = (|| W^T W ||_F^2 - sum_i |w_i|^4) / 2,                gradient 2 (W W^T W - |w_i|^2 w_i)
sum_{i in 1, j in 2} (w_i . w_j)^2 = < W_1^T W_1, W_2^T W_2 >,                  gradient 2 W_1 W_2^T W_2 on W_1

Value and gradient share the Gram matrix: two matrix products, where autograd takes three or more.
"""

from typing import Any

import torch
from torch import Tensor


def squared_products(W: Tensor) -> Tensor:
    """sum_{i<j} (w_i . w_j)^2 over the rows of W [n, d], differentiable, in W's own precision."""
    value: Tensor = SquaredProducts.apply(W)
    return value


def squared_products_between(W: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """sum (w_i . w_j)^2 over i in the first and j in the second of two disjoint groups of rows, differentiable.

    W [n, d]; first, second [n] bool.
    """
    value: Tensor = SquaredProductsBetween.apply(W, first, second)
    return value


class SquaredProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W: Tensor) -> Tensor:
        with torch.autocast(W.device.type, enabled=False):
            n, d = W.shape
            if n <= d:  # the diagonal is removed before the sum, so nothing cancels
                products = (W @ W.T).fill_diagonal_(0)
                value = products.square().sum() / 2
                grad = (2 * products) @ W
            else:
                gram, square = W.T @ W, W.square().sum(1, keepdim=True)
                value = (gram.square().sum() - square.square().sum()) / 2
                grad = torch.addmm(W * square, W, gram, beta=-2, alpha=2)
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        (grad,) = ctx.saved_tensors
        return grads[0] * grad


class SquaredProductsBetween(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W: Tensor, first: Tensor, second: Tensor) -> Tensor:
        with torch.autocast(W.device.type, enabled=False):
            rows = [group.nonzero().squeeze(1) for group in (first, second)]
            parts = [W[numbers] for numbers in rows]
            one, two = (part.T @ part for part in parts)
            grad = torch.zeros_like(W)
            grad[rows[0]] = parts[0] @ (2 * two)
            grad[rows[1]] = parts[1] @ (2 * one)
            value = (one * two).sum()
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grads[0] * grad, None, None
