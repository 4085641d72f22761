"""The sparse operations by dense matrices: the definition that the fast kernels are tested against.

Pairs with a value each represent a matrix f [B, d_sae] that is 0 elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_sweeps.kernels.pairs import Pairs

NAME = "reference"


def largest(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of z [B, n] and their indices, both [B, k], in any order. NaN is the largest."""
    values, indices = z.topk(k, dim=1, sorted=False)
    return values, indices


def product_and_largest(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, z: Tensor) -> tuple[Tensor, Tensor]:
    """Write centred W_enc + b_enc into z [B, d_sae]; return `largest` of it. centred [B, d_in]."""
    return largest(torch.addmm(b_enc, centred, W_enc, out=z), k)


def bounded_largest(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    """`largest` of centred W_enc + b_enc, by a product that need not be as exact; block: as `Selection` has it."""
    return largest(torch.addmm(b_enc, centred, W_enc), k)


def bounded_above(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, guess: float, n: int, block: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Where z = centred W_enc + b_enc is above 0, as `above` has it; all but the n largest may be left out.

    None where that costs more than z. guess: somewhat less than the n-th largest, where it is known, else 0.
    """
    z = torch.addmm(b_enc, centred, W_enc)
    return above(z, 0.0, z.numel())


def above(z: Tensor, threshold: float | Tensor, at_most: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Where z [B, n] exceeds the threshold, or a column's own [n]: start [B + 1], feature [P] in order, z there [P].

    None where there are more than `at_most`.
    """
    active = z > threshold
    if int(active.sum()) > at_most:
        return None
    start = torch.cat([active.new_zeros(1, dtype=torch.int64), active.sum(1).cumsum(0)])
    return start, active.nonzero()[:, 1], z[active]


def decode(pairs: Pairs, values: Tensor, W: Tensor) -> Tensor:
    """f W [B, d]; values [P], W [d_sae, d]."""
    return dense(pairs, values) @ W


def residual(pairs: Pairs, values: Tensor, W: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x - b - f W [B, d], the sums of its squares [B], and each pair's w_i . error_b [P]; b [d], x [B, d]."""
    error = x - b - decode(pairs, values, W)
    return error, error.square().sum(1), dots(pairs, W, error)


def dots(pairs: Pairs, W: Tensor, g: Tensor) -> Tensor:
    """w_i . g_b of each pair (b, i) [P], the gradient of its value; W [d_sae, d], g [B, d]."""
    return (g @ W.T)[pairs.token, pairs.feature]


def transposed(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs by feature, those of a feature by token: start [d_sae + 1], number [P], token [P]."""
    feature, slot = pairs.feature.sort(stable=True)
    # a search, as to count them would stop a GPU
    start = torch.searchsorted(feature, torch.arange(pairs.n_features + 1, device=feature.device))
    return start, slot, pairs.token[slot]


def weight_gradient(pairs: Pairs, values: Tensor, g: Tensor) -> Tensor:
    """f^T g [d_sae, d]; values [P], g [B, d]."""
    return dense(pairs, values).T @ g


def sums(pairs: Pairs, values: Tensor) -> Tensor:
    """Sum of each feature's values [d_sae]."""
    return dense(pairs, values).sum(0)


def combination(factors: Tensor, rows: Tensor) -> Tensor:
    """Sum of factor * row [d]; factors [n], rows [n, d]."""
    return factors @ rows


def remove_parallel(grad: Tensor, W: Tensor) -> None:
    """Subtract from each row of grad [n, d] its part along the same row of W [n, d], of unit norm. In place."""
    grad -= (grad * W).sum(1, keepdim=True) * W


def normalize(W: Tensor, skip: Tensor | None = None) -> None:
    """Bring the rows of W [n, d] to unit norm, in place; nothing where `skip` is given and true, scalar."""
    norm = W.norm(dim=1, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny)
    W.div_(norm if skip is None else norm.masked_fill(skip, 1.0))


def dense(pairs: Pairs, values: Tensor) -> Tensor:
    """f [B, d_sae]."""
    f = values.new_zeros(pairs.n_tokens, pairs.n_features)
    return f.index_put((pairs.token, pairs.feature), values)
