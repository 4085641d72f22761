"""p-annealing: a sparsity term L_p whose p falls from 1. Karvonen et al. 2024 (arXiv 2408.00113).

    L = recon + l1 * c_s * mean over tokens of sum_i f_i^{p_s}

p falls in equal steps; at each the coefficient is rescaled by c_s = c_{s-1} * sum f^{p_{s-1}} / sum f^{p_s}, so that
the term does not jump. The sums are the batch's own (the paper takes those of the last few batches).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_sweeps.architectures.standard import Standard, StandardConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.fields import AtLeastOne, PositiveShare
from sae_sweeps.kernels import choose

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context

FLOOR = 1e-3
"""Below this activation f^p is replaced by the line to (0, 0), so that its slope is finite."""


@dataclass
class PAnnealConfig(StandardConfig):
    p_final: PositiveShare
    """p at the end."""
    anneal_start: float
    """Share of the run after which p begins to fall."""
    anneal_end: float
    """Share of the run after which p is p_final."""
    p_steps: AtLeastOne[int]
    """Number of equal steps in which p falls."""

    def check(self, d_in: int) -> None:
        super().check(d_in)
        if not 0 <= self.anneal_start < self.anneal_end <= 1:
            raise ConfigError(
                f"architecture.anneal_start={self.anneal_start}: must be below "
                f"architecture.anneal_end={self.anneal_end}, both between 0 and 1."
            )

    def unused_keys(self) -> dict[str, str]:
        keys = ("anneal_start", "anneal_end", "p_steps")
        stays = dict.fromkeys(keys, "with architecture.p_final=1 p stays 1") if self.p_final == 1 else {}
        return super().unused_keys() | stays


class PAnneal(Standard):
    cfg: PAnnealConfig

    def __init__(self, cfg: Any, d_in: int, total_steps: int, dead_after_tokens: int, generator: torch.Generator):
        super().__init__(cfg, d_in, total_steps, dead_after_tokens, generator)
        self.register_buffer("rescale", torch.ones((), dtype=torch.float64))
        self.rescale: Tensor
        """c_s of the current p."""

    def p_at(self, step: int) -> float:
        """p of a step, T steps in all; p_final from anneal_end on."""
        start, end = self.cfg.anneal_start * self.total_steps, self.cfg.anneal_end * self.total_steps
        done = min(1.0, max(0.0, (step - start) / max(end - start, 1e-9)))
        taken = int(done * self.cfg.p_steps + 1e-9)
        return 1 + (self.cfg.p_final - 1) * taken / self.cfg.p_steps

    def extra_losses(self, ctx: Context) -> dict[str, tuple[Tensor, float | Tensor]]:
        value = powers(ctx.feature_acts.values, self.p_at(ctx.step)).sum() / len(ctx.x)
        rescale = self.rescale.to(value.dtype) if choose.asynchronous(self.rescale) else float(self.rescale)
        return {"sparsity": (value, self.l1_weight(ctx.step) * rescale)}

    @torch.no_grad()
    def observe(self, ctx: Context) -> None:
        """Also rescale for the next step's p."""
        super().observe(ctx)
        p, next_p = self.p_at(ctx.step), self.p_at(ctx.step + 1)
        if next_p != p:
            f = ctx.feature_acts.values
            before, after = powers(f, p).sum().double(), powers(f, next_p).sum().double()
            self.rescale.mul_(torch.where(after > 0, before / after.clamp(min=1e-30), 1.0))

    def numbers(self, step: int) -> dict[str, float]:
        return super().numbers(step) | {"p": self.p_at(step)}


def powers(f: Tensor, p: float) -> Tensor:
    """f^p elementwise for f >= 0, linear below FLOOR."""
    if p == 1:
        return f
    return torch.where(f > FLOOR, f.clamp(min=FLOOR) ** p, f * FLOOR ** (p - 1))


CONFIG = PAnnealConfig
COMPONENT = PAnneal
