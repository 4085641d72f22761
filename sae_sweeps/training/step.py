"""One SAE being trained: all that changes from step to step, and the step itself.

A group of runs on the same batches is several of these, one after the other: nothing here knows of siblings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae_sweeps.activations.batch import Batch
from sae_sweeps.architectures.base import SAE
from sae_sweeps.config.registry import component
from sae_sweeps.config.run import RunConfig
from sae_sweeps.errors import Diverged
from sae_sweeps.penalties.base import Penalty
from sae_sweeps.training.context import Context


@dataclass
class Terms:
    """The loss of one step, in the units that the SAE is trained in."""

    loss: Tensor
    parts: dict[str, tuple[Tensor, float]]
    """name -> (unweighted value, weight); the loss is the weighted sum."""
    penalty_terms: dict[str, float | Tensor]
    ctx: Context


class Training:
    """SAE, penalty and optimizer of a run.

    Args:
        scale: activations are multiplied by it before the SAE sees them (1 unless the run normalises).
        b_dec: initial decoder bias [d_in], in raw activation units.
    """

    def __init__(self, run: RunConfig, scale: float, b_dec: Tensor, device: torch.device):
        self.run, self.scale, self.device = run, scale, device
        self.total_steps = run.total_steps
        d_in = len(b_dec)
        # drawn on the CPU, so that the same seed gives the same start on any device
        generator = torch.Generator().manual_seed(run.seed)
        architecture, penalty = (component(g, getattr(run, g).name) for g in ("architecture", "penalty"))
        self.sae: SAE = architecture.COMPONENT(
            run.architecture, d_in, self.total_steps, run.train.dead_after_tokens, generator
        ).to(device)
        with torch.no_grad():
            self.sae.b_dec.copy_(b_dec * scale)
        self.penalty: Penalty = penalty.COMPONENT(
            run.penalty, d_in, run.architecture.d_sae, self.total_steps, generator
        ).to(device)
        betas = (run.train.beta1, run.train.beta2)
        self.optimizer = torch.optim.Adam(
            [p for _, p in self.named_parameters()], lr=run.lr_schedule.lr, betas=betas, fused=True
        )

    def modules(self) -> dict[str, nn.Module]:
        return {"sae": self.sae, "penalty": self.penalty}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in self.modules().items():
            yield from module.named_parameters(prefix)

    def autocast(self) -> AbstractContextManager[object]:
        if self.run.train.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def forward(self, batch: Batch, step: int) -> Terms:
        """All loss terms of a batch; nothing but the penalty's own state changes."""
        x = batch.x * self.scale if self.scale != 1 else batch.x
        sae = self.sae
        with self.autocast():
            z = sae.pre_activations(x).float()
            f = sae.activate(z, step)
            x_hat = sae.decode(f).float()
            error = x - x_hat
            ctx = Context(sae, batch, x, z, f, x_hat, error, step, self.total_steps, self.run.seed)
            parts = {"recon": (self.reconstruction(error), 1.0), **sae.extra_losses(ctx)}
            self.penalty.observe(ctx)
            weight, penalty_terms = self.run.penalty_weight(step), {}
            if weight != 0:
                penalty = self.penalty(ctx)
                parts["penalty"], penalty_terms = (penalty.loss, weight), penalty.terms
        loss = sum((value * weight for value, weight in parts.values()), start=x.new_zeros(()))
        return Terms(loss, parts, penalty_terms, ctx)

    def reconstruction(self, error: Tensor) -> Tensor:
        """squared: sum over d_in, mean over the batch; norm: mean Euclidean norm. error [B, d_in]."""
        if self.run.train.recon == "squared":
            return error.square().sum(1).mean()
        return error.norm(dim=1).mean()

    def step(self, batch: Batch, step: int, detailed: bool = False) -> dict[str, float]:
        """Take one optimizer step. Returns the step's numbers, all of them where `detailed`.

        Raises Diverged, with nothing updated, when a term or the gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.learning_rate(step)
        terms = self.forward(batch, step)
        if not math.isfinite(terms.loss.item()):
            raise Diverged(step, _first_not_finite(terms))
        component_norms = self.component_gradient_norms(terms) if detailed else {}
        self.optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        self.sae.remove_parallel_gradient()
        parameters = [p for _, p in self.named_parameters()]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        grad_norm = norm.item()
        if not math.isfinite(grad_norm):
            raise Diverged(step, self._first_gradient_not_finite())
        if self.run.train.clip:
            nn.utils.clip_grads_with_norm_(parameters, self.run.train.clip, norm)
        self.optimizer.step()
        self.sae.normalize_decoder()
        self.sae.observe(terms.ctx)
        return self.numbers(terms, step) | component_norms | {"grad_norm/total": grad_norm} if detailed else {}

    def component_gradient_norms(self, terms: Terms) -> dict[str, float]:
        """Norm of each weighted term's gradient on W_dec, before clipping."""
        norms = {}
        for name, (value, weight) in terms.parts.items():
            grad = None
            if value.requires_grad and weight != 0:
                (grad,) = torch.autograd.grad(value * weight, self.sae.W_dec, retain_graph=True, allow_unused=True)
            norms[f"grad_norm/{name}"] = 0.0 if grad is None else grad.norm().item()
        return norms

    @torch.no_grad()
    def numbers(self, terms: Terms, step: int) -> dict[str, float]:
        """What is logged, losses in raw activation units."""
        ctx, unit = terms.ctx, self.scale ** (2 if self.run.train.recon == "squared" else 1)
        variance = (ctx.x - ctx.x.mean(0)).square().sum()
        row: dict[str, float | Tensor] = {"loss": terms.loss / unit}
        for name, (value, _) in terms.parts.items():
            row[f"{name}_loss"] = value / unit
        row.setdefault("sparsity_loss", 0.0)
        row.setdefault("penalty_loss", 0.0)
        for name, (_, weight) in terms.parts.items():
            if name not in ("recon", "penalty"):
                row[f"{name}_weight"] = weight
        row |= {
            "penalty_weight": self.run.penalty_weight(step),
            "l0": ctx.f.l0(),
            "fvu": ctx.error.square().sum() / variance,
            "dead_features": self.sae.dead().float().mean(),
            "lr": self.optimizer.param_groups[0]["lr"],
            **self.sae.numbers(step),
            **{f"penalty/{name}": value for name, value in terms.penalty_terms.items()},
        }
        return {name: float(value) for name, value in row.items()}

    def _first_gradient_not_finite(self) -> str:
        for name, parameter in self.named_parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return f"the gradient of {name}"
        return "the gradient norm"


def _first_not_finite(terms: Terms) -> str:
    """Which quantity went first, in the order in which the step computes them."""
    ctx = terms.ctx
    for name, tensor in (("the activations x", ctx.x), ("the pre-activations z", ctx.z), ("x_hat", ctx.x_hat)):
        if not bool(tensor.isfinite().all()):
            return name
    for name, (value, _) in terms.parts.items():
        if not math.isfinite(value.item()):
            return f"{name}_loss"
    return "the sum of the loss terms"
