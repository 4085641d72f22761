"""Standard: ReLU with an L1 term. Cunningham et al. 2023 (arXiv 2309.08600), Bricken et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_sweeps.architectures.base import ALL, SAE, ArchitectureConfig
from sae_sweeps.architectures.l0_control import L0Control, check_target
from sae_sweeps.errors import ConfigError
from sae_sweeps.fields import Length, NotNegative
from sae_sweeps.schedules import warm_up

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context


@dataclass
class StandardConfig(ArchitectureConfig):
    l1_penalty: NotNegative[float]
    """Weight of L1 = sum over features, mean over tokens; with target_l0 its initial value."""
    l1_warmup: Length
    """Length of the linear rise of that weight: a fraction of the run below 1, else steps."""
    target_l0: float | None
    """L0 to aim at, by steering the weight of L1; null keeps the weight."""

    def check(self, d_in: int) -> None:
        super().check(d_in)
        check_target(self.target_l0, self.d_sae)
        if self.target_l0 is not None and self.l1_penalty == 0:
            raise ConfigError(
                f"l1_penalty=0: with target_l0={self.target_l0:g} it is the weight's start; give 0.04, for example."
            )

    def unused_keys(self) -> dict[str, str]:
        return {"l1_warmup": "l1_penalty=0 has nothing to warm up"} if self.l1_penalty == 0 else {}


class Standard(SAE):
    exports_as = "standard"
    cfg: StandardConfig

    def __init__(self, cfg: Any, d_in: int, total_steps: int, dead_after_tokens: int, generator: torch.Generator):
        super().__init__(cfg, d_in, total_steps, dead_after_tokens, generator)
        self.l0_control = L0Control(cfg.target_l0, total_steps)

    def l1_weight(self, step: int) -> float | Tensor:
        weight = self.cfg.l1_penalty * warm_up(self.cfg.l1_warmup, step, self.total_steps) * self.l0_control.factor()
        return weight.to(self.W_dec.dtype) if isinstance(weight, Tensor) else weight

    def activation(self, pre_acts: Tensor, feature: Tensor | slice = ALL) -> Tensor:
        return pre_acts.relu()

    def active_above(self) -> float:
        return 0.0

    def extra_losses(self, ctx: Context) -> dict[str, tuple[Tensor, float | Tensor]]:
        return {"sparsity": (ctx.feature_acts.values.sum() / len(ctx.x), self.l1_weight(ctx.step))}

    @torch.no_grad()
    def observe(self, ctx: Context) -> None:
        super().observe(ctx)
        self.l0_control.observe(ctx.feature_acts.l0())


CONFIG = StandardConfig
COMPONENT = Standard
