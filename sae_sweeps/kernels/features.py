"""Feature activations f [B, d_sae] of a batch in three forms: dense, the k largest per token, or active pairs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_sweeps.kernels import sparse
from sae_sweeps.kernels.pairs import Pairs


class Features:
    """What the three forms have in common. `dense()` gives the matrix; the other methods avoid it where they can."""

    values: Tensor
    """All entries that may differ from 0; the shape depends on the form."""
    d_sae: int
    pairs: Pairs | None
    """Indices of the entries as (token, feature) pairs where kernels compute with them; None: plain torch."""
    prefix_squares: Tensor | None = None
    """Squared errors [parts, B] by `prefix_errors`, where they were computed."""

    @property
    def n_tokens(self) -> int:
        return len(self.values)

    def dense(self) -> Tensor:
        """f [B, d_sae]."""
        raise NotImplementedError

    def decode(self, W_dec: Tensor) -> Tensor:
        """f W_dec [B, d_in]; W_dec [d_sae, d_in]."""
        raise NotImplementedError

    def decode_part(self, W_dec: Tensor, first: int, end: int) -> Tensor:
        """Contribution of the features first .. end-1 to f W_dec [B, d_in]."""
        return self.dense()[:, first:end] @ W_dec[first:end]

    def prefix_errors(self, W_dec: Tensor, b_dec: Tensor, x: Tensor, ends: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Error x - b_dec - f W_dec [B, d_in], and its squared sums [parts, B] with f's first ends[p] features alone.

        These are kept as `prefix_squares`. The last end is d_sae.
        """
        sizes = [end - start for start, end in itertools.pairwise((0, *ends))]
        error, squares = x - b_dec, []
        for part, W in zip(self.dense().split(sizes, dim=1), W_dec.split(sizes), strict=True):
            error = error - (part @ W).to(x.dtype)
            squares.append(error.square().sum(1))
        self.prefix_squares = torch.stack(squares)
        return error, self.prefix_squares

    def columns(self, features: Tensor) -> Tensor:
        """f at the features with these numbers [n]: [B, n]."""
        wanted, place = features.unique(return_inverse=True)
        column = torch.full((self.d_sae,), -1, device=wanted.device)
        column[wanted] = torch.arange(len(wanted), device=wanted.device)
        token, feature, value = self.listed()
        column = column[feature]
        token, column, value = (one[column >= 0] for one in (token, column, value))
        return value.new_zeros(self.n_tokens, len(wanted)).index_put((token, column), value)[:, place]

    def listed(self) -> tuple[Tensor, Tensor, Tensor]:
        """(token, feature, value) of every entry, ordered by token; values may be 0."""
        raise NotImplementedError

    def active(self) -> tuple[Tensor, Tensor]:
        """(token, feature) of every active feature, both [nnz], ordered by token, then feature."""
        token, feature = (self.dense() > 0).nonzero(as_tuple=True)
        return token, feature

    def l0(self) -> Tensor:
        """Active features per token, mean over the batch, scalar."""
        return (self.values > 0).sum(dtype=torch.float32) / self.n_tokens

    def fired(self) -> Tensor:
        """Which features are active on any token [d_sae], bool."""
        if self.pairs is None:
            return self.dense().amax(0) > 0
        # by the order by feature, which the backward pass needs too
        return self.pairs.kernels.sums(self.pairs, (self.values.flatten() > 0).float()) > 0


@dataclass
class DenseFeatures(Features):
    values: Tensor
    """f itself [B, d_sae]."""
    pairs: None = None

    @property
    def d_sae(self) -> int:  # type: ignore[override]
        return self.values.shape[1]

    def dense(self) -> Tensor:
        return self.values

    def decode(self, W_dec: Tensor) -> Tensor:
        return self.values @ W_dec

    def columns(self, features: Tensor) -> Tensor:
        return self.values[:, features]

    def listed(self) -> tuple[Tensor, Tensor, Tensor]:
        token, feature = self.values.nonzero(as_tuple=True)
        return token, feature, self.values[token, feature]


@dataclass
class TopKFeatures(Features):
    values: Tensor
    """[B, k], 0 where fewer than k features are positive."""
    indices: Tensor
    """Features of the values [B, k]."""
    d_sae: int
    pairs: Pairs | None = None

    def dense(self) -> Tensor:
        return self.values.new_zeros(len(self.values), self.d_sae).scatter(1, self.indices, self.values)

    def decode(self, W_dec: Tensor) -> Tensor:
        """f W_dec [B, d_in], without the dense f and without a [B, k, d_in] tensor."""
        if self.pairs is not None:
            return sparse.decode(self.pairs, self.values.reshape(-1).to(W_dec.dtype), W_dec)
        return F.embedding_bag(self.indices, W_dec, per_sample_weights=self.values.to(W_dec.dtype), mode="sum")

    def listed(self) -> tuple[Tensor, Tensor, Tensor]:
        n_tokens, k = self.indices.shape
        token = torch.arange(n_tokens, device=self.indices.device).repeat_interleave(k)
        return token, self.indices.flatten(), self.values.flatten()

    def active(self) -> tuple[Tensor, Tensor]:
        indices, order = self.indices.sort(dim=1)
        mask = self.values.gather(1, order) > 0
        return mask.nonzero(as_tuple=True)[0], indices[mask]

    def fired(self) -> Tensor:
        if self.pairs is not None:
            return super().fired()
        n = torch.zeros(self.d_sae, dtype=torch.int32, device=self.values.device)
        return n.index_add(0, self.indices.flatten(), (self.values.flatten() > 0).int()) > 0


@dataclass
class PairFeatures(Features):
    values: Tensor
    """Activation of each pair [P]; may be 0."""
    pairs: Pairs
    """Ordered by token, then feature."""

    @property
    def d_sae(self) -> int:  # type: ignore[override]
        return self.pairs.n_features

    @property
    def n_tokens(self) -> int:
        return self.pairs.n_tokens

    def dense(self) -> Tensor:
        f = self.values.new_zeros(self.n_tokens, self.d_sae)
        return f.index_put((self.pairs.token, self.pairs.feature), self.values)

    def decode(self, W_dec: Tensor) -> Tensor:
        return sparse.decode(self.pairs, self.values, W_dec)

    def decode_part(self, W_dec: Tensor, first: int, end: int) -> Tensor:
        kept = (self.pairs.feature >= first) & (self.pairs.feature < end)
        return sparse.decode(self.pairs.where(kept), self.values[kept], W_dec)

    def prefix_errors(self, W_dec: Tensor, b_dec: Tensor, x: Tensor, ends: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        error, squares = sparse.prefix_residuals(self.pairs, self.values.to(x.dtype), W_dec, b_dec, x, ends)
        self.prefix_squares = squares
        return error, squares

    def listed(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.pairs.token, self.pairs.feature, self.values

    def active(self) -> tuple[Tensor, Tensor]:
        mask = self.values > 0
        return self.pairs.token[mask], self.pairs.feature[mask]
