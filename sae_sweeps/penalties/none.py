"""No penalty: the baseline."""

from dataclasses import dataclass

from sae_sweeps.penalties.base import Penalty, PenaltyConfig


@dataclass
class NoneConfig(PenaltyConfig):
    def peak_weight(self) -> float:
        return 0.0


CONFIG = NoneConfig
COMPONENT = Penalty
