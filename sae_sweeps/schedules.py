"""Schedules: pure functions of the step, so that a resumed run continues on the same curve.

T is the number of steps, i = 0 .. T-1 the step, p = i / T the progress. A length is a fraction of the run when below 1
and a number of steps otherwise.
"""

from dataclasses import dataclass

from sae_sweeps.errors import ConfigError


def steps_of(length: float, total_steps: int) -> int:
    """Steps in a length: `0.05` of 1000 steps is 50, `200` is 200."""
    return round(length * total_steps) if length < 1 else round(length)


def check_length(key: str, length: float) -> None:
    if length < 0:
        raise ConfigError(f"{key}={length}: a length cannot be negative; give a fraction below 1 or a number of steps.")


@dataclass
class ConstantConfig:
    """s(p) = 1"""

    name: str

    def value(self, step: int, total_steps: int) -> float:
        return 1.0

    def check(self) -> None:
        pass


@dataclass
class PowerConfig:
    """s(p) = (1 - p)^decay_power: full weight at first, none at the end (progressive orthogonality)."""

    name: str
    decay_power: float
    """a: 2 (first form), 0.5 (slower), 0 (constant)."""

    def value(self, step: int, total_steps: int) -> float:
        return (1.0 - step / total_steps) ** self.decay_power

    def check(self) -> None:
        if self.decay_power < 0:
            raise ConfigError(f"decay_power={self.decay_power}: must be 0 or more.")


@dataclass
class _LearningRate:
    name: str
    lr: float
    """Peak learning rate."""
    warmup: float
    """Length of the linear rise to the peak: a fraction of the run below 1, else steps."""

    def warm(self, step: int, total_steps: int) -> float:
        """Share of the peak reached by the warm-up, in (0, 1]."""
        warmup = steps_of(self.warmup, total_steps)
        return min(1.0, (step + 1) / warmup) if warmup else 1.0

    def check(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"lr={self.lr}: must be above 0.")
        check_length("lr_schedule.warmup", self.warmup)


@dataclass
class ConstantLRConfig(_LearningRate):
    """lr after a linear warm-up."""

    def value(self, step: int, total_steps: int) -> float:
        return self.lr * self.warm(step, total_steps)


@dataclass
class LinearLRConfig(_LearningRate):
    """Linear warm-up to lr, constant, then linear decay to lr * final over the last `decay` of the run."""

    decay: float
    """Length of the decay at the end: a fraction of the run below 1, else steps."""
    final: float
    """Share of the peak at the end."""

    def value(self, step: int, total_steps: int) -> float:
        decay = min(steps_of(self.decay, total_steps), total_steps)
        left = (total_steps - step) / decay if decay else 1.0
        return self.lr * min(self.warm(step, total_steps), self.final + (1 - self.final) * min(1.0, left))

    def check(self) -> None:
        super().check()
        check_length("lr_schedule.decay", self.decay)
        if not 0 <= self.final <= 1:
            raise ConfigError(f"lr_schedule.final={self.final}: must lie between 0 and 1.")


SCHEDULES: dict[str, type] = {"constant": ConstantConfig, "power": PowerConfig}
LR_SCHEDULES: dict[str, type] = {"constant": ConstantLRConfig, "linear": LinearLRConfig}
