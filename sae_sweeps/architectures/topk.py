"""TopK: the k largest of ReLU(z) per token. Gao et al. 2024 (arXiv 2406.04093)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sae_sweeps.architectures.auxiliary import auxiliary_loss
from sae_sweeps.architectures.base import SAE, ArchitectureConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.fields import AtLeastOne, NotNegative
from sae_sweeps.kernels import sparse
from sae_sweeps.kernels.features import Features, TopKFeatures
from sae_sweeps.kernels.pairs import per_token

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context


@dataclass
class TopKConfig(ArchitectureConfig):
    k: AtLeastOne[int]
    """Active features per token, at most."""
    k_start: AtLeastOne[int | None]
    """k at the first step, going linearly to k over the run; null keeps k constant."""
    k_aux: AtLeastOne[int | None]
    """Dead features that model the error in the auxiliary loss; null means d_in / 2."""
    aux_weight: NotNegative[float]
    """Weight of the auxiliary loss; 0 turns it off."""

    def check(self, d_in: int) -> None:
        super().check(d_in)
        for key in ("k", "k_start", "k_aux"):
            if (getattr(self, key) or 0) > (self.d_sae or 0):
                name = f"architecture.{key}" if key == "k_aux" else key
                raise ConfigError(
                    f"{name}={getattr(self, key)}: is larger than d_sae={self.d_sae}; give at most {self.d_sae}."
                )

    def unused_keys(self) -> dict[str, str]:
        return {"k_aux": "architecture.aux_weight=0 turns the auxiliary loss off"} if self.aux_weight == 0 else {}


class TopK(SAE):
    exports_as = "topk"
    cfg: TopKConfig

    def k_at(self, step: int) -> int:
        """k, or the point on the line from k_start to k: `k_start` at step 0, `k` at the last."""
        k, start = self.cfg.k, self.cfg.k_start
        if start is None or self.total_steps < 2:
            return k
        return round(start + (k - start) * min(1.0, step / (self.total_steps - 1)))

    def activate(self, z: Tensor, step: int) -> Features:
        values, indices = z.topk(self.k_at(step), dim=1, sorted=False)
        return TopKFeatures(values.relu(), indices, self.d_sae)

    def encode_sparsely(self, centred: Tensor, step: int) -> tuple[Tensor, Features]:
        assert self.kernels is not None
        weights = self.W_enc, self.b_enc, self.b_dec
        z, values, indices = sparse.with_largest(self.kernels, self.k_at(step), centred, *weights, self.coarse)
        pairs = per_token(indices, self.d_sae, self.kernels)
        values = self.chosen(values.reshape(-1), pairs, centred).view_as(indices)
        return z, TopKFeatures(values.relu(), indices, self.d_sae, pairs)

    def extra_losses(self, ctx: Context) -> dict[str, tuple[Tensor, float]]:
        if self.cfg.aux_weight == 0:
            return {}
        return {"aux": (auxiliary_loss(self, ctx, self.cfg.k_aux), self.cfg.aux_weight)}

    def numbers(self, step: int) -> dict[str, float]:
        return {"k": self.k_at(step)}

    def export(self, scale: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        weights, settings = super().export(scale)
        return weights, settings | {"k": self.cfg.k}


CONFIG = TopKConfig
COMPONENT = TopK
