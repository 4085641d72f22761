"""Standard: ReLU with an L1 term. Cunningham et al. 2023 (arXiv 2309.08600), Bricken et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from sae_sweeps.architectures.base import SAE, ArchitectureConfig
from sae_sweeps.architectures.features import DenseFeatures
from sae_sweeps.errors import ConfigError
from sae_sweeps.schedules import check_length, steps_of

if TYPE_CHECKING:
    from sae_sweeps.training.context import Context


@dataclass
class StandardConfig(ArchitectureConfig):
    l1_penalty: float
    """Weight of L1 = sum over features, mean over tokens."""
    l1_warmup: float
    """Length of the linear rise of that weight: a fraction of the run below 1, else steps."""

    def check(self, d_in: int) -> None:
        super().check(d_in)
        if self.l1_penalty < 0:
            raise ConfigError(f"l1_penalty={self.l1_penalty}: must be 0 or more.")
        check_length("architecture.l1_warmup", self.l1_warmup)

    def inert(self) -> dict[str, str]:
        return {"l1_warmup": "l1_penalty=0 has nothing to warm up"} if self.l1_penalty == 0 else {}


class Standard(SAE):
    exports_as = "standard"
    cfg: StandardConfig

    def l1_weight(self, step: int) -> float:
        warmup = steps_of(self.cfg.l1_warmup, self.total_steps)
        return self.cfg.l1_penalty * (min(1.0, step / warmup) if warmup else 1.0)

    def activate(self, z: Tensor, step: int) -> DenseFeatures:
        return DenseFeatures(z.relu().float())

    def extra_losses(self, ctx: Context) -> dict[str, tuple[Tensor, float]]:
        return {"sparsity": (ctx.f.dense().sum(1).mean(), self.l1_weight(ctx.step))}


CONFIG = StandardConfig
COMPONENT = Standard
