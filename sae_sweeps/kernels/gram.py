"""Sums of squared products over all pairs of rows, through the smaller of the two Gram matrices.

sum_{i<j} (w_i . w_j)^2 = (|| W^T W ||_F^2 - sum_i |w_i|^4) / 2,                gradient 2 (W W^T W - |w_i|^2 w_i)
sum_{i in 1, j in 2} (w_i . w_j)^2 = < W_1^T W_1, W_2^T W_2 >,                  gradient 2 W_1 W_2^T W_2 on W_1

Value and gradient share the Gram matrix: two matrix products, where autograd takes three or more.
"""

import torch
from torch import Tensor

from sae_sweeps.kernels.choose import asynchronous
from sae_sweeps.kernels.value_and_gradient import differentiable


def squared_products(W: Tensor) -> Tensor:
    """sum_{i<j} (w_i . w_j)^2 over the rows of W [n, d], differentiable, in W's own precision."""
    value: Tensor = differentiable(W, _products)
    return value


def squared_products_between(W: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """sum (w_i . w_j)^2 over i in the first and j in the second of two disjoint groups of rows, differentiable.

    W [n, d]; first, second [n] bool.
    """
    compute = _products_between_masked if asynchronous(W) else _products_between
    value: Tensor = differentiable(W, compute, first, second)
    return value


def _products(W: Tensor) -> tuple[Tensor, Tensor]:
    n, d = W.shape
    if n <= d:  # the diagonal is removed before the sum, so nothing cancels
        products = (W @ W.T).fill_diagonal_(0)
        return products.square().sum() / 2, (2 * products) @ W
    gram, square = W.T @ W, W.square().sum(1, keepdim=True)
    value = (gram.square().sum() - square.square().sum()) / 2
    return value, torch.addmm(W * square, W, gram, beta=-2, alpha=2)


def _products_between(W: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    rows = [group.nonzero().squeeze(1) for group in (first, second)]
    parts = [W[numbers] for numbers in rows]
    one, two = (part.T @ part for part in parts)
    grad = torch.zeros_like(W)
    grad[rows[0]] = parts[0] @ (2 * two)
    grad[rows[1]] = parts[1] @ (2 * one)
    return (one * two).sum(), grad


def _products_between_masked(W: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """As `_products_between` with twice the products, but no size depends on the groups."""
    parts = [torch.where(group[:, None], W, 0) for group in (first, second)]
    one, two = (part.T @ part for part in parts)
    return (one * two).sum(), torch.addmm(parts[0] @ (2 * two), parts[1], one, alpha=2)
