"""Pulls each encoder column and decoder row to the same direction: mean_i (1 - cos(W_enc[:, i], W_dec[i]))."""

from dataclasses import dataclass

from torch.nn.functional import cosine_similarity

from sae_sweeps.penalties.base import Penalty, PenaltyValue, WeightedConfig


@dataclass
class AlignmentConfig(WeightedConfig):
    lambda2_max: float = 1.0
    """Weight of the penalty at schedule value 1."""


class Alignment(Penalty):
    def forward(self, ctx):
        cos_F = cosine_similarity(ctx.sae.W_enc, ctx.sae.W_dec.T, dim=0)
        return PenaltyValue((1 - cos_F).mean(), {"mean_cosine": cos_F.mean().item()})


CONFIG = AlignmentConfig
COMPONENT = Alignment
