"""Squares of each row's largest cosine with another row of its chunk, value and gradient in one pass.

    N = sum_i max(0, c_i)^2,   c_i = max_{j in chunk of i, j != i} cos(w_i, w_j) = cos(w_i, w_j(i))

Only the pairs (i, j(i)) carry gradient, so it is one product of a sparse matrix of 3 n entries with W.
"""

import torch
from torch import Tensor

from sae_sweeps.kernels.csr import csr
from sae_sweeps.kernels.value_and_gradient import differentiable

SHORTEST = 1e-12
"""Lower bound of a row's norm in the cosines."""


def nearest_squares(W: Tensor, chunks: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """N, differentiable in W [n, d], and the c_i [n] (0 for a row alone in its chunk).

    chunks: the numbers of the rows, each in one of them. Of equal cosines one carries the gradient.
    """
    value, cosine = differentiable(W, _nearest, chunks)
    return value, cosine


def _nearest(W: Tensor, chunks: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    norm = W.norm(dim=1).clamp(min=SHORTEST)
    cosine, nearest = torch.zeros_like(norm), torch.arange(len(W), device=W.device)
    for chunk in chunks:
        if len(chunk) > 1:
            unit = W[chunk] / norm[chunk, None]
            cosine[chunk], place = (unit @ unit.T).fill_diagonal_(-2).max(1)
            nearest[chunk] = chunk[place]
    positive = cosine.clamp(min=0)
    return positive.square().sum(), _gradient(W, norm, positive, nearest), cosine


def _gradient(W: Tensor, norm: Tensor, positive: Tensor, nearest: Tensor) -> Tensor:
    """Of N: d c_i / d w_i = (u_j - c_i u_i) / |w_i|, and the same with i and j exchanged."""
    i, j = torch.arange(len(W), device=W.device), nearest
    pull = 2 * positive / (norm * norm[j])
    own = -2 * positive.square()
    own = own.clone().index_add_(0, j, own) / norm.square()
    row, order = torch.cat([i, j, i]).sort(stable=True)
    column, values = torch.cat([j, i, i])[order], torch.cat([pull, pull, own])[order]
    return csr(row, column, values, len(W)) @ W
