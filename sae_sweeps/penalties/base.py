"""Base classes of a penalty: a module that maps one step's context to an unweighted loss and named terms.

A penalty is one file with a config dataclass and a subclass of `Penalty`, named at its end as CONFIG and COMPONENT.
Training multiplies its loss by the weight: peak weight times schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from sae_sweeps.fields import PenaltyWeight, one_of

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context
    from sae_sweeps.config.run import RunConfig
    from sae_sweeps.kernels.competition import Competition


Reduction = Annotated[str, one_of("sum", "per_feature", "mean")]


def reduced(total: Tensor, reduction: str, d_sae: int, n_pairs: Tensor | float) -> Tensor:
    """A sum over pairs: unchanged, divided by d_sae, or as a mean over the n_pairs (0 if there are none)."""
    if reduction == "sum":
        return total
    if reduction == "per_feature":
        return total / d_sae
    return total / (n_pairs.clamp(min=1) if isinstance(n_pairs, Tensor) else max(n_pairs, 1))


class MovingAverage(nn.Module):
    """a <- decay a + (1 - decay) new; the plain mean of the first 1 / (1 - decay) updates, hence unbiased."""

    def __init__(self, shape: tuple[int, ...], decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("value", torch.zeros(shape))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.value: Tensor
        self.updates: Tensor

    @torch.no_grad()
    def update(self, new: Tensor, where: Tensor | None = None) -> None:
        """`new` has the shape of the average; unchanged where the scalar `where` is given and false."""
        self.updates += 1 if where is None else where
        rate = (1.0 / self.updates).clamp(min=1 - self.decay)
        change = rate.to(self.value.dtype) * (new.to(self.value.dtype) - self.value)
        self.value += change if where is None else torch.where(where, change, 0)


@dataclass
class PenaltyConfig:
    """Base of a penalty's config: each field is a key of its YAML. A subclass must define `peak_weight` alone."""

    name: str

    def peak_weight(self) -> float:
        """Weight of the penalty at schedule value 1, above or equal to 0."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ConfigError for values that exclude each other; a value alone is checked by its field's rule."""

    def check_run(self, run: RunConfig) -> None:
        """Raise ConfigError where the rest of the run lacks what this penalty needs (groups, roles, ...)."""

    def unused_keys(self) -> dict[str, str]:
        """Keys without effect given the values of the others, each with the reason."""
        return {}

    def sampling(self) -> str:
        """How batches are drawn: tokens, adjacent_pairs, contiguous_windows or role_pairs."""
        return "tokens"

    def curves(self, total_steps: int) -> dict[str, list[float]]:
        """The penalty's own schedules beside its weight, for `sae_sweeps schedule`: name -> value at each step."""
        return {}

    def never_acts(self) -> str | None:
        """Why the penalty would be 0 at every step, or None."""
        return None

    def plan_warnings(self) -> list[str]:
        """Warnings to print before training."""
        return []

    def result_warnings(self, rows: list[dict[str, Any]]) -> list[str]:
        """Warnings about a finished run, from the rows of its metrics.jsonl."""
        return []


@dataclass
class WeightedConfig(PenaltyConfig):
    """Config of a penalty with one weight."""

    lambda2_max: PenaltyWeight
    """Weight of the penalty at schedule value 1."""

    def peak_weight(self) -> float:
        return self.lambda2_max


@dataclass
class PenaltyValue:
    loss: Tensor
    """Unweighted, scalar, with gradient."""
    terms: dict[str, float | Tensor] = field(default_factory=dict)
    """Numbers to log under `penalty/NAME`; tensors are scalars."""


class Penalty(nn.Module):
    """Base of all penalties. A subclass defines `forward`, and may define `observe`, `pair_competition` and
    `monitor`.

    Parameters made in `__init__` are optimised with the SAE; parameters and buffers are checkpointed, so that state
    kept anywhere else is lost at a resume.

    Args:
        cfg: the subclass's config.
        total_steps: T, number of steps of the run.
        generator: source of all random initial values. Random numbers of a step come from `ctx.generator()`.
    """

    def __init__(self, cfg: Any, d_in: int, d_sae: int, total_steps: int, generator: torch.Generator):
        super().__init__()
        self.cfg = cfg
        self.total_steps = total_steps

    def forward(self, ctx: Context) -> PenaltyValue:
        """The penalty at this step, in the units that the SAE is trained in. Not called where the weight is 0.

        A loss that is not finite ends the run as diverged.
        """
        raise NotImplementedError

    def observe(self, ctx: Context) -> None:
        """Update buffers. Called once per step before `forward`, also where the weight is 0."""

    def pair_competition(self) -> Competition | None:
        """How pairs of features compete at this step, for the monitor `pairs`; None where they do not."""
        return None

    def monitor(self, ctx: Context) -> dict[str, Any]:
        """Data for later plots: monitor name -> JSON-able numbers and lists, nothing of size d_sae x d_sae.

        Called without gradient every `train.monitor_every` steps, before the step's update.
        """
        return {}
