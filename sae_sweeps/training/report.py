"""The numbers that a step logs: losses, L0, gradient norms per loss term, and which quantity is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sae_sweeps.architectures.base import SAE
from sae_sweeps.architectures.context import Context

WEIGHTS = {"W_dec": "", "W_enc": "_enc"}
"""Matrices whose gradients are logged -> suffix of the metric's name."""

Gradients = dict[str, dict[str, Tensor]]
"""Gradient of each loss term on each of WEIGHTS, by term and matrix; a matrix that a term does not reach is absent."""


@dataclass
class StepLoss:
    """The loss of one step, in the units that the SAE is trained in."""

    loss: Tensor
    parts: dict[str, tuple[Tensor, float | Tensor]]
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


def gradients_by_term(sae: SAE, parts: dict[str, tuple[Tensor, float | Tensor]]) -> Gradients:
    """Gradients of each weighted term but the reconstruction; the graph is kept for the backward pass."""
    weights = [getattr(sae, name) for name in WEIGHTS]
    out: Gradients = {}
    for name, (value, weight) in parts.items():
        if name == "recon":
            continue
        found: tuple[Tensor | None, ...] = (None,) * len(weights)
        if value.requires_grad and weight != 0:
            found = torch.autograd.grad(value * weight, weights, retain_graph=True, allow_unused=True)
        named = zip(WEIGHTS, weights, found, strict=True)
        out[name] = {key: grad.to(weight.dtype) for key, weight, grad in named if grad is not None}
    return out


def gradient_norms(sae: SAE, gradients: Gradients) -> dict[str, float]:
    """Norm of each term's gradient on W_dec (`grad_norm/ortho`) and W_enc (`grad_norm/ortho_enc`), unclipped.

    Called after the backward pass: the reconstruction's gradient is the whole gradient minus that of the other terms,
    which saves another backward pass.
    """
    norms: dict[str, float] = {}
    for key, suffix in WEIGHTS.items():
        weight = getattr(sae, key)
        recon = torch.zeros_like(weight) if weight.grad is None else weight.grad.to(weight.dtype, copy=True)
        for term, grads in gradients.items():
            norms[f"grad_norm/{term}{suffix}"] = grads[key].norm().item() if key in grads else 0.0
            if key in grads:
                recon -= grads[key]
        norms[f"grad_norm/recon{suffix}"] = recon.norm().item()
    return norms


@torch.no_grad()
def loss_numbers(loss: StepLoss, penalties: Iterable[str], unit: float) -> dict[str, float | Tensor]:
    """Losses and weights by term; losses are divided by `unit`, so that they are in raw activation units."""
    row: dict[str, float | Tensor] = {"loss": loss.loss / unit}
    for name, (value, weight) in loss.parts.items():
        row[f"{name}_loss"] = value / unit
        if name != "recon":
            row[f"{name}_weight"] = weight
    row.setdefault("sparsity_loss", 0.0)
    names = set(penalties)
    if "penalty" not in names:  # none, or several: their weighted sum
        total = [value * weight for name, (value, weight) in loss.parts.items() if name in names]
        row["penalty_loss"] = sum(total, start=loss.ctx.x.new_zeros(())) / unit
        row["penalty_weight"] = float(bool(names))
    return row


@torch.no_grad()
def monitor_records(modules: dict[str, Any], ctx: Context, single_penalty: bool) -> list[dict[str, Any]]:
    """A record for each monitor of the penalties and of the group layer (module name `groups`)."""
    return [
        {"monitor": name, **({} if owner == "groups" or single_penalty else {"penalty": owner}), **data}
        for owner, module in modules.items()
        for name, data in module.monitor(ctx).items()
    ]


def first_not_finite(loss: StepLoss) -> str:
    """Name of the first quantity that is not finite, in the order in which the step computes them."""
    ctx = loss.ctx
    for name, tensor in (("the activations x", ctx.x), ("the pre-activations z", ctx.pre_acts), ("x_hat", ctx.x_hat)):
        if not bool(tensor.isfinite().all()):
            return name
    for name, (value, _) in loss.parts.items():
        if not math.isfinite(value.item()):
            return f"{name}_loss"
    return "the sum of the loss terms"


def first_gradient_not_finite(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    """Name of the first parameter whose gradient is not finite."""
    for name, parameter in parameters:
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"the gradient of {name}"
    return "the gradient norm"
