"""The active (token, feature) pairs of a batch, as the rows of a sparse matrix [B, d_sae]."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sae_sweeps.kernels.choose import Kernels


def product_dtype() -> torch.dtype | None:
    """Dtype of a GPU's dense products where autocast is on, which a backward pass no longer sees."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None


@dataclass
class Pairs:
    start: Tensor
    """The pairs of token b are start[b] .. start[b + 1] - 1 [B + 1], int64."""
    feature: Tensor
    """Feature of each pair [P], int64."""
    n_features: int
    kernels: Kernels
    """Kernels that compute with the pairs."""
    products: torch.dtype | None = field(default_factory=product_dtype)
    """Dtype of dense products that take the place of sums over the pairs; None: that of their factors."""

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
        return self.kernels.transposed(self)

    def where(self, kept: Tensor) -> Pairs:
        """The pairs where kept [P] is true."""
        n_kept = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
        return Pairs(n_kept[self.start], self.feature[kept], self.n_features, self.kernels, self.products)


def per_token(indices: Tensor, n_features: int, kernels: Kernels) -> Pairs:
    """The pairs of k features for each token; indices [B, k]."""
    n_tokens, k = indices.shape
    start = torch.arange(0, (n_tokens + 1) * k, k, device=indices.device) if k else indices.new_zeros(n_tokens + 1)
    return Pairs(start, indices.reshape(-1), n_features, kernels)
