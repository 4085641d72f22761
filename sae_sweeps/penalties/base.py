"""What every penalty is: a module that maps the step's context to an unweighted loss and its named terms.

The training loop multiplies the loss by the penalty's weight, peak weight times schedule. Parameters of a penalty are
optimised with the SAE; its buffers are state. Both are checkpointed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from sae_sweeps.fields import one_of

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context
    from sae_sweeps.config.run import RunConfig


Reduction = Annotated[str, one_of("sum", "per_feature", "mean")]


def reduced(total: Tensor, reduction: str, d_sae: int, n_pairs: Tensor | float) -> Tensor:
    """A sum over pairs i < j as it is, divided by d_sae, or as a mean over its pairs (0 if there are none)."""
    if reduction == "sum":
        return total
    if reduction == "per_feature":
        return total / d_sae
    return total / (n_pairs.clamp(min=1) if isinstance(n_pairs, Tensor) else max(n_pairs, 1))


class MovingAverage(nn.Module):
    """a <- decay a + (1 - decay) new, a plain mean until 1 / (1 - decay) updates are in, so that it starts unbiased."""

    def __init__(self, shape: tuple[int, ...], decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("value", torch.zeros(shape))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.value: Tensor
        self.updates: Tensor

    @torch.no_grad()
    def update(self, new: Tensor) -> None:
        """`new` has the shape of the average."""
        self.updates += 1
        rate = (1.0 / self.updates).clamp(min=1 - self.decay)
        self.value += rate.to(self.value.dtype) * (new.to(self.value.dtype) - self.value)


@dataclass
class PenaltyConfig:
    """What every penalty's config answers. The field `name` is in each of them."""

    name: str

    def check(self) -> None:
        """Raise ConfigError for values that exclude each other; a value alone is checked by its field's rule."""

    def unused_keys(self) -> dict[str, str]:
        """Keys that change nothing as the others stand, each with the reason."""
        return {}

    def peak_weight(self) -> float:
        """Weight at schedule value 1."""
        raise NotImplementedError

    def sampling(self) -> str:
        """How the batches must be drawn: tokens, adjacent_pairs or contiguous_windows."""
        return "tokens"

    def check_run(self, run: RunConfig) -> None:
        """Raise ConfigError where the rest of the run lacks what this penalty needs (groups, roles, ...)."""

    def never_acts(self) -> str | None:
        """Why the penalty would be 0 at every step, or None."""
        return None

    def plan_warnings(self) -> list[str]:
        """What a user should hear before training."""
        return []

    def result_warnings(self, rows: list[dict[str, Any]]) -> list[str]:
        """What a user should hear afterwards, from the rows of metrics.jsonl."""
        return []


@dataclass
class PenaltyValue:
    loss: Tensor
    """Unweighted, scalar, with gradient."""
    terms: dict[str, float | Tensor] = field(default_factory=dict)
    """Logged under `penalty/*`."""


class Penalty(nn.Module):
    def __init__(self, cfg: Any, d_in: int, d_sae: int, total_steps: int, generator: torch.Generator):
        super().__init__()
        self.cfg = cfg
        self.total_steps = total_steps

    def observe(self, ctx: Context) -> None:
        """Update state. Called once per step, also where the weight is 0."""

    def forward(self, ctx: Context) -> PenaltyValue:
        """The penalty at this step. Not called where the weight is 0."""
        raise NotImplementedError

    def monitor(self, ctx: Context) -> dict[str, Any]:
        """What is worth drawing later: monitor name -> JSON-able numbers and lists, nothing of size d_sae x d_sae.

        Called without gradient every `train.monitor_every` steps, before the step's update.
        """
        return {}
