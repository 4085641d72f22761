"""A ReLU whose activations grow ever more slowly: f = log(1 + ReLU(z)), with an L1 term."""

from dataclasses import dataclass

from sae_sweeps.architectures.base import SAE, ArchitectureConfig


@dataclass
class SoftcapConfig(ArchitectureConfig):
    l1: float = 0.04


class Softcap(SAE):
    def activation(self, pre_acts, feature=slice(None)):
        return pre_acts.relu().log1p()

    def extra_losses(self, ctx):
        return {"sparsity": (ctx.feature_acts.dense().sum(1).mean(), self.cfg.l1)}


CONFIG = SoftcapConfig
COMPONENT = Softcap
