"""Competition of two features, from how often they are active together."""

from dataclasses import dataclass

import torch
from torch import Tensor

Found = tuple[Tensor, int | Tensor, Tensor]
"""(value, number of competing pairs, gradient on W [d_sae, d_in])."""


@dataclass(frozen=True)
class Competition:
    """c_ij of two features from the number of tokens on which both, and on which each, are active."""

    overlap: str
    """jaccard, min, cosine or batch."""
    form: str
    """linear or sigmoid."""
    threshold: float | Tensor
    """t > 0; a scalar tensor where reading it would wait for a GPU."""
    tau: float
    """Softness of the sigmoid, relative to t."""

    def overlaps(self, n_both: Tensor, n_i: Tensor, n_j: Tensor, n_tokens: int) -> Tensor:
        """n_ij of features active on n_i and n_j of n_tokens, together on n_both, all of one shape."""
        if self.overlap == "jaccard":
            return n_both / (n_i + n_j - n_both)
        if self.overlap == "min":
            return n_both / torch.minimum(n_i, n_j)
        if self.overlap == "cosine":
            return n_both / (n_i * n_j).sqrt()
        return n_both / n_tokens

    def weights(self, n: Tensor) -> Tensor:
        """c_ij from the overlap n_ij > 0."""
        t = self.threshold
        if self.form == "linear":
            return ((n - t) / t).clamp(0, 1)
        return torch.sigmoid((n - t) / (self.tau * t))

    def weigh(self, n_both: Tensor, n_i: Tensor, n_j: Tensor, n_tokens: int) -> Tensor:
        return self.weights(self.overlaps(n_both, n_i, n_j, n_tokens))
