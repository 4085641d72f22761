"""JumpReLU: features above a learned threshold, L0 as the sparsity term. Rajamanoharan et al. 2024 (arXiv 2407.14435).

    f = z H(z - theta)                  d f / d theta ~ -(theta / eps) K((z - theta) / eps)
    L0 = sum H(z - theta)               d H / d theta ~ -(1 / eps) K((z - theta) / eps)

K is the rectangle of width 1, eps the bandwidth. The paper scales activations to unit mean squared norm; here they may
be raw, so thresholds and bandwidth are in units of the root mean square of z in the first batch (the paper's 0.001 is
about 0.05 of them), and the sparsity term is multiplied by the first batch's loss of reconstructing its mean alone.
With a target L0 the thresholds start where each feature fires that often in the first batch (Anthropic's update of
January 2025 sets the encoder's bias in that way), and log(theta) learns faster than the rest, for a short run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sae_sweeps.architectures.base import ALL, SAE, ArchitectureConfig
from sae_sweeps.architectures.l0_control import check_target
from sae_sweeps.fields import Length, NotNegative, Positive
from sae_sweeps.kernels import choose
from sae_sweeps.kernels.features import Features, PairFeatures
from sae_sweeps.kernels.pairs import Pairs
from sae_sweeps.schedules import warm_up

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context


@dataclass
class JumpReLUConfig(ArchitectureConfig):
    l0_weight: NotNegative[float]
    """Weight of the sparsity term: of L0 / d_sae without a target, of (L0 / target - 1)^2 with one."""
    l0_warmup: Length
    """Length of the linear rise of that weight: a fraction of the run below 1, else steps."""
    target_l0: float | None
    """L0 to aim at; null minimises L0."""
    bandwidth: Positive[float]
    """eps of the straight-through estimators, in root mean squares of z in the first batch."""
    initial_threshold: Positive[float]
    """theta at the start, in the same unit; with a target it follows from the target."""
    threshold_speed: Positive[float]
    """Learning rate of log(theta) relative to the other parameters'; short runs need more than 1."""

    def check(self, d_in: int) -> None:
        super().check(d_in)
        check_target(self.target_l0, self.d_sae)

    def unused_keys(self) -> dict[str, str]:
        out = {"l0_warmup": "architecture.l0_weight=0 has nothing to warm up"} if self.l0_weight == 0 else {}
        if self.target_l0 is not None:
            out["initial_threshold"] = "with target_l0 the thresholds start where they give it"
        return out


@dataclass
class JumpFeatures(PairFeatures):
    """The pairs are those above their threshold, and those so near it that it has a gradient; f is 0 at these."""

    above: Tensor
    """H(z - theta) of each pair [P]."""


class JumpReLU(SAE):
    """Beside the weights: log_threshold [d_sae], theta = unit * exp(threshold_speed * log_threshold)."""

    exports_as = "jumprelu"
    cfg: JumpReLUConfig

    def __init__(self, cfg: Any, d_in: int, total_steps: int, dead_after_tokens: int, generator: torch.Generator):
        super().__init__(cfg, d_in, total_steps, dead_after_tokens, generator)
        start = torch.full((cfg.d_sae,), cfg.initial_threshold).log() / cfg.threshold_speed
        self.log_threshold = nn.Parameter(start)
        self.register_buffer("unit", torch.zeros(()))
        self.register_buffer("baseline", torch.zeros(()))
        self.unit: Tensor
        """Root mean square of z in the first batch; 0 before it."""
        self.baseline: Tensor
        """Loss of reconstructing the mean of the first batch; 0 before it."""
        self._measured = False
        """Whether the unit was seen to be set: to look at every step would stop a GPU."""

    def threshold(self) -> Tensor:
        """theta [d_sae]."""
        return self.unit * (self.cfg.threshold_speed * self.log_threshold).exp()

    @torch.no_grad()
    def _measure_first(self, z: Tensor, step: int) -> None:
        """Set the unit, and with a target the thresholds, from the first batch's z [B, d_sae]."""
        if self._measured and step > 0 and choose.asynchronous(z):
            return
        self._measured = True
        if float(self.unit) != 0:
            return
        self.unit.copy_(z.square().mean().sqrt().clamp(min=torch.finfo(z.dtype).tiny ** 0.5))
        if self.cfg.target_l0 is not None:
            above = 1 - self.cfg.target_l0 / self.d_sae
            theta = z.kthvalue(min(len(z), max(1, round(above * len(z)))), dim=0).values
            start = (theta / self.unit).clamp(min=1e-3).log() / self.cfg.threshold_speed
            # a parameter, which a step that is not finite must not change
            self.log_threshold.copy_(torch.where(self.unit.isfinite(), start, self.log_threshold))

    def bandwidth(self) -> Tensor:
        """eps, scalar."""
        return self.cfg.bandwidth * self.unit

    def activation(self, pre_acts: Tensor, feature: Tensor | slice = ALL) -> Tensor:
        f: Tensor = _Jump.apply(pre_acts, self.threshold()[feature], self.bandwidth())
        return f

    def active_above(self) -> Tensor | None:
        if not self._measured and float(self.unit) == 0:  # it follows from the first batch's z
            return None
        return (self.threshold() - self.bandwidth() / 2).detach()

    def activate(self, pre_acts: Tensor, step: int) -> Features:
        self._measure_first(pre_acts, step)
        return super().activate(pre_acts, step)

    def activate_sparsely(self, pre_acts: Tensor, centred: Tensor, step: int) -> Features | None:
        self._measure_first(pre_acts, step)
        return super().activate_sparsely(pre_acts, centred, step)

    def pair_features(self, pre_acts_P: Tensor, pairs: Pairs) -> JumpFeatures:
        theta_P, bandwidth = self.threshold()[pairs.feature], self.bandwidth()
        above = _Heaviside.apply(pre_acts_P, theta_P, bandwidth)
        return JumpFeatures(_Jump.apply(pre_acts_P, theta_P, bandwidth), pairs, above)

    def extra_losses(self, ctx: Context) -> dict[str, tuple[Tensor, float | Tensor]]:
        if choose.asynchronous(self.baseline) or float(self.baseline) == 0:
            measured = ctx.reconstruction(ctx.x - ctx.x.mean(0)).detach()
            self.baseline.copy_(torch.where(self.baseline == 0, measured, self.baseline))
        if isinstance(ctx.feature_acts, JumpFeatures):
            above = ctx.feature_acts.above
        else:
            above = _Heaviside.apply(ctx.pre_acts, self.threshold(), self.bandwidth())
        l0 = above.sum() / len(ctx.x)
        target = self.cfg.target_l0
        share = l0 / self.d_sae if target is None else (l0 / target - 1).square()
        weight = self.cfg.l0_weight * warm_up(self.cfg.l0_warmup, ctx.step, self.total_steps)
        return {"sparsity": (self.baseline * share, weight)}

    def export(self, scale: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        weights, _ = super().export(scale)
        return weights | {"threshold": self.threshold().detach() / scale}, {}


def above_threshold(z: Tensor, theta: Tensor) -> Tensor:
    """H(z - theta), bool; never true for z <= 0, whatever theta."""
    return z > theta.clamp(min=0)


def jump_relu(z: Tensor, theta: Tensor, out: Tensor | None = None) -> Tensor:
    """f = z H(z - theta), elementwise, without gradient; `out` may be z itself."""
    return torch.mul(z, above_threshold(z, theta), out=out)


def _rectangle(z: Tensor, theta: Tensor, bandwidth: Tensor) -> Tensor:
    """K((z - theta) / eps), elementwise."""
    return ((z - theta).abs() < bandwidth / 2).to(z.dtype)


class _Jump(torch.autograd.Function):
    """z H(z - theta); its gradient on theta, of z's shape or [d_sae], is the straight-through estimate."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: Tensor) -> Tensor:
        ctx.save_for_backward(z, theta, bandwidth)
        return jump_relu(z, theta)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        z, theta, bandwidth = ctx.saved_tensors
        on_theta = -(theta / bandwidth) * _rectangle(z, theta, bandwidth) * grad
        return grad * above_threshold(z, theta), on_theta.sum_to_size(theta.shape), None


class _Heaviside(torch.autograd.Function):
    """H(z - theta); straight-through gradient on theta alone."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: Tensor) -> Tensor:
        ctx.save_for_backward(z, theta, bandwidth)
        return above_threshold(z, theta).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        z, theta, bandwidth = ctx.saved_tensors
        on_theta = -_rectangle(z, theta, bandwidth) * grad / bandwidth
        return None, on_theta.sum_to_size(theta.shape), None


CONFIG = JumpReLUConfig
COMPONENT = JumpReLU
