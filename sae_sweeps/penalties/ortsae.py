"""OrtSAE: a penalty on each feature's largest cosine within a random chunk. arXiv 2509.22033 (2025).

    L = lambda2 * mean_i max(0, max_{j in chunk of i, j != i} cos(w_i, w_j))^2

The chunks are drawn anew at each step, so that the cost grows linearly with d_sae. The default chunk size and
weight are this project's, not the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch

from sae_sweeps.fields import at_least
from sae_sweeps.kernels.nearest import nearest_squares
from sae_sweeps.penalties.base import Penalty, PenaltyValue, WeightedConfig

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context


@dataclass
class OrtSAEConfig(WeightedConfig):
    chunk_size: Annotated[int, at_least(2, "a feature needs another to be compared with; give 2 or more.")]
    """Features per chunk; the last one may hold fewer. At least d_sae compares all with all."""


class OrtSAE(Penalty):
    cfg: OrtSAEConfig

    def forward(self, ctx: Context) -> PenaltyValue:
        W = ctx.sae.W_dec
        order = torch.randperm(len(W), generator=ctx.generator(), device=W.device)
        total, nearest = nearest_squares(W, order.split(self.cfg.chunk_size))
        return PenaltyValue(total / len(W), {"nearest_cosine": nearest.mean()})


CONFIG = OrtSAEConfig
COMPONENT = OrtSAE
