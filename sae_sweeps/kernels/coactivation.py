"""Sum of c_ij |w_i . w_j| over pairs of features that are active on the same token, value and gradient in one pass.

On the CPU compiled loops compute it (`coactivation_cpu.py`); as their reference, torch lists every pair active on a
common token, or goes over all pairs in tiles of rows where that costs less. On a GPU, where a list's length would have
to be read, all pairs are taken in tiles, by `coactivation_triton.py` or `coactivation_tiles.py`. None holds a
[d_sae, d_sae] matrix.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_sweeps.kernels.coactivation_tiles import by_tiles
from sae_sweeps.kernels.competition import Competition, Found
from sae_sweeps.kernels.csr import csr
from sae_sweeps.kernels.features import Features

TILE = 1024
MEETING_COST = 100
"""Cost of listing one pair on one token, in multiply-adds of a tile (measured: 25 to 50 ns against 0.3 ns)."""
MAX_LISTED = 2**22
"""Most (pair, token) entries that `overlapping_pairs` lists."""
SAMPLED = 1024
"""Features that it looks at where there would be more."""
MAX_MEETINGS = 2**25
"""Most (pair, token) entries of a list in training: 8 bytes each, in several copies."""


def competing_cosines(
    W: Tensor, f: Features, n_tokens: int, competition: Competition, way: str, error: Tensor | None = None
) -> tuple[Tensor, int | Tensor]:
    """sum_{i<j} c_ij |w_i . w_j|, differentiable in W [d_sae, d_in], and the number of pairs with c_ij > 0.

    c_ij is a constant, 0 where i and j are never active together; sign(0) = 0 in the gradient. way: of
    `choose.pairwise`; with tiles the number of pairs is a scalar tensor. error: what f, decoded with W, leaves of the
    activations, where it is part of the same loss; it gets no gradient, but loops then add theirs to the gradient that
    it has on W (`pairs.Link`).
    """
    return CompetingCosines.apply(W, f, n_tokens, competition, way, error)


class CompetingCosines(torch.autograd.Function):
    """`error` is an input for the order of the backward passes alone."""

    @staticmethod
    def forward(
        ctx: Any, W: Tensor, f: Features, n_tokens: int, competition: Competition, way: str, error: Tensor | None
    ) -> tuple[Tensor, int | Tensor]:
        value, pairs, grad = _found(W, f, n_tokens, competition, way)
        ctx.save_for_backward(W)
        ctx.given, ctx.grad = (f, n_tokens, competition, way), grad
        ctx.link = None if f.pairs is None or error is None or not error.requires_grad else f.pairs.decoder
        if isinstance(pairs, Tensor):
            ctx.mark_non_differentiable(pairs)
        return value, pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (W,), grad = ctx.saved_tensors, ctx.grad
        if ctx.given[-1] == "loops":
            if ctx.link is not None:
                ctx.link.give(partial(grad.add_to, factor=grads[0]))
                return (None,) * 6
            out = torch.zeros_like(W)
            grad.add_to(out, grads[0])
            return out, *(None,) * 5
        # the first backward pass scales the stored gradient in place, which saves a copy; a further one recomputes it
        ctx.grad = None
        if grad is None:
            grad = _found(W, *ctx.given)[2]
        return grad.mul_(grads[0]), *(None,) * 5


def _found(
    W: Tensor, f: Features, n_tokens: int, competition: Competition, way: str
) -> tuple[Tensor, int | Tensor, Any]:
    with torch.autocast(W.device.type, enabled=False):  # sums in the weights' own precision
        if way == "loops":
            from sae_sweeps.kernels.coactivation_cpu import by_features

            return by_features(W, f, n_tokens, competition)
        if way == "triton":
            from sae_sweeps.kernels import coactivation_triton

            return coactivation_triton.by_tiles(W, f, n_tokens, competition)
        return (by_tiles if way == "tiles" else plain)(W, f, n_tokens, competition)


def plain(W: Tensor, f: Features, n_tokens: int, competition: Competition) -> Found:
    """Value, number of competing pairs and gradient."""
    token, feature = f.active()
    per_token = torch.bincount(token, minlength=n_tokens)
    meetings = int((per_token * (per_token - 1) // 2).sum())
    by_tiles = meetings > MAX_MEETINGS or meetings * MEETING_COST > len(W) ** 2 * n_tokens
    return (_by_tiles if by_tiles else _by_pairs)(W, token, feature, per_token, competition)


def meeting_pairs(token: Tensor, feature: Tensor, per_token: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs i < j active on a common token, ordered: i, j and their number of common tokens, each [pairs]."""
    width = int(per_token.max()) if len(token) else 0
    first, second = torch.triu_indices(width, width, offset=1, device=token.device)
    start = per_token.cumsum(0) - per_token
    dtype = torch.int32 if (d_sae + 1) ** 2 < 2**31 else torch.int64  # 32 bits sort in half the time
    padded = torch.full((width, len(per_token)), d_sae, dtype=dtype, device=token.device)
    padded[torch.arange(len(token), device=token.device) - start[token], token] = feature.to(dtype)
    i, j = padded[first], padded[second]  # [pairs of places, token]
    code = i * d_sae + j
    if len(token) < padded.numel():
        code = code[j < d_sae]  # a token's features ascend and its padding comes last: j alone decides
    code, n_both = torch.unique_consecutive(code.flatten().sort().values, return_counts=True)
    code = code.long()
    return code // d_sae, code % d_sae, n_both


def overlapping_pairs(f: Features, n_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs i < j active on a common token, and their Jaccard overlap, each [pairs].

    Of a batch too dense for a list, the pairs among SAMPLED features, the same in every run with that d_sae.
    """
    token, feature = f.active()
    per_token = torch.bincount(token, minlength=n_tokens)
    n_active = torch.bincount(feature, minlength=f.d_sae).double()
    width = int(per_token.max()) if len(token) else 0
    if width * (width - 1) // 2 * n_tokens <= MAX_LISTED:
        i, j, n_both = meeting_pairs(token, feature, per_token, f.d_sae)
    else:
        sample = torch.randperm(f.d_sae, generator=torch.Generator().manual_seed(0))[:SAMPLED].sort().values
        sample = sample.to(feature.device)
        active = (f.columns(sample) > 0).float()
        met = (active.T @ active).triu(1)  # counts, exact in float32
        i, j = met.nonzero(as_tuple=True)
        i, j, n_both = sample[i], sample[j], met[i, j]
    return i, j, n_both / (n_active[i] + n_active[j] - n_both)


def _by_pairs(W: Tensor, token: Tensor, feature: Tensor, per_token: Tensor, competition: Competition) -> Found:
    d_sae = len(W)
    n_active = torch.bincount(feature, minlength=d_sae).to(W.dtype)
    i, j, n_both = meeting_pairs(token, feature, per_token, d_sae)
    c = competition.weigh(n_both.to(W.dtype), n_active[i], n_active[j], len(per_token))
    competing = c > 0
    i, j, c = i[competing], j[competing], c[competing]
    cosine = _dots(W, i, j)
    s = c * cosine.sign()
    # the gradient is (S + S^T) W with S = c_ij sign(w_i . w_j)
    back = torch.argsort(j, stable=True)
    grad = csr(i, j, s, d_sae) @ W + csr(j[back], i[back], s[back], d_sae) @ W
    return (c * cosine.abs()).sum(), len(c), grad


def _dots(W: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """w_i . w_j of each pair [pairs], pairs ordered by i, without gathering rows."""
    pattern = csr(i, j, torch.zeros(len(i), dtype=W.dtype, device=W.device), len(W))
    return torch.sparse.sampled_addmm(pattern, W, W.T, beta=0.0).values()


def _by_tiles(W: Tensor, token: Tensor, feature: Tensor, per_token: Tensor, competition: Competition) -> Found:
    d_sae, n_tokens = len(W), len(per_token)
    active = torch.zeros(n_tokens, d_sae, dtype=W.dtype, device=W.device)
    active[token, feature] = 1  # counts stay exact in float32: below 2^24 tokens
    n_active = active.sum(0)
    value, pairs, grad = W.new_zeros(()), 0, torch.empty_like(W)
    for start in range(0, d_sae, TILE):
        rows = slice(start, min(start + TILE, d_sae))
        n_both = active[:, rows].T @ active
        meets = n_both > 0
        meets[torch.arange(rows.stop - start), torch.arange(start, rows.stop)] = False
        c = competition.weigh(n_both, n_active[rows, None], n_active, n_tokens).masked_fill_(~meets, 0)
        cosine = W[rows] @ W.T
        value += (c * cosine.abs()).sum()
        pairs += int((c > 0).sum())
        grad[rows] = (c * cosine.sign()) @ W
    return value / 2, pairs // 2, grad
