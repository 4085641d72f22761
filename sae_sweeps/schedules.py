"""Schedules: pure functions of the step, so that a resumed run continues on the same curve.

T is the number of steps, i = 0 .. T-1 the step, p = i / T the progress. A length is a fraction of the run when below 1
and a number of steps otherwise.
"""

import bisect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from sae_sweeps.errors import ConfigError
from sae_sweeps.fields import Length, NotNegative, Positive, Share, at_least

Stretch = Annotated[float, at_least(1, "must be at least 1, or the cycles shrink to nothing.")]
MANY = 4096
"""Number of steps above which a curve's peak is searched, not computed at every step."""


def steps_of(length: float, total_steps: int) -> int:
    """Steps in a length: `0.05` of 1000 steps is 50, `200` is 200."""
    return round(length * total_steps) if length < 1 else round(length)


def warm_up(length: float, step: int, total_steps: int) -> float:
    """A linear rise from 0 at the first step to 1 after `length`."""
    steps = steps_of(length, total_steps)
    return min(1.0, step / steps) if steps else 1.0


def linear_k(k_start: int, k: int, step: int, total_steps: int) -> int:
    """The whole number nearest to the line from k_start at the first step to k at the last."""
    return round(k_start + (k - k_start) * min(1.0, step / (total_steps - 1))) if total_steps > 1 else k


def smoothed(average: Any, value: Any, momentum: float) -> Any:
    """Exponential moving average of numbers or tensors: momentum * average + (1 - momentum) * value."""
    return momentum * average + (1 - momentum) * value


def peak(value: Callable[[int], float], total_steps: int) -> float:
    """The largest value of a curve of few oscillations; that of a long one by refining a grid."""
    first, end = 0, total_steps
    while end - first > MANY:
        stride = 2 * (end - first) // MANY
        best = max(range(first, end, stride), key=value)
        first, end = max(first, best - stride), min(end, best + stride + 1)
    return max(value(step) for step in range(first, end))


class Schedule:
    """The penalty's weight over training, as a share of its peak."""

    name: str

    def value(self, step: int, total_steps: int) -> float:
        """s in [0, 1] at a step."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ConfigError for values that exclude each other; a value alone is checked by its field's rule."""

    def plan_warnings(self, total_steps: int) -> list[str]:
        """Warnings for the user before training."""
        return []


@dataclass
class ConstantConfig(Schedule):
    """s = 1"""

    name: str

    def value(self, step: int, total_steps: int) -> float:
        return 1.0


@dataclass
class PowerConfig(Schedule):
    """s(p) = (1 - p)^decay_power: full weight at first, none at the end (progressive orthogonality)."""

    name: str
    decay_power: NotNegative[float]
    """a: 2 (first form), 0.5 (slower), 0 (constant)."""

    def value(self, step: int, total_steps: int) -> float:
        return (1.0 - step / total_steps) ** self.decay_power


@dataclass
class _Ramp(Schedule):
    """A rise to 1 over a number of warm-ups, the unit of the selective study."""

    name: str
    warmup: Positive[float]
    """The unit of length: a fraction of the run below 1, else steps."""

    def unit(self, total_steps: int) -> int:
        return max(1, steps_of(self.warmup, total_steps))

    def plan_warnings(self, total_steps: int) -> list[str]:
        last = self.value(total_steps - 1, total_steps)
        return [f"schedule={self.name} ends at {last:.2g} of the penalty's peak weight"] if last < 0.9 else []


@dataclass
class LinearConfig(_Ramp):
    """s = min(1, step / (ramp_warmups * warmup)). 10 warm-ups may be longer than the run."""

    ramp_warmups: NotNegative[float]
    """Warm-ups until full weight."""

    def value(self, step: int, total_steps: int) -> float:
        length = self.ramp_warmups * self.unit(total_steps)
        return min(1.0, step / length) if length else 1.0


@dataclass
class ExponentialConfig(_Ramp):
    """s = max(initial, 1 - exp(-step / warmup))."""

    initial: Share
    """s at the first step."""

    def value(self, step: int, total_steps: int) -> float:
        return max(self.initial, -math.expm1(-step / self.unit(total_steps)))


@dataclass
class TwoPhaseConfig(_Ramp):
    """s = 0 for wait_warmups, then from `initial` linearly to 1 over ramp_warmups."""

    wait_warmups: NotNegative[float]
    """Warm-ups without the penalty."""
    ramp_warmups: NotNegative[float]
    """Warm-ups from then until full weight."""
    initial: Share
    """s at the start of the ramp."""

    def value(self, step: int, total_steps: int) -> float:
        unit = self.unit(total_steps)
        since, length = step - self.wait_warmups * unit, self.ramp_warmups * unit
        if since < 0:
            return 0.0
        return self.initial + (1 - self.initial) * (min(1.0, since / length) if length else 1.0)


@dataclass
class PiecewiseConfig(Schedule):
    """s(p) through points (breakpoints, values), linear between them, constant before the first and after the last."""

    name: str
    breakpoints: list[float]
    """Progress p in [0, 1], rising."""
    values: list[float]
    """s at each of them."""

    def value(self, step: int, total_steps: int) -> float:
        return piecewise(step / total_steps, self.breakpoints, self.values)

    def check(self) -> None:
        check_piecewise("schedule.breakpoints", self.breakpoints, "schedule.values", self.values)


@dataclass
class CosineConfig(Schedule):
    """s(p) = end + (start - end) (1 + cos(pi p)) / 2: half a cosine from `start` to `end`."""

    name: str
    start: Share
    """s at the first step."""
    end: Share
    """s after the last."""

    def value(self, step: int, total_steps: int) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * step / total_steps)) / 2


@dataclass
class WarmRestartsConfig(Schedule):
    """Half a cosine from 1 to `floor`, repeated, each `stretch` times as long (arXiv 1608.03983)."""

    name: str
    period: Positive[float]
    """Length of the first cycle: a fraction of the run below 1, else steps."""
    stretch: Stretch
    """Length of a cycle relative to the one before."""
    floor: Share
    """s at the end of a cycle."""

    def value(self, step: int, total_steps: int) -> float:
        return warm_restarts(step, max(1, steps_of(self.period, total_steps)), self.stretch, self.floor)


def piecewise(p: float, breakpoints: list[float], values: list[float]) -> float:
    """The line through points, constant outside them."""
    right = bisect.bisect_right(breakpoints, p)
    if right in (0, len(breakpoints)):
        return values[min(right, len(values) - 1)]
    p0, p1, v0, v1 = *breakpoints[right - 1 : right + 1], *values[right - 1 : right + 1]
    return v0 + (v1 - v0) * (p - p0) / (p1 - p0)


def check_piecewise(points_key: str, points: list[float], values_key: str, values: list[float]) -> None:
    """Raise ConfigError unless the points rise within [0, 1] and have as many values in [0, 1]."""
    if not points or len(points) != len(values):
        raise ConfigError(
            f"{values_key}={values}: needs one value for each of {points_key}={points}, and at least one."
        )
    if any(not 0 <= p <= 1 for p in points) or any(a >= b for a, b in itertools.pairwise(points)):
        raise ConfigError(f"{points_key}={points}: must rise, and lie between 0 and 1.")
    if any(not 0 <= value <= 1 for value in values):
        raise ConfigError(f"{values_key}={values}: must lie between 0 and 1.")


def warm_restarts(step: int, period: int, stretch: float, floor: float) -> float:
    """SGDR (arXiv 1608.03983): floor + (1 - floor) (1 + cos(pi x)) / 2, x the progress within the cycle."""
    start, length = 0.0, float(period)
    if stretch == 1:  # any number of cycles at once
        start = float(step // period * period)
    while step >= start + length:
        start, length = start + length, length * stretch
    return floor + (1 - floor) * (1 + math.cos(math.pi * (step - start) / length)) / 2


@dataclass
class _LearningRate:
    name: str
    lr: Positive[float]
    """Peak learning rate."""
    warmup: Length
    """Length of the linear rise to the peak: a fraction of the run below 1, else steps."""

    def warm(self, step: int, total_steps: int) -> float:
        """Share of the peak reached by the warm-up, in (0, 1]."""
        warmup = steps_of(self.warmup, total_steps)
        return min(1.0, (step + 1) / warmup) if warmup else 1.0

    def check(self) -> None:
        """Raise ConfigError for values that exclude each other; a value alone is checked by its field's rule."""


@dataclass
class ConstantLRConfig(_LearningRate):
    """lr after a linear warm-up."""

    def value(self, step: int, total_steps: int) -> float:
        return self.lr * self.warm(step, total_steps)


@dataclass
class LinearLRConfig(_LearningRate):
    """Linear warm-up to lr, constant, then linear decay to lr * final over the last `decay` of the run."""

    decay: Length
    """Length of the decay at the end: a fraction of the run below 1, else steps."""
    final: Share
    """Share of the peak at the end."""

    def value(self, step: int, total_steps: int) -> float:
        decay = min(steps_of(self.decay, total_steps), total_steps)
        remaining = (total_steps - step) / decay if decay else 1.0
        return self.lr * min(self.warm(step, total_steps), self.final + (1 - self.final) * min(1.0, remaining))


@dataclass
class CosineLRConfig(_LearningRate):
    """Linear warm-up to lr, then half a cosine to lr * final at the end of the run."""

    final: Share
    """Share of the peak at the end."""

    def value(self, step: int, total_steps: int) -> float:
        warmup = min(steps_of(self.warmup, total_steps), total_steps - 1)
        done = max(0.0, (step - warmup) / (total_steps - warmup))
        cosine = self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2
        return self.lr * min(self.warm(step, total_steps), cosine)


@dataclass
class WarmRestartsLRConfig(_LearningRate):
    """Linear warm-up to lr, then half a cosine to lr * floor, repeated (arXiv 1608.03983)."""

    period: Positive[float]
    """Length of the first cycle: a fraction of the run below 1, else steps."""
    stretch: Stretch
    """Length of a cycle relative to the one before."""
    floor: Share
    """Share of the peak at the end of a cycle."""

    def value(self, step: int, total_steps: int) -> float:
        warmup = steps_of(self.warmup, total_steps)
        if step < warmup:
            return self.lr * self.warm(step, total_steps)
        period = max(1, steps_of(self.period, total_steps))
        return self.lr * warm_restarts(step - warmup, period, self.stretch, self.floor)


SCHEDULES: dict[str, type] = {
    "constant": ConstantConfig,
    "power": PowerConfig,
    "linear": LinearConfig,
    "exponential": ExponentialConfig,
    "two_phase": TwoPhaseConfig,
    "piecewise": PiecewiseConfig,
    "cosine": CosineConfig,
    "warm_restarts": WarmRestartsConfig,
}
LR_SCHEDULES: dict[str, type] = {
    "constant": ConstantLRConfig,
    "linear": LinearLRConfig,
    "cosine": CosineLRConfig,
    "warm_restarts": WarmRestartsLRConfig,
}
