"""Feature activations f of a batch, dense, as the k largest per token or as pairs; all answer the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_sweeps.kernels import sparse
from sae_sweeps.kernels.pairs import Pairs


@dataclass
class DenseFeatures:
    f: Tensor
    """[B, d_sae], 0 where a feature is not active."""
    pairs: ClassVar[None] = None

    @property
    def d_sae(self) -> int:
        return self.f.shape[1]

    @property
    def entries(self) -> Tensor:
        """All that may differ from 0, in any shape."""
        return self.f

    def dense(self) -> Tensor:
        """f [B, d_sae]."""
        return self.f

    def decode(self, W_dec: Tensor) -> Tensor:
        """f W_dec [B, d_in]."""
        return self.f @ W_dec

    def decode_part(self, W_dec: Tensor, first: int, end: int) -> Tensor:
        """What features first .. end-1 give of f W_dec [B, d_in]."""
        return self.f[:, first:end] @ W_dec[first:end]

    def columns(self, features: Tensor) -> Tensor:
        """f of some features [B, n]; their numbers are [n]."""
        return self.f[:, features]

    def active(self) -> tuple[Tensor, Tensor]:
        """(token, feature) of every active feature, both [nnz], ordered by token, then feature."""
        token, feature = (self.f > 0).nonzero(as_tuple=True)
        return token, feature

    def l0(self) -> Tensor:
        """Active features per token, mean over the batch, scalar."""
        return (self.f > 0).sum(dtype=torch.float32) / len(self.f)

    def fired(self) -> Tensor:
        """Which features are active on any token [d_sae], bool."""
        return (self.f > 0).any(0)


@dataclass
class TopKFeatures:
    values: Tensor
    """[B, k], 0 where fewer than k features are positive."""
    indices: Tensor
    """[B, k], the features they belong to."""
    d_sae: int
    pairs: Pairs | None = None
    """The indices as pairs, with the kernels that compute with them; None: plain torch."""

    @property
    def entries(self) -> Tensor:
        """All that may differ from 0 [B, k]."""
        return self.values

    def dense(self) -> Tensor:
        """f [B, d_sae]."""
        return self.values.new_zeros(len(self.values), self.d_sae).scatter(1, self.indices, self.values)

    def decode(self, W_dec: Tensor) -> Tensor:
        """f W_dec [B, d_in], without the dense f and without a [B, k, d_in] tensor."""
        if self.pairs is not None:
            return sparse.decode(self.pairs, self.values.reshape(-1).to(W_dec.dtype), W_dec)
        return F.embedding_bag(self.indices, W_dec, per_sample_weights=self.values.to(W_dec.dtype), mode="sum")

    def columns(self, features: Tensor) -> Tensor:
        """f of some features [B, n]; their numbers are [n]."""
        return self.dense()[:, features]

    def active(self) -> tuple[Tensor, Tensor]:
        """(token, feature) of every active feature, both [nnz], ordered by token, then feature."""
        indices, order = self.indices.sort(dim=1)
        mask = self.values.gather(1, order) > 0
        return mask.nonzero(as_tuple=True)[0], indices[mask]

    def listed(self) -> tuple[Tensor, Tensor, Tensor]:
        """(token, feature, value) of every entry, each [B k], ordered by token; some may be 0."""
        n_tokens, k = self.indices.shape
        token = torch.arange(n_tokens, device=self.indices.device).repeat_interleave(k)
        return token, self.indices.flatten(), self.values.flatten()

    def l0(self) -> Tensor:
        """Active features per token, mean over the batch, scalar."""
        return (self.values > 0).sum(dtype=torch.float32) / len(self.values)

    def fired(self) -> Tensor:
        """Which features are active on any token [d_sae], bool."""
        if self.pairs is not None:
            return _fired(self.pairs, self.values.flatten())
        fired = torch.zeros(self.d_sae, dtype=torch.bool, device=self.values.device)
        fired[self.indices[self.values > 0]] = True
        return fired


@dataclass
class PairFeatures:
    values: Tensor
    """Activation of each pair [P]; any may be 0."""
    pairs: Pairs
    """Ordered by token, then feature."""

    @property
    def d_sae(self) -> int:
        return self.pairs.n_features

    @property
    def entries(self) -> Tensor:
        """All that may differ from 0 [P]."""
        return self.values

    def dense(self) -> Tensor:
        """f [B, d_sae]."""
        f = self.values.new_zeros(self.pairs.n_tokens, self.d_sae)
        return f.index_put((self.pairs.token, self.pairs.feature), self.values)

    def decode(self, W_dec: Tensor) -> Tensor:
        """f W_dec [B, d_in]."""
        return sparse.decode(self.pairs, self.values, W_dec)

    def decode_part(self, W_dec: Tensor, first: int, end: int) -> Tensor:
        """What features first .. end-1 give of f W_dec [B, d_in]."""
        kept = (self.pairs.feature >= first) & (self.pairs.feature < end)
        return sparse.decode(self.pairs.where(kept), self.values[kept], W_dec)

    def columns(self, features: Tensor) -> Tensor:
        """f of some features [B, n]; their numbers are [n]."""
        return self.dense()[:, features]

    def active(self) -> tuple[Tensor, Tensor]:
        """(token, feature) of every active feature, both [nnz], ordered by token, then feature."""
        mask = self.values > 0
        return self.pairs.token[mask], self.pairs.feature[mask]

    def listed(self) -> tuple[Tensor, Tensor, Tensor]:
        """(token, feature, value) of every entry, each [P], ordered by token; some may be 0."""
        return self.pairs.token, self.pairs.feature, self.values

    def l0(self) -> Tensor:
        """Active features per token, mean over the batch, scalar."""
        return (self.values > 0).sum(dtype=torch.float32) / self.pairs.n_tokens

    def fired(self) -> Tensor:
        """Which features are active on any token [d_sae], bool."""
        return _fired(self.pairs, self.values)


def _fired(pairs: Pairs, values: Tensor) -> Tensor:
    """Features with a value above 0 [d_sae], bool, by way of the pairs' order by feature, which backward needs too."""
    return pairs.kernels.sums(pairs, (values > 0).float()) > 0


Features = DenseFeatures | TopKFeatures | PairFeatures
