"""Gated: one path decides which features fire, another how strongly. Rajamanoharan et al. 2024 (arXiv 2404.16014).

    gate       pi = (x - b_dec) W_enc + b_enc                       active where pi > 0
    magnitude  exp(r_mag) * ((x - b_dec) W_enc) + b_mag             how strongly: its ReLU
    L = recon + l1 |ReLU(pi)|_1 + | x - (ReLU(pi) W_dec + b_dec) |^2, the decoder frozen in the last term

Two vectors more than a standard SAE: r_mag and b_mag [d_sae].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sae_sweeps.architectures.base import ALL
from sae_sweeps.architectures.standard import Standard, StandardConfig
from sae_sweeps.kernels import sparse
from sae_sweeps.kernels.features import PairFeatures
from sae_sweeps.kernels.pairs import Pairs

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context


@dataclass
class GatedConfig(StandardConfig):
    """As the standard SAE's; L1 is that of the gate path."""


@dataclass
class GatedFeatures(PairFeatures):
    """The pairs with an open gate."""

    gate: Tensor
    """ReLU(pi) of each pair [P]."""


def gated_relu(gate: Tensor, magnitude: Tensor) -> Tensor:
    """ReLU(magnitude) where the gate path is above 0, elementwise; both before their activation."""
    return magnitude.relu() * (gate > 0)


class Gated(Standard):
    exports_as = "gated"
    cfg: GatedConfig

    def __init__(self, cfg: Any, d_in: int, total_steps: int, dead_after_tokens: int, generator: torch.Generator):
        super().__init__(cfg, d_in, total_steps, dead_after_tokens, generator)
        self.r_mag = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(cfg.d_sae))

    def activation(self, pre_acts: Tensor, feature: Tensor | slice = ALL) -> Tensor:
        magnitude = self.r_mag.exp()[feature] * (pre_acts - self.b_enc[feature]) + self.b_mag[feature]
        return gated_relu(pre_acts, magnitude)

    def pair_features(self, pre_acts_P: Tensor, pairs: Pairs) -> GatedFeatures:
        return GatedFeatures(self.activation(pre_acts_P, pairs.feature), pairs, pre_acts_P)

    def extra_losses(self, ctx: Context) -> dict[str, tuple[Tensor, float | Tensor]]:
        if isinstance(ctx.feature_acts, GatedFeatures):
            gate = ctx.feature_acts.gate
            x_hat = sparse.decode(ctx.feature_acts.pairs, gate, self.W_dec.detach())
        else:
            gate = ctx.pre_acts.relu()
            x_hat = (gate @ self.W_dec.detach()).to(gate.dtype)
        x_hat = x_hat + self.b_dec.detach()
        return {
            "sparsity": (gate.sum() / len(ctx.x), self.l1_weight(ctx.step)),
            "gate": ((ctx.x - x_hat).square().sum(1).mean(), 1.0),
        }

    def export(self, scale: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        weights, settings = super().export(scale)
        weights["b_gate"] = weights.pop("b_enc")
        weights |= {"r_mag": self.r_mag.detach().clone(), "b_mag": self.b_mag.detach() / scale}
        return weights, settings


CONFIG = GatedConfig
COMPONENT = Gated
