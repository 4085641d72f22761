"""What all architectures share: weights, encoder, decoder, unit-norm decoder rows, the count of dead features.

z = (x - b_dec) W_enc + b_enc      f = activation(z)      x_hat = f W_dec + b_dec

An architecture is one file with a config dataclass and a subclass of `SAE`, named at its end as CONFIG and COMPONENT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sae_sweeps.fields import Positive
from sae_sweeps.kernels import choose, sparse, sparse_reference
from sae_sweeps.kernels.features import DenseFeatures, Features, PairFeatures
from sae_sweeps.kernels.pairs import Pairs
from sae_sweeps.kernels.selection import PLAIN, Selection

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context
    from sae_sweeps.kernels.choose import Kernels

ALL = slice(None)
"""All features, in their order."""


@dataclass
class ArchitectureConfig:
    """Base of an architecture's config: each field is a key of its YAML. No method must be overridden."""

    name: str
    d_sae: Positive[int | None]
    """Dictionary size; null means 8 * d_in."""

    def check(self, d_in: int) -> None:
        """Raise ConfigError for values that exclude each other; a value alone is checked by its field's rule."""

    def unused_keys(self) -> dict[str, str]:
        """Keys without effect given the values of the others, each with the reason."""
        return {}

    def curves(self, total_steps: int) -> dict[str, list[float]]:
        """The architecture's own schedules, for `sae_sweeps schedule`: name -> value at each step."""
        return {}


class SAE(nn.Module):
    """Weights W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in] with unit-norm rows, b_dec [d_in].

    Decoder rows start as random directions, the encoder as the decoder transposed.

    A subclass defines `exports_as`, where SAELens has such an architecture, and either `activation`, where f depends on
    each pre-activation by itself, or `activate`, where features compete. It may define `active_above` (faster training
    where few features are active), `extra_losses`, `observe`, `numbers` and `export`. Parameters are trained;
    parameters and buffers are checkpointed.

    Args:
        cfg: the subclass's config.
        dead_after_tokens: a feature that has not fired for so many tokens is dead.
        generator: source of all random initial values.
    """

    exports_as: str | None = None
    """SAELens's name of the exported architecture: standard, topk, jumprelu or gated; None: SAELens has none such, so
    there is no `sae/`, and evaluations call `encode` and `decode` at the last step."""
    kernels: Kernels | None = None
    """Kernels of the training step; None: the plain dense formulas."""
    selection: Selection = PLAIN
    """How the training step finds the active features."""

    def __init__(self, cfg: Any, d_in: int, total_steps: int, dead_after_tokens: int, generator: torch.Generator):
        super().__init__()
        self.cfg = cfg
        self.total_steps = total_steps
        self.dead_after_tokens = dead_after_tokens
        W_dec = torch.randn(cfg.d_sae, d_in, generator=generator)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(W_dec)
        self.W_enc = nn.Parameter(W_dec.T.clone())
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("tokens_since_fired", torch.zeros(cfg.d_sae, dtype=torch.int64))
        self.tokens_since_fired: Tensor

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    def pre_activations(self, x: Tensor) -> Tensor:
        """z [B, d_sae] of x [B, d_in].

        b_dec's gradient is -W_enc (sum over the batch of dL/dz). Through a bias of value 0 it costs a matrix-vector
        product; through x - b_dec it would cost the product [B, d_sae] x [d_sae, d_in].
        """
        zero = (self.b_dec - self.b_dec.detach()) @ self.W_enc.detach()
        return torch.addmm(self.b_enc - zero, x - self.b_dec.detach(), self.W_enc)

    def activation(self, pre_acts: Tensor, feature: Tensor | slice = ALL) -> Tensor:
        """f of pre_acts, element by element: of [B, d_sae], or of [P] pairs whose features are `feature` [P]."""
        raise NotImplementedError

    def active_above(self) -> float | Tensor | None:
        """The pre-activation, one or one per feature [d_sae], up to which f and its gradient are 0.

        Training on a CPU then computes with the (token, feature) pairs above it alone. None: with the dense f, as
        always on a GPU, where to learn how many pairs there are would stop the host.
        """
        return None

    def activate(self, pre_acts: Tensor, step: int) -> Features:
        """f from pre_acts [B, d_sae] at a step of training."""
        return DenseFeatures(self.activation(pre_acts))

    def encode(self, x: Tensor, step: int) -> tuple[Tensor | None, Features]:
        """Pre-activations [B, d_sae], None where the features were found without, and features of x [B, d_in]."""
        if self.kernels is not None:
            return self.encode_sparsely(x - self.b_dec.detach(), step)
        pre_acts = self.pre_activations(x).to(x.dtype)
        return pre_acts, self.activate(pre_acts, step)

    def encode_sparsely(self, centred: Tensor, step: int) -> tuple[Tensor | None, Features]:
        """As `encode` of x, with the run's kernels; centred = x - b_dec [B, d_in]."""
        pre_acts = sparse.pre_activations(centred, self.W_enc, self.b_enc, self.b_dec, self.coarse)
        return pre_acts, self.activate_sparsely(pre_acts, centred, step) or self.activate(pre_acts, step)

    @property
    def coarse(self) -> torch.dtype | None:
        """Dtype of the product that selects the active features, where it differs from the run's."""
        return torch.bfloat16 if self.selection.way == "bfloat16" else None

    def activate_sparsely(self, pre_acts: Tensor, centred: Tensor, step: int) -> Features | None:
        """As `activate`, with gradients through the active pairs alone; None where the dense f costs less.

        pre_acts [B, d_sae] of centred = x - b_dec [B, d_in].
        """
        assert self.kernels is not None
        threshold = self.active_above()
        if threshold is None or choose.asynchronous(pre_acts):
            return None
        found = self.kernels.above(pre_acts, threshold, int(self.kernels.SPARSE_UP_TO * pre_acts.numel()))
        if found is None:
            return None
        start, feature, pre_acts_P = found
        pairs = Pairs(start, feature, self.d_sae, self.kernels, ordered=True)
        return self.pair_features(self.chosen(pre_acts_P, pairs, centred), pairs)

    def pair_features(self, pre_acts_P: Tensor, pairs: Pairs) -> PairFeatures:
        """Features of the pairs above `active_above`; pre_acts_P [P] carries their gradient."""
        return PairFeatures(self.activation(pre_acts_P, pairs.feature), pairs)

    def chosen(self, pre_acts_P: Tensor, pairs: Pairs, centred: Tensor) -> Tensor:
        """Pre-activations at the pairs [P], with gradients on the encoder through these alone."""
        if self.coarse is not None:
            with torch.no_grad():
                pre_acts_P = pairs.kernels.dots(pairs, self.W_enc.T, centred) + self.b_enc[pairs.feature]
        return sparse.chosen(pre_acts_P, pairs, centred, self.W_enc, self.b_enc, self.b_dec)

    def decode(self, feature_acts: Features) -> Tensor:
        """x_hat [B, d_in]."""
        return feature_acts.decode(self.W_dec) + self.b_dec

    def residual(self, feature_acts: Features, x: Tensor) -> tuple[Tensor, Tensor]:
        """Error x - x_hat [B, d_in] of x [B, d_in], and the sums of its squares [B]."""
        if feature_acts.pairs is not None and type(self).decode is SAE.decode:
            values = feature_acts.values.reshape(-1).to(x.dtype)
            return sparse.residual(feature_acts.pairs, values, self.W_dec, self.b_dec, x)
        error = x - self.decode(feature_acts).to(x.dtype)
        return error, error.square().sum(1)

    def extra_losses(self, ctx: Context) -> dict[str, tuple[Tensor, float | Tensor]]:
        """Loss terms beside the reconstruction: name -> (value, a scalar with gradient; weight at this step, a number
        or, where the device computes it, a scalar tensor of the value's dtype)."""
        return {}

    def dead(self) -> Tensor:
        """Which features have not fired for `dead_after_tokens` tokens [d_sae], bool."""
        return self.tokens_since_fired >= self.dead_after_tokens

    @torch.no_grad()
    def observe(self, ctx: Context) -> None:
        """Update buffers after the optimizer's step. Call `super().observe(ctx)`: it counts dead features."""
        self.tokens_since_fired += len(ctx.x)
        self.tokens_since_fired.masked_fill_(ctx.feature_acts.fired(), 0)

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Subtract from W_dec's gradient its part along each row, which would only change the row's norm."""
        if self.W_dec.grad is not None:
            (self.kernels or sparse_reference).remove_parallel(self.W_dec.grad, self.W_dec)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Bring W_dec's rows to unit norm."""
        (self.kernels or sparse_reference).normalize(self.W_dec)

    def numbers(self, step: int) -> dict[str, float]:
        """Values of the architecture's own schedules and controls at a step, for the log."""
        return {}

    def export(self, scale: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights in raw activation units, for a model trained on scale * x, and settings such as k.

        The model is positively homogeneous, so dividing both biases by the scale divides f by it and keeps W_dec's
        rows at unit norm.
        """
        weights = {
            "W_enc": self.W_enc.detach().clone(),
            "b_enc": self.b_enc.detach() / scale,
            "W_dec": self.W_dec.detach().clone(),
            "b_dec": self.b_dec.detach() / scale,
        }
        return weights, {}
