"""How well an SAE in training reconstructs held-out activations: a sample of core's tokens, weighted as all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_sweeps.architectures.batch import norms_of
from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.evaluation.draws import evenly
from sae_sweeps.evaluation.reconstruction import mean_within

AT_ONCE = 1024
"""Tokens encoded at once, as many as in a step."""


@dataclass
class HeldOut:
    """n of the N tokens that core measures reconstruction on.

    Where N is larger, half of the n are the tokens with the largest |x - m|^2, m the mean over all N: a few tokens can
    hold most of the variance, and a sample that misses them has another fvu. The others are taken evenly from the
    rest, and each counts for as many tokens as it was taken from.
    """

    x: Tensor
    """[n, d_in], float32."""
    weight: Tensor
    """How many of the N tokens each represents [n], float64; they add up to N."""
    variance: Tensor
    """|x - m|^2 of each [n], float64."""
    total: float
    """The sum of |x - m|^2 over all N tokens."""

    @torch.no_grad()
    def measure(self, sae: ExportedSAE) -> dict[str, float]:
        """`fvu` and `fvu_per_token` of ReconstructionStats; exact where n = N, else estimates of those over all N."""
        error = [(sae.decode(sae.features(part)) - part).double().square().sum(1) for part in self.x.split(AT_ONCE)]
        weighted = self.weight * torch.cat(error)
        varies = self.variance > 0
        shares = (weighted / self.variance)[varies]
        per_token = shares.sum() / self.weight[varies].sum()
        return {"fvu": float(weighted.sum() / self.total), "fvu_per_token": float(per_token)}


def sample(x_ND: Tensor, n_tokens: int, device: torch.device, norm_limit: float | None = None) -> HeldOut:
    """`n_tokens` of core's tokens x [N, d_in], without those whose norm is beyond the limit; all if N is no larger."""
    x_ND = x_ND if norm_limit is None else x_ND[norms_of(x_ND) <= norm_limit]
    mean_D = mean_within(x_ND.split(AT_ONCE))
    variance_N = torch.cat([(part.double() - mean_D).square().sum(1) for part in x_ND.split(AT_ONCE)])
    n_all = len(x_ND)
    if n_all <= n_tokens:
        picked, weight = torch.arange(n_all), torch.ones(n_all)
    else:
        top = variance_N.topk(n_tokens // 2).indices
        others = torch.ones(n_all, dtype=torch.bool).index_fill_(0, top, False).nonzero()[:, 0]
        rest = others[evenly(n_tokens - len(top), len(others))]
        picked = torch.cat([top, rest])
        weight = torch.ones(n_tokens)
        weight[len(top) :] = len(others) / len(rest)
    x, weight, variance = x_ND[picked].float(), weight.double(), variance_N[picked]
    return HeldOut(x.to(device), weight.to(device), variance.to(device), float(variance_N.sum()))
