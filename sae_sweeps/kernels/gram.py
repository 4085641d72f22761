"""Sums of squared products over all pairs, through the smaller Gram matrix: never [d_sae, d_sae] when that is large.

sum_{i<j} (w_i . w_j)^2 = (|| W^T W ||_F^2 - sum_i |w_i|^4) / 2
sum_{i in 1, j in 2} (w_i . w_j)^2 = < W_1^T W_1, W_2^T W_2 >
"""

import torch
from torch import Tensor


def squared_products(W: Tensor) -> Tensor:
    """sum_{i<j} (w_i . w_j)^2 over the rows of W [n, d], differentiable, in W's own precision."""
    with torch.autocast(W.device.type, enabled=False):
        n, d = W.shape
        if n <= d:  # the diagonal is left out before the sum, so nothing cancels
            products = W @ W.T
            return (products - products.diag().diag()).square().sum() / 2
        return ((W.T @ W).square().sum() - W.square().sum(1).square().sum()) / 2


def squared_products_between(W: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """sum (w_i . w_j)^2 over i in the first and j in the second of two disjoint groups of rows, differentiable.

    W [n, d]; first, second [n] bool.
    """
    with torch.autocast(W.device.type, enabled=False):
        one, two = (W * group[:, None] for group in (first, second))
        return ((one.T @ one) * (two.T @ two)).sum()
