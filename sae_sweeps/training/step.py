"""One SAE being trained: all that changes from step to step, and the step itself.

A group of runs on the same batches is several of these, one after the other: nothing here knows of siblings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sae_sweeps.architectures.base import SAE
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.architectures.context import RECONSTRUCTIONS, Context, generator_at
from sae_sweeps.config.run import RunConfig
from sae_sweeps.errors import Diverged
from sae_sweeps.kernels.choose import choose
from sae_sweeps.kernels.memory import retain_freed_memory
from sae_sweeps.penalties.base import Penalty, PenaltyValue
from sae_sweeps.training.nonfinite_guard import NonFiniteGuard
from sae_sweeps.training.optimizer import optimizer

if TYPE_CHECKING:
    from sae_sweeps.architectures.group_layer import GroupLayer

GROUP_STREAM = 32
"""The group layer's random numbers, apart from the penalties'."""
WEIGHTS = {"W_dec": "", "W_enc": "_enc"}
"""The matrices on which gradients are followed, and how that is marked in a metric's name."""


@dataclass
class Terms:
    """The loss of one step, in the units that the SAE is trained in."""

    loss: Tensor
    parts: dict[str, tuple[Tensor, float]]
    """name -> (unweighted value, weight); the loss is the weighted sum."""
    penalty_terms: dict[str, float | Tensor]
    """The penalties' own numbers, by the names under which they are logged."""
    ctx: Context


@dataclass
class StepReport:
    numbers: dict[str, float] = field(default_factory=dict)
    """For metrics.jsonl; empty where the step is not logged."""
    monitors: list[dict[str, Any]] = field(default_factory=list)
    """For monitors.jsonl; group events at any step, the rest where the step is monitored."""


class Training:
    """SAE, group layer, penalties and optimizer of a run.

    Args:
        scale: activations are multiplied by it before the SAE sees them (1 unless the run normalises).
        b_dec: initial decoder bias [d_in], in raw activation units.
    """

    def __init__(self, run: RunConfig, scale: float, b_dec: Tensor, device: torch.device):
        if device.type == "cpu":
            retain_freed_memory()
        self.run, self.scale, self.device = run, scale, device
        self.total_steps = run.total_steps
        d_in, d_sae = len(b_dec), run.architecture.d_sae
        # drawn on the CPU, so that the same seed gives the same start on any device
        generator = torch.Generator().manual_seed(run.seed)
        architecture = run.component("architecture", run.architecture).component
        self.sae: SAE = self.placed(
            architecture(run.architecture, d_in, self.total_steps, run.train.dead_after_tokens, generator)
        )
        self.sae.kernels, self.sae.selection = choose(run.train.kernels, device), run.train.selection
        with torch.no_grad():
            self.sae.b_dec.copy_(b_dec * scale)
        self.groups: GroupLayer | None = None
        if run.group_layer.name != "none":
            layer = run.component("group_layer", run.group_layer).component
            self.groups = self.placed(layer(run.group_layer, d_in, d_sae, self.total_steps, generator))
        self.terms = run.penalty_terms()
        self.penalties: dict[str, Penalty] = {
            term.name: self.placed(
                run.component("penalty", term.config, term.place).component(
                    term.config, d_in, d_sae, self.total_steps, generator
                )
            )
            for term in self.terms
        }
        betas = (run.train.beta1, run.train.beta2)
        self.optimizer = optimizer(self.sae, [p for _, p in self.named_parameters()], betas)
        self.nonfinite_guard = NonFiniteGuard(device, self._explain)

    def placed(self, module: Any) -> Any:
        """On the run's device and in its precision."""
        return module.to(self.device, torch.float64 if self.run.train.precision == "float64" else None)

    def modules(self) -> dict[str, nn.Module]:
        groups = {} if self.groups is None else {"groups": self.groups}
        return {"sae": self.sae, **groups, **self.penalties}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in self.modules().items():
            yield from module.named_parameters(prefix)

    def autocast(self) -> AbstractContextManager[object]:
        if self.run.train.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def forward(self, batch: Batch, step: int) -> Terms:
        """All loss terms of a batch; nothing but the penalties' own state changes."""
        x = batch.x.to(self.sae.W_dec.dtype)
        x = x * self.scale if self.scale != 1 else x
        sae, groups = self.sae, self.groups
        with self.autocast():
            z, f = sae.encode(x, step)
            if groups is not None:
                f = groups(f, generator_at(self.device, self.run.seed, step, GROUP_STREAM), True)
            error, squares = sae.residual(f, x)
            recon = RECONSTRUCTIONS[self.run.train.recon]
            ctx = Context(sae, batch, x, z, f, error, step, self.total_steps, self.run.seed, groups, recon)
            parts = {"recon": (recon(squares), 1.0), **sae.extra_losses(ctx)}
            if groups is not None:
                parts |= groups.extra_losses(ctx)
            numbers: dict[str, float | Tensor] = {}
            for term in self.terms:
                weight, penalty = term.weight(step, self.total_steps), self.penalties[term.name]
                penalty.observe(ctx)
                value = penalty(ctx) if weight != 0 else PenaltyValue(x.new_zeros(()))
                parts[term.name] = (value.loss, weight)
                head = "penalty" if term.name == "penalty" else f"penalty/{term.name}"
                numbers |= {f"{head}/{name}": number for name, number in value.terms.items()}
        loss = sum((value * weight for value, weight in parts.values()), start=x.new_zeros(()))
        return Terms(loss, parts, numbers, ctx)

    def step(self, batch: Batch, step: int, logged: bool = False, monitored: bool = False) -> StepReport:
        """Take one optimizer step; its numbers where `logged`, the costlier looks where `monitored`.

        Raises Diverged, with nothing updated, when a term or the gradient is not finite; on a GPU a later step may
        raise it, naming this one, and nothing is updated in between.
        """
        self.nonfinite_guard.check()
        terms = self.forward(batch, step)
        if self.nonfinite_guard.at_once and not math.isfinite(terms.loss.item()):
            raise Diverged(step, _first_not_finite(terms))
        report = StepReport(monitors=self.monitors(terms.ctx) if monitored else [])
        gradients = self.gradients_by_term(terms) if monitored else {}
        self.optimizer.zero_grad()
        terms.loss.backward()
        component_norms = self.norms_by_term(gradients) if monitored else {}
        norm, bad = self.optimizer.norm(), None
        if not self.nonfinite_guard.at_once:
            bad = self.nonfinite_guard.add(step, batch, terms.loss.detach().isfinite() & norm.isfinite())
        elif not math.isfinite(norm.item()):
            raise Diverged(step, self._first_gradient_not_finite())
        clip = self.run.train.clip
        divisor = ((norm + 1e-6) / clip).clamp(min=1.0) if clip else torch.ones_like(norm)
        self.optimizer.step(self.run.learning_rate(step), divisor, bad)
        self.sae.observe(terms.ctx)
        if self.groups is not None:
            self.groups.observe(terms.ctx)
            report.monitors += [{"monitor": "group_event", **event} for event in self.groups.adapt(terms.ctx)]
        if logged:
            report.numbers = self.numbers(terms, step) | component_norms | {"grad_norm/total": norm.item()}
        return report

    def gradients_by_term(self, terms: Terms) -> dict[str, dict[str, Tensor]]:
        """Gradient of each weighted term but the reconstruction, by term and weight matrix."""
        weights = {name: getattr(self.sae, name) for name in WEIGHTS}
        out: dict[str, dict[str, Tensor]] = {}
        for name, (value, weight) in terms.parts.items():
            if name == "recon":
                continue
            found: tuple[Tensor | None, ...] = (None,) * len(weights)
            if value.requires_grad and weight != 0:
                found = torch.autograd.grad(
                    value * weight, list(weights.values()), retain_graph=True, allow_unused=True
                )
            out[name] = {key: grad for key, grad in zip(weights, found, strict=True) if grad is not None}
        return out

    def norms_by_term(self, gradients: dict[str, dict[str, Tensor]]) -> dict[str, float]:
        """Norm of each term's gradient on W_dec (`grad_norm/ortho`) and W_enc (`grad_norm/ortho_enc`), unclipped.

        The reconstruction's is what the other terms leave of the whole gradient, which saves its backward pass.
        """
        norms: dict[str, float] = {}
        for key, suffix in WEIGHTS.items():
            whole = getattr(self.sae, key).grad
            recon = torch.zeros_like(getattr(self.sae, key)) if whole is None else whole.clone()
            for term, grads in gradients.items():
                norms[f"grad_norm/{term}{suffix}"] = grads[key].norm().item() if key in grads else 0.0
                if key in grads:
                    recon -= grads[key]
            norms[f"grad_norm/recon{suffix}"] = recon.norm().item()
        return norms

    @torch.no_grad()
    def monitors(self, ctx: Context) -> list[dict[str, Any]]:
        """What penalties and groups have to show: a record for each monitor."""
        watched: dict[str, Any] = dict(self.penalties)
        if self.groups is not None:
            watched["groups"] = self.groups
        single = len(self.terms) == 1
        return [
            {"monitor": name, **({} if owner == "groups" or single else {"penalty": owner}), **data}
            for owner, module in watched.items()
            for name, data in module.monitor(ctx).items()
        ]

    @torch.no_grad()
    def numbers(self, terms: Terms, step: int) -> dict[str, float]:
        """What is logged, losses in raw activation units."""
        ctx, unit = terms.ctx, self.scale ** (2 if self.run.train.recon == "squared" else 1)
        variance = (ctx.x - ctx.x.mean(0)).square().sum()
        row: dict[str, float | Tensor] = {"loss": terms.loss / unit}
        for name, (value, weight) in terms.parts.items():
            row[f"{name}_loss"] = value / unit
            if name != "recon":
                row[f"{name}_weight"] = weight
        row.setdefault("sparsity_loss", 0.0)
        if "penalty" not in self.penalties:  # none, or several: their weighted sum
            total = [value * weight for name, (value, weight) in terms.parts.items() if name in self.penalties]
            row["penalty_loss"] = sum(total, start=ctx.x.new_zeros(())) / unit
            row["penalty_weight"] = float(bool(self.penalties))
        row |= {
            "l0": ctx.feature_acts.l0(),
            "fvu": ctx.error.square().sum() / variance,
            "dead_features": self.sae.dead().float().mean(),
            "lr": self.optimizer.lr,
            **self.sae.numbers(step),
            **terms.penalty_terms,
        }
        return {name: float(value) for name, value in row.items()}

    def _explain(self, step: int, batch: Batch) -> Diverged:
        """What went wrong at a step, found by doing it again with the weights that it left as they were."""
        terms = self.forward(batch, step)
        if not math.isfinite(terms.loss.item()):
            return Diverged(step, _first_not_finite(terms))
        self.optimizer.zero_grad()
        terms.loss.backward()
        return Diverged(step, self._first_gradient_not_finite())

    def _first_gradient_not_finite(self) -> str:
        for name, parameter in self.named_parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return f"the gradient of {name}"
        return "the gradient norm"


def _first_not_finite(terms: Terms) -> str:
    """Which quantity went first, in the order in which the step computes them."""
    ctx = terms.ctx
    for name, tensor in (("the activations x", ctx.x), ("the pre-activations z", ctx.pre_acts), ("x_hat", ctx.x_hat)):
        if not bool(tensor.isfinite().all()):
            return name
    for name, (value, _) in terms.parts.items():
        if not math.isfinite(value.item()):
            return f"{name}_loss"
    return "the sum of the loss terms"
