"""Control of a sparsity coefficient that brings L0 to a target, to compare baselines at matched L0.

    wanted L0    falls geometrically from that of the first batch to the target over the first FALL of the run
    e            log(L0 / wanted) of the last batch, between -1 and 1
    coefficient  multiplied by exp(GAIN * sum of e + DAMPING * e)

A run's L0 follows its coefficient slowly. Led along a curve it does not overshoot, which would kill features.
"""

import math

import torch
from torch import Tensor, nn

from sae_sweeps.errors import ConfigError
from sae_sweeps.kernels import choose

GAIN = 0.05
DAMPING = 2.0
FALL = 0.6
RANGE = 12.0
"""Bound on the absolute value of the log-coefficient's integral part."""


class L0Control(nn.Module):
    """The state is checkpointed. Without a target (None) the factor is 1."""

    def __init__(self, target: float | None, total_steps: int):
        super().__init__()
        self.target, self.total_steps = target, total_steps
        for name in ("log_factor", "error", "log_first"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.log_factor: Tensor
        self.error: Tensor
        self.log_first: Tensor
        """log L0 of the first batch."""
        self.seen: Tensor
        """Batches so far."""

    def factor(self) -> float | Tensor:
        """Factor on the coefficient at this step; a scalar where the device works ahead."""
        if self.target is None:
            return 1.0
        log_factor = self.log_factor + DAMPING * self.error
        return log_factor.exp() if choose.asynchronous(log_factor) else math.exp(float(log_factor))

    @torch.no_grad()
    def observe(self, l0: Tensor) -> None:
        """Update the factor from the L0 of a batch, scalar."""
        if self.target is None:
            return
        log_l0 = l0.double().clamp(min=1e-2).log()
        self.log_first.copy_(torch.where(self.seen == 0, log_l0, self.log_first))
        self.seen += 1
        done = (self.seen / (FALL * self.total_steps)).clamp(max=1)
        wanted = self.log_first + (math.log(self.target) - self.log_first) * done
        self.error.copy_((log_l0 - wanted).clamp(-1, 1))
        self.log_factor.add_(GAIN * self.error).clamp_(-RANGE, RANGE)


def check_target(target_l0: float | None, d_sae: int | None) -> None:
    """Raise ConfigError for a target that no batch can meet."""
    if target_l0 is not None and not 0 < target_l0 < (d_sae or 0):
        raise ConfigError(f"target_l0={target_l0}: must lie between 0 and d_sae={d_sae}.")
