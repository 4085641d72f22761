"""The active (token, feature) pairs of a batch, as the rows of a sparse matrix [B, d_sae]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sae_sweeps.kernels.choose import Kernels


def product_dtype() -> torch.dtype | None:
    """Dtype of a GPU's dense products where autocast is on, which a backward pass no longer sees."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None


@dataclass
class Link:
    """What a later loss term adds, in place, to the weight gradient of an earlier operation on the pairs.

    The term takes an output of the operation as an input, so that its backward pass, which sets `add`, runs first.
    """

    add: Callable[..., None] | None = None

    def give(self, add: Callable[..., None]) -> None:
        """Have `add` called too."""
        earlier = self.add

        def both(*grads: Tensor) -> None:
            if earlier is not None:
                earlier(*grads)
            add(*grads)

        self.add = both

    def take(self) -> Callable[..., None] | None:
        """What is to be added in this backward pass."""
        add, self.add = self.add, None
        return add


@dataclass
class Pairs:
    start: Tensor
    """The pairs of token b are start[b] .. start[b + 1] - 1 [B + 1], int64."""
    feature: Tensor
    """Feature of each pair [P], int64."""
    n_features: int
    kernels: Kernels
    """Kernels that compute with the pairs."""
    encoder: Link | None = None
    """Of `sparse.chosen`, where it was called: add(gradient on W_enc, gradient on b_enc)."""
    decoder: Link | None = None
    """Of `sparse.residual`, where it was called: add(gradient on W_dec)."""
    whole: Pairs | None = None
    """The same pairs by token alone, where the rows are parts of tokens."""
    ordered: bool = False
    """Whether the features of each token are known to ascend."""
    products: torch.dtype | None = field(default_factory=product_dtype)
    """Dtype of dense products that take the place of sums over the pairs; None: that of their factors."""
    matrix: Tensor | None = None
    """Memory of such products [B * d_sae], 0 but at the pairs."""

    @property
    def n_tokens(self) -> int:
        return len(self.start) - 1

    @cached_property
    def token(self) -> Tensor:
        """Token of each pair [P], int64."""
        tokens = torch.arange(self.n_tokens, device=self.start.device)
        return tokens.repeat_interleave(self.start.diff(), output_size=len(self.feature))

    @cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same pairs by feature: start [d_sae + 1], number of each pair [P], its token [P]."""
        if self.whole is None:
            return self.kernels.transposed(self)
        start, number, token = self.whole.transposed
        return start, number, self.token.to(token.dtype)[number]

    def by_part(self, ends: tuple[int, ...]) -> Pairs:
        """The same pairs, with a row for each token and part of the dictionary: row b * parts + p has those of token b
        with features from ends[p - 1] (0) to ends[p] - 1. For pairs in the order of token, then feature."""
        bounds = _numbers((0, *ends[:-1]), self.start.device)
        rows = torch.arange(self.n_tokens, device=self.start.device)[:, None] * self.n_features + bounds
        start = torch.searchsorted(self.token * self.n_features + self.feature, rows.flatten())
        start = torch.cat([start, self.start[-1:]])
        return Pairs(
            start, self.feature, self.n_features, self.kernels,
            whole=self, ordered=self.ordered, products=self.products,
        )  # fmt: skip

    def where(self, kept: Tensor) -> Pairs:
        """The pairs where kept [P] is true."""
        n_kept = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
        start, feature = n_kept[self.start], self.feature[kept]
        return Pairs(start, feature, self.n_features, self.kernels, ordered=self.ordered, products=self.products)


@cache
def _numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """The numbers on the device, copied there once."""
    return torch.tensor(values, device=device)


def largest_pairs(z: Tensor, n: int, kernels: Kernels) -> tuple[Pairs, Tensor]:
    """The pairs of the n largest of all z [B, d_sae], ordered by token, then feature, and z there [n].

    Selected by the whole device and of known size: nothing is read. NaN is the largest.
    """
    flat = z.flatten()
    place = flat.topk(n, sorted=False).indices
    small = flat.numel() < 2**31
    place = (place.int() if small else place).sort().values  # half the digits to sort by
    bounds = torch.arange(0, flat.numel() + 1, z.shape[1], device=z.device, dtype=place.dtype)
    place, start = place.long(), torch.searchsorted(place, bounds)
    return Pairs(start, place % z.shape[1], z.shape[1], kernels, ordered=True), flat[place]


def per_token(indices: Tensor, n_features: int, kernels: Kernels) -> Pairs:
    """The pairs of k features for each token; indices [B, k]."""
    n_tokens, k = indices.shape
    start = torch.arange(0, (n_tokens + 1) * k, k, device=indices.device) if k else indices.new_zeros(n_tokens + 1)
    return Pairs(start, indices.reshape(-1), n_features, kernels)
