"""One SAE in training: its modules and optimizer, and the step.

Runs that train side by side on the same batches are one `Training` each, independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sae_sweeps.architectures.base import SAE
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.architectures.context import RECONSTRUCTIONS, Context, generator_at
from sae_sweeps.config.run import RunConfig
from sae_sweeps.errors import ConfigError, Diverged
from sae_sweeps.kernels.choose import choose
from sae_sweeps.kernels.competition import Competition
from sae_sweeps.kernels.features import DenseFeatures, Features
from sae_sweeps.kernels.launching import StepShape
from sae_sweeps.kernels.matmul import float32_products
from sae_sweeps.kernels.memory import retain_freed_memory
from sae_sweeps.kernels.selection import PLAIN, Selection, choose_selection
from sae_sweeps.penalties.base import Penalty, PenaltyValue
from sae_sweeps.training.nonfinite_guard import NonFiniteGuard, Snapshot
from sae_sweeps.training.optimizer import optimizer
from sae_sweeps.training.report import (
    Gradients,
    StepLoss,
    StepReport,
    first_gradient_not_finite,
    first_not_finite,
    gradient_norms,
    gradients_by_term,
    loss_numbers,
    monitor_records,
)
from sae_sweeps.training.watched_pairs import WatchedPairs

if TYPE_CHECKING:
    from sae_sweeps.architectures.group_layer import GroupLayer

WATCHED_PAIRS = "watched_pairs"
GROUP_STREAM = 32
"""Stream of the group layer's random numbers; penalties have those below."""


def checked(value: Any, name: str) -> PenaltyValue:
    """A penalty's value. Raises ConfigError where it is no PenaltyValue or its loss no scalar."""
    if not isinstance(value, PenaltyValue):
        returned = f"a {type(value).__name__}" if value is not None else "nothing"
        raise ConfigError(f"penalty={name}: forward must return a PenaltyValue, and returned {returned}.")
    if not isinstance(value.loss, Tensor) or value.loss.shape != ():
        shape = list(getattr(value.loss, "shape", ())) or type(value.loss).__name__
        raise ConfigError(f"penalty={name}: its loss has shape {shape}; it must be one number, a tensor of shape [].")
    if not isinstance(value.terms, dict):
        raise ConfigError(f"penalty={name}: its terms are a {type(value.terms).__name__}; give a dict of numbers.")
    for term, number in value.terms.items():
        if not (isinstance(number, int | float) or (isinstance(number, Tensor) and number.numel() == 1)):
            raise ConfigError(f"penalty={name}: its term {term} must be one number.")
    return value


def checked_losses(parts: Any, name: str) -> dict[str, tuple[Tensor, float | Tensor]]:
    """An architecture's own loss terms. Raises ConfigError for other than name -> (scalar, weight)."""
    pairs = parts.values() if isinstance(parts, dict) else [None]
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and getattr(pair[0], "shape", None) == ()):
            raise ConfigError(f"architecture={name}: extra_losses must return a dict of (loss of shape [], weight).")
    return parts


def of_shape(feature_acts: Any, shape: tuple[int, ...]) -> bool:
    """Whether an architecture's `activate` gave features of this shape."""
    if isinstance(feature_acts, DenseFeatures):
        return getattr(feature_acts.values, "shape", None) == shape
    return isinstance(feature_acts, Features)


class Training:
    """SAE, group layer, penalties and optimizer of a run.

    Args:
        scale: activations are multiplied by it before the SAE sees them (1 unless the run normalises).
        b_dec: initial decoder bias [d_in], in raw activation units.
        selection: recorded at the run's first start; None: it is chosen.
    """

    def __init__(
        self, run: RunConfig, scale: float, b_dec: Tensor, device: torch.device, selection: Selection | None = None
    ):
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
        self.sae.kernels = choose(run.train.kernels, device)
        self.sae.selection = self._choose_selection() if selection is None else selection
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
        self.watched_pairs = WatchedPairs(self.total_steps).to(device)
        betas = (run.train.beta1, run.train.beta2)
        ours = all(type(one).__module__.startswith("sae_sweeps.") for one in self.modules().values())
        self.optimizer = optimizer(self.sae, [p for _, p in self.named_parameters()], betas, keep_rounded=ours)
        self.nonfinite_guard = NonFiniteGuard(device, self._explain)
        self.before_update: Callable[[], None] = lambda: None
        """Called before parameters and moments change: a checkpoint may still be copying them."""

    def _choose_selection(self) -> Selection:
        if self.run.train.selection == "bfloat16":
            return Selection("bfloat16")
        train, k = self.run.train, getattr(self.run.architecture, "k", None)
        if k is None and type(self.sae).active_above is not SAE.active_above:
            k = 0  # a threshold decides
        if k is None and train.selection == "bounded":
            raise ConfigError(
                f"train.selection=bounded: architecture={self.run.architecture.name} has neither k nor a threshold "
                "(active_above) to select by; give train.selection=auto."
            )
        if train.matmul == "tf32" or k is None or not self.sae.W_enc.T.is_contiguous():
            return PLAIN
        d_in, d_sae = self.sae.W_enc.shape
        products = torch.bfloat16 if train.precision == "bfloat16" else self.sae.W_enc.dtype
        shape = StepShape(self.run.batch_size, d_in, d_sae, k, self.sae.W_enc.dtype, products)
        return choose_selection(train.selection, self.sae.kernels, shape, self.device)

    def placed(self, module: Any) -> Any:
        """On the run's device and in its precision."""
        return module.to(self.device, torch.float64 if self.run.train.precision == "float64" else None)

    def modules(self) -> dict[str, nn.Module]:
        groups = {} if self.groups is None else {"groups": self.groups}
        return {"sae": self.sae, **groups, **self.penalties, WATCHED_PAIRS: self.watched_pairs}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in self.modules().items():
            yield from module.named_parameters(prefix)

    def buffers(self, watched_pairs: bool = False) -> dict[str, Tensor]:
        """What the SAE, the group layer and the penalties keep beside their parameters; the watched pairs' too?"""
        modules = [(prefix, one) for prefix, one in self.modules().items() if watched_pairs or prefix != WATCHED_PAIRS]
        return {f"{prefix}.{name}": buffer for prefix, one in modules for name, buffer in one.named_buffers()}

    def autocast(self) -> AbstractContextManager[object]:
        if self.run.train.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def forward(self, batch: Batch, step: int) -> StepLoss:
        """All loss terms of a batch. Changes nothing but the penalties' own state."""
        x = batch.x.to(self.sae.W_dec.dtype)
        x = x * self.scale if self.scale != 1 else x
        sae, groups = self.sae, self.groups
        with self.autocast():
            pre_acts, feature_acts = sae.encode(x, step)
            if pre_acts is not None and pre_acts.shape != (len(x), sae.d_sae):
                raise ConfigError(
                    f"architecture={self.run.architecture.name}: pre-activations have shape {list(pre_acts.shape)}; "
                    f"they must be [batch, d_sae] = {[len(x), sae.d_sae]}."
                )
            if not of_shape(feature_acts, (len(x), sae.d_sae)):
                raise ConfigError(
                    f"architecture={self.run.architecture.name}: its activation must return features of shape "
                    f"[batch, d_sae] = {[len(x), sae.d_sae]}."
                )
            if groups is not None:
                generator = generator_at(self.device, self.run.seed, step, GROUP_STREAM)
                feature_acts = groups(feature_acts, generator, training=True)
            error, squares = sae.residual(feature_acts, x)
            recon = RECONSTRUCTIONS[self.run.train.recon]
            seed, total_steps = self.run.seed, self.total_steps
            ctx = Context(sae, batch, x, pre_acts, feature_acts, error, step, total_steps, seed, groups, recon)
            parts = {
                "recon": (recon(squares), 1.0),
                **checked_losses(sae.extra_losses(ctx), self.run.architecture.name),
            }
            if groups is not None:
                parts |= groups.extra_losses(ctx)
            penalty_terms: dict[str, float | Tensor] = {}
            for term in self.terms:
                weight, penalty = term.weight(step, total_steps), self.penalties[term.name]
                penalty.observe(ctx)
                value = checked(penalty(ctx), term.config.name) if weight != 0 else PenaltyValue(x.new_zeros(()))
                parts[term.name] = (value.loss, weight)
                head = "penalty" if term.name == "penalty" else f"penalty/{term.name}"
                penalty_terms |= {f"{head}/{name}": number for name, number in value.terms.items()}
        loss = sum((value * weight for value, weight in parts.values()), start=x.new_zeros(()))
        return StepLoss(loss, parts, penalty_terms, ctx)

    def step(self, batch: Batch, step: int, logged: bool = False, monitored: bool = False) -> StepReport:
        """Take one optimizer step; report its numbers where `logged`, gradient norms and monitors where `monitored`.

        Raises Diverged, with nothing updated, when a term or the gradient is not finite. On a GPU a later step may
        raise it, naming this one; nothing is updated in between.
        """
        with float32_products(self.device, self.run.train.matmul):
            return self._step(batch, step, logged, monitored)

    def _step(self, batch: Batch, step: int, logged: bool, monitored: bool) -> StepReport:
        report = StepReport()
        self.nonfinite_guard.check()
        watched = monitored or (self.run.train.monitor_every > 0 and step in self.watched_pairs.due)
        before = None if self.nonfinite_guard.at_once else Snapshot(self.buffers(watched))
        loss = self.forward(batch, step)
        if self.nonfinite_guard.at_once and not math.isfinite(loss.loss.item()):
            raise Diverged(step, first_not_finite(loss))
        gradients: Gradients = {}
        if watched:
            report.monitors = self.watched_pairs.records(loss.ctx, self.competitions())
        if monitored:
            report.monitors += monitor_records(self.monitored_modules(), loss.ctx, len(self.terms) == 1)
            gradients = gradients_by_term(self.sae, loss.parts)

        self.optimizer.zero_grad()
        loss.loss.backward()
        norms = gradient_norms(self.sae, gradients) if monitored else {}
        norm = self.optimizer.project_gradients()
        skip = self._check_gradients(step, batch, loss.loss, norm)
        self.before_update()
        self.optimizer.step(self.run.learning_rate(step), self._clip_divisor(norm), skip)

        self.sae.observe(loss.ctx)
        events: list[dict[str, Any]] = []
        if self.groups is not None:
            self.groups.observe(loss.ctx)
            events = self.groups.adapt(loss.ctx)
        if before is not None and skip is not None:
            before.restore(self.buffers(watched), skip)
        if events:
            self.nonfinite_guard.check(wait=True)
            report.monitors += [{"monitor": "group_event", **event} for event in events]
        if logged:
            report.numbers = self.numbers(loss, step) | norms | {"grad_norm/total": norm.item()}
        return report

    def _check_gradients(self, step: int, batch: Batch, loss: Tensor, norm: Tensor) -> Tensor | None:
        """Raise Diverged for a norm that is not finite; on a GPU return a flag for the optimizer instead, unread."""
        if not self.nonfinite_guard.at_once:
            return self.nonfinite_guard.add(step, batch, loss.detach().isfinite() & norm.isfinite())
        if not math.isfinite(norm.item()):
            raise Diverged(step, first_gradient_not_finite(self.named_parameters()))
        return None

    def _clip_divisor(self, norm: Tensor) -> Tensor:
        """Divisor of all gradients that brings their norm to at most `train.clip`, scalar >= 1."""
        clip = self.run.train.clip
        return ((norm + 1e-6) / clip).clamp(min=1.0) if clip else torch.ones_like(norm)

    def competitions(self) -> dict[str, Competition]:
        """The competition of pairs of features at this step, by the name of the penalty that defines it."""
        found = {name: one.pair_competition() for name, one in self.penalties.items() if isinstance(one, Penalty)}
        return {name: competition for name, competition in found.items() if competition is not None}

    def monitored_modules(self) -> dict[str, nn.Module]:
        """The penalties, then the group layer."""
        return self.penalties | ({} if self.groups is None else {"groups": self.groups})

    @torch.no_grad()
    def numbers(self, loss: StepLoss, step: int) -> dict[str, float]:
        """One row of metrics.jsonl, losses in raw activation units."""
        ctx = loss.ctx
        row = loss_numbers(loss, self.penalties, self.scale ** (2 if self.run.train.recon == "squared" else 1))
        row |= {
            "l0": ctx.feature_acts.l0(),
            "fvu": ctx.error.square().sum() / (ctx.x - ctx.x.mean(0)).square().sum(),
            "dead_features": self.sae.dead().float().mean(),
            "lr": self.optimizer.lr,
            **self.sae.numbers(step),
            **loss.penalty_terms,
        }
        return {name: float(value) for name, value in row.items()}

    def _explain(self, step: int, batch: Batch) -> Diverged:
        """The error of a step that was not finite, found by computing it again: nothing was updated since."""
        before = Snapshot(self.buffers())
        loss = self.forward(batch, step)
        before.restore(self.buffers(), self.nonfinite_guard.bad)
        if not math.isfinite(loss.loss.item()):
            return Diverged(step, first_not_finite(loss))
        self.optimizer.zero_grad()
        loss.loss.backward()
        return Diverged(step, first_gradient_not_finite(self.named_parameters()))
