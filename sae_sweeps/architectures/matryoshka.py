"""Matryoshka: BatchTopK whose every prefix of the dictionary must reconstruct. Bussmann et al. 2025 (arXiv 2503.17547).

    L = sum over prefixes m of recon(x - (f_{:m} W_dec_{:m} + b_dec))

The whole dictionary's is the step's own `recon`, the shorter prefixes' together the term `prefixes`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from sae_sweeps.architectures.base import SAE
from sae_sweeps.architectures.batch_topk import BatchTopK, BatchTopKConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.kernels import choose
from sae_sweeps.kernels.features import Features

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context


@dataclass
class MatryoshkaConfig(BatchTopKConfig):
    prefix_fractions: list[float]
    """Shares of the dictionary that must reconstruct by themselves, rising; the whole is always added."""

    def check(self, d_in: int) -> None:
        super().check(d_in)
        shares = self.prefix_fractions
        rising = all(a < b for a, b in itertools.pairwise([0.0, *shares, 1.0]))
        if not shares or not rising:
            raise ConfigError(f"architecture.prefix_fractions={shares}: must rise, and lie between 0 and 1.")

    def prefixes(self) -> list[int]:
        """Sizes of the prefixes that are shorter than the dictionary."""
        d_sae = self.d_sae or 0
        sizes = {max(1, round(share * d_sae)) for share in self.prefix_fractions}
        return sorted(size for size in sizes if size < d_sae)


class Matryoshka(BatchTopK):
    cfg: MatryoshkaConfig

    def residual(self, feature_acts: Features, x: Tensor) -> tuple[Tensor, Tensor]:
        if not choose.asynchronous(x) or type(self).decode is not SAE.decode:
            return super().residual(feature_acts, x)
        error, squares = feature_acts.prefix_errors(self.W_dec, self.b_dec, x, (*self.cfg.prefixes(), self.d_sae))
        return error, squares[-1]

    def extra_losses(self, ctx: Context) -> dict[str, tuple[Tensor, float | Tensor]]:
        if ctx.feature_acts.prefix_squares is not None:
            total = sum(map(ctx.of_squares, ctx.feature_acts.prefix_squares[:-1]), start=ctx.x.new_zeros(()))
            return {"prefixes": (total, 1.0), **super().extra_losses(ctx)}
        x_hat, total = self.b_dec.expand_as(ctx.x), ctx.x.new_zeros(())
        start = 0
        for end in self.cfg.prefixes():
            x_hat = x_hat + ctx.feature_acts.decode_part(self.W_dec, start, end).to(ctx.x.dtype)
            total = total + ctx.reconstruction(ctx.x - x_hat)
            start = end
        return {"prefixes": (total, 1.0), **super().extra_losses(ctx)}


CONFIG = MatryoshkaConfig
COMPONENT = Matryoshka
