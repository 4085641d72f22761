"""TopK: the k largest of ReLU(z) per token. Gao et al. 2024 (arXiv 2406.04093)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_sweeps.architectures.base import SAE, ArchitectureConfig
from sae_sweeps.architectures.features import TopKFeatures
from sae_sweeps.errors import ConfigError

if TYPE_CHECKING:
    from sae_sweeps.training.context import Context


@dataclass
class TopKConfig(ArchitectureConfig):
    k: int
    """Active features per token, at most."""
    k_start: int | None
    """k at the first step, going linearly to k over the run; null keeps k constant."""
    k_aux: int | None
    """Dead features that model the error in the auxiliary loss; null means d_in / 2."""
    aux_weight: float
    """Weight of the auxiliary loss; 0 turns it off."""

    def check(self, d_in: int) -> None:
        super().check(d_in)
        assert self.d_sae is not None
        for key in ("k", "k_start", "k_aux"):
            value = getattr(self, key)
            if value is None:
                continue
            name = f"architecture.{key}" if key == "k_aux" else key
            if value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1.")
            if value > self.d_sae:
                raise ConfigError(f"{name}={value}: is larger than d_sae={self.d_sae}; give at most {self.d_sae}.")
        if self.aux_weight < 0:
            raise ConfigError(f"architecture.aux_weight={self.aux_weight}: must be 0 or more.")

    def inert(self) -> dict[str, str]:
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

    def activate(self, z: Tensor, step: int) -> TopKFeatures:
        values, indices = z.topk(self.k_at(step), dim=1, sorted=False)
        return TopKFeatures(values.relu().float(), indices, self.d_sae)

    def extra_losses(self, ctx: Context) -> dict[str, tuple[Tensor, float]]:
        """Auxiliary loss: squared error of modelling the residual with the k_aux largest dead features.

        Scaled down while fewer than k_aux features are dead, as in the paper's released code.
        """
        if self.cfg.aux_weight == 0:
            return {}
        dead = self.dead()
        n_dead = int(dead.sum())
        if n_dead == 0:
            return {"aux": (ctx.z.new_zeros((), dtype=torch.float32), self.cfg.aux_weight)}
        wanted = self.cfg.k_aux or max(1, len(self.b_dec) // 2)
        k_aux = min(wanted, n_dead)
        z_dead = ctx.z.masked_fill(~dead, -torch.inf)
        values, indices = z_dead.topk(k_aux, dim=1, sorted=False)
        e_hat = TopKFeatures(values.relu().float(), indices, self.d_sae).decode(self.W_dec)
        aux = (ctx.error.detach() - e_hat).square().sum(1).mean()
        return {"aux": (aux * min(1.0, n_dead / wanted), self.cfg.aux_weight)}

    def numbers(self, step: int) -> dict[str, float]:
        return {"k": self.k_at(step)}

    def export(self, scale: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        weights, settings = super().export(scale)
        return weights, settings | {"k": self.cfg.k}


CONFIG = TopKConfig
COMPONENT = TopK
