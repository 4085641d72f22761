"""Steers a sparsity coefficient so that L0 comes to a target: baselines can then be compared at matched L0."""

import math

import torch
from torch import Tensor, nn

from sae_sweeps.errors import ConfigError

GAIN = 0.02
"""Change of the log-coefficient per step and unit of log(L0 / target)."""
DAMPING = 1.0
"""The coefficient's immediate answer to log(L0 / target)."""
FASTEST = 1.0
"""Errors of the logarithm beyond this count as this."""
RANGE = 12.0
"""How far the log-coefficient may go from where it starts, either way."""


class L0Control(nn.Module):
    """factor = exp(sum of GAIN * e + DAMPING * e), e = log(L0 / target) of the last batch, its state checkpointed."""

    def __init__(self, target: float | None):
        super().__init__()
        self.target = target
        self.register_buffer("log_factor", torch.zeros((), dtype=torch.float64))
        self.register_buffer("error", torch.zeros((), dtype=torch.float64))
        self.log_factor: Tensor
        self.error: Tensor

    def factor(self) -> float:
        """By which the coefficient is multiplied at this step; 1 without a target."""
        return 1.0 if self.target is None else math.exp(float(self.log_factor + DAMPING * self.error))

    @torch.no_grad()
    def observe(self, l0: Tensor) -> None:
        """Take note of the L0 of a batch."""
        if self.target is None:
            return
        self.error.copy_((l0.double().clamp(min=1e-3) / self.target).log().clamp(-FASTEST, FASTEST))
        self.log_factor.add_(GAIN * self.error).clamp_(-RANGE, RANGE)


def check_target(target_l0: float | None, d_sae: int | None) -> None:
    """Raise ConfigError for a target that no batch can meet."""
    if target_l0 is not None and not 0 < target_l0 < (d_sae or 0):
        raise ConfigError(f"target_l0={target_l0}: must lie between 0 and d_sae={d_sae}.")
