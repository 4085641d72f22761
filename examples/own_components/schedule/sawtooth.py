"""Rises from 0 to 1 again and again, `teeth` times over the run."""

from dataclasses import dataclass

from sae_sweeps.errors import ConfigError
from sae_sweeps.schedules import Schedule


@dataclass
class Sawtooth(Schedule):
    name: str
    teeth: int = 4

    def check(self):
        if self.teeth < 1:
            raise ConfigError(f"schedule.teeth={self.teeth}: must be above 0.")

    def value(self, step, total_steps):
        return step * self.teeth / total_steps % 1.0
