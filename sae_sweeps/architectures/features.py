"""Feature activations f of a batch, dense or as the k largest per token; both answer the same questions."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class DenseFeatures:
    f: Tensor
    """[B, d_sae], 0 where a feature is not active."""

    @property
    def d_sae(self) -> int:
        return self.f.shape[1]

    def dense(self) -> Tensor:
        """f [B, d_sae]."""
        return self.f

    def decode(self, W_dec: Tensor) -> Tensor:
        """f W_dec [B, d_in]."""
        return self.f @ W_dec

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

    def dense(self) -> Tensor:
        """f [B, d_sae]."""
        return self.values.new_zeros(len(self.values), self.d_sae).scatter(1, self.indices, self.values)

    def decode(self, W_dec: Tensor) -> Tensor:
        """f W_dec [B, d_in], without the dense f and without a [B, k, d_in] tensor."""
        return F.embedding_bag(self.indices, W_dec, per_sample_weights=self.values.to(W_dec.dtype), mode="sum")

    def columns(self, features: Tensor) -> Tensor:
        """f of some features [B, n]; their numbers are [n]."""
        return self.dense()[:, features]

    def active(self) -> tuple[Tensor, Tensor]:
        """(token, feature) of every active feature, both [nnz], ordered by token, then feature."""
        indices, order = self.indices.sort(dim=1)
        mask = self.values.gather(1, order) > 0
        return mask.nonzero(as_tuple=True)[0], indices[mask]

    def l0(self) -> Tensor:
        """Active features per token, mean over the batch, scalar."""
        return (self.values > 0).sum(dtype=torch.float32) / len(self.values)

    def fired(self) -> Tensor:
        """Which features are active on any token [d_sae], bool."""
        fired = torch.zeros(self.d_sae, dtype=torch.bool, device=self.values.device)
        fired[self.indices[self.values > 0]] = True
        return fired


Features = DenseFeatures | TopKFeatures
