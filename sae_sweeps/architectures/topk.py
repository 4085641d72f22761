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
from sae_sweeps.schedules import linear_k

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context
    from sae_sweeps.kernels.choose import Kernels


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

    def k_at(self, step: int, total_steps: int) -> int:
        """k of a step: on the line from k_start at step 0 to k at the last step."""
        return self.k if self.k_start is None else linear_k(self.k_start, self.k, step, total_steps)

    def curves(self, total_steps: int) -> dict[str, list[float]]:
        return {} if self.k_start is None else {"k": [self.k_at(step, total_steps) for step in range(total_steps)]}


def top_k(pre_acts: Tensor, k: int, kernels: Kernels | None = None) -> TopKFeatures:
    """ReLU(z) at the k largest z of each token, 0 elsewhere; pre_acts [B, d_sae]. With kernels it has no gradient."""
    d_sae = pre_acts.shape[1]
    if kernels is None:
        values, indices = pre_acts.topk(k, dim=1, sorted=False)
        return TopKFeatures(values.relu(), indices, d_sae)
    values, indices = kernels.largest(pre_acts, k)
    return TopKFeatures(values.relu(), indices, d_sae, per_token(indices, d_sae, kernels))


class TopK(SAE):
    exports_as = "topk"
    cfg: TopKConfig

    def k_at(self, step: int) -> int:
        return self.cfg.k_at(step, self.total_steps)

    def activate(self, pre_acts: Tensor, step: int) -> Features:
        return top_k(pre_acts, self.k_at(step))

    def encode_sparsely(self, centred: Tensor, step: int) -> tuple[Tensor | None, Features]:
        assert self.kernels is not None
        pre_acts, k = None, self.k_at(step)
        if self.selection.way == "bounded":
            weights = self.W_enc.detach(), self.b_enc.detach()
            values, indices = self.kernels.bounded_largest(centred, *weights, k, self.selection.block)
        else:
            learned = self.W_enc, self.b_enc, self.b_dec
            pre_acts, values, indices = sparse.with_largest(self.kernels, k, centred, *learned, self.coarse)
        pairs = per_token(indices, self.d_sae, self.kernels)
        values = self.chosen(values.reshape(-1), pairs, centred).view_as(indices)
        return pre_acts, TopKFeatures(values.relu(), indices, self.d_sae, pairs)

    def extra_losses(self, ctx: Context) -> dict[str, tuple[Tensor, float | Tensor]]:
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
