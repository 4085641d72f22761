"""What every architecture shares: weights, encoder, decoder, the unit-norm decoder and the count of dead features.

z = (x - b_dec) W_enc + b_enc      f = act(z)      x_hat = f W_dec + b_dec
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sae_sweeps.fields import Positive
from sae_sweeps.kernels import sparse, sparse_reference
from sae_sweeps.kernels.features import Features
from sae_sweeps.kernels.pairs import Pairs

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context
    from sae_sweeps.kernels.choose import Kernels


@dataclass
class ArchitectureConfig:
    """What every architecture's config answers. Fields `name` and `d_sae` are in each of them."""

    name: str
    d_sae: Positive[int | None]
    """Dictionary size; null means 8 * d_in."""

    def check(self, d_in: int) -> None:
        """Raise ConfigError for values that exclude each other; a value alone is checked by its field's rule."""

    def unused_keys(self) -> dict[str, str]:
        """Keys that change nothing as the others stand, each with the reason."""
        return {}


class SAE(nn.Module):
    """Weights W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in] with unit-norm rows, b_dec [d_in].

    Decoder rows are random directions; the encoder starts as the decoder transposed.
    """

    exports_as: str
    """SAELens's name of the exported architecture."""
    kernels: Kernels | None = None
    """What computes the steps of training; None: the plain dense formulas."""
    selection: str = "exact"
    """bfloat16: a product in bfloat16 says which features are active; their values are then taken in float32."""

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

        b_dec's gradient here is -W_enc (sum over the batch of dL/dz). It is taken through a bias of value 0, which
        saves the product [B, d_sae] x [d_sae, d_in] that the gradient of x - b_dec would cost.
        """
        zero = (self.b_dec - self.b_dec.detach()) @ self.W_enc.detach()
        return torch.addmm(self.b_enc - zero, x - self.b_dec.detach(), self.W_enc)

    def activate(self, z: Tensor, step: int) -> Features:
        """f from z [B, d_sae] at a step of training."""
        raise NotImplementedError

    def encode(self, x: Tensor, step: int) -> tuple[Tensor, Features]:
        """z [B, d_sae] and f of x [B, d_in] at a step of training, by the run's kernels where they have a way."""
        if self.kernels is not None:
            return self.encode_sparsely(x - self.b_dec.detach(), step)
        z = self.pre_activations(x).to(x.dtype)
        return z, self.activate(z, step)

    def encode_sparsely(self, centred: Tensor, step: int) -> tuple[Tensor, Features]:
        """As `encode`, of x - b_dec [B, d_in]."""
        z = sparse.pre_activations(centred, self.W_enc, self.b_enc, self.b_dec, self.coarse)
        f = self.activate_sparsely(z, centred, step)
        return z, self.activate(z, step) if f is None else f

    @property
    def coarse(self) -> torch.dtype | None:
        """In which the product that selects is taken, where that is not the run's own."""
        return torch.bfloat16 if self.selection == "bfloat16" else None

    def activate_sparsely(self, z: Tensor, centred: Tensor, step: int) -> Features | None:
        """As `activate`, with gradients by way of the active features alone; None where that does not pay.

        z [B, d_sae] of x - b_dec [B, d_in].
        """
        return None

    def few_above(self, z: Tensor, threshold: float | Tensor) -> tuple[Pairs, Tensor] | None:
        """Where z [B, d_sae] exceeds the threshold (or each feature its own [d_sae]), and z there [P].

        None where that is so often that dense products cost less than sums over the pairs.
        """
        assert self.kernels is not None
        found = self.kernels.above(z, threshold, int(self.kernels.SPARSE_UP_TO * z.numel()))
        return None if found is None else (Pairs(found[0], found[1], self.d_sae, self.kernels), found[2])

    def chosen(self, z_P: Tensor, pairs: Pairs, centred: Tensor) -> Tensor:
        """z at the pairs [P], with gradients on the encoder by way of them alone."""
        if self.selection != "exact":
            with torch.no_grad():
                z_P = pairs.kernels.dots(pairs, self.W_enc.T, centred) + self.b_enc[pairs.feature]
        return sparse.chosen(z_P, pairs, centred, self.W_enc, self.b_enc, self.b_dec)

    def decode(self, f: Features) -> Tensor:
        """x_hat [B, d_in]."""
        return f.decode(self.W_dec) + self.b_dec

    def residual(self, f: Features, x: Tensor) -> tuple[Tensor, Tensor]:
        """Error x - x_hat [B, d_in] of x [B, d_in], and the sums of its squares [B]."""
        if f.pairs is not None and type(self).decode is SAE.decode:
            return sparse.residual(f.pairs, f.values.reshape(-1).to(x.dtype), self.W_dec, self.b_dec, x)
        error = x - self.decode(f).to(x.dtype)
        return error, error.square().sum(1)

    def extra_losses(self, ctx: Context) -> dict[str, tuple[Tensor, float]]:
        """Terms beside the reconstruction: name -> (value, weight at this step)."""
        return {}

    def dead(self) -> Tensor:
        """Features that have not fired for `dead_after_tokens` tokens [d_sae], bool."""
        return self.tokens_since_fired >= self.dead_after_tokens

    @torch.no_grad()
    def observe(self, ctx: Context) -> None:
        """Update state after the optimizer's step."""
        self.tokens_since_fired += len(ctx.x)
        self.tokens_since_fired.masked_fill_(ctx.feature_acts.fired(), 0)

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from W_dec's gradient the part along each row: it would only change the row's norm."""
        if self.W_dec.grad is not None:
            (self.kernels or sparse_reference).remove_parallel(self.W_dec.grad, self.W_dec)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
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
