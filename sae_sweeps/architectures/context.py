"""What a penalty or another loss term can read: the whole step, not only the decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae_sweeps.architectures.batch import Batch
from sae_sweeps.kernels.features import Features

if TYPE_CHECKING:
    from sae_sweeps.architectures.base import SAE
    from sae_sweeps.architectures.group_layer import GroupLayer


def squared_error(squares: Tensor) -> Tensor:
    """Squared error, summed over d_in, mean over the batch. squares [B] are the sums."""
    return squares.mean()


def error_norm(squares: Tensor) -> Tensor:
    """Mean Euclidean norm of the error; an error of 0 has no gradient. squares [B] are its norms squared."""
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt().mean()


RECONSTRUCTIONS = {"squared": squared_error, "norm": error_norm}


@dataclass
class Context:
    """One training step as a loss term sees it: B tokens, d_in dimensions, d_sae features."""

    sae: SAE
    """The SAE with its weights: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in] of unit-norm rows, b_dec."""
    batch: Batch
    """Token ids, sequence, position and role of every row."""
    x: Tensor
    """Activations as the SAE sees them (normalised where the run normalises) [B, d_in]."""
    known_pre_acts: Tensor | None
    """`z`, where the step has computed it; memory that the next step overwrites."""
    feature_acts: Features
    """Feature activations f; `feature_acts.dense()` is the matrix [B, d_sae], its other methods avoid that matrix."""
    error: Tensor
    """x - x_hat [B, d_in]."""
    step: int
    """i = 0 .. T-1."""
    total_steps: int
    """T."""
    seed: int
    """The run's seed; with the step it decides every random draw of a loss term."""
    groups: GroupLayer | None = None
    """The layer between activation and decoder that groups features, where the run has one."""
    of_squares: Callable[[Tensor], Tensor] = squared_error
    """The run's reconstruction loss, one of RECONSTRUCTIONS."""

    @cached_property
    def pre_acts(self) -> Tensor:
        """Pre-activations [B, d_sae] in the dtype of x, differentiable in the encoder; computed where f was found
        without."""
        known = self.known_pre_acts
        return self.sae.pre_activations(self.x) if known is None else known.to(self.x.dtype)

    @property
    def z(self) -> Tensor:
        """Pre-activations [B, d_sae], on a GPU in the dtype of their product where the step has computed them."""
        return self.pre_acts if self.known_pre_acts is None else self.known_pre_acts

    def pre_acts_of(self, features: Tensor) -> Tensor:
        """z [B, n] of the features with these numbers [n], without gradient."""
        if self.known_pre_acts is not None:
            return self.known_pre_acts.detach()[:, features]
        sae, W_enc_T = self.sae, self.sae.W_enc.detach().T
        return torch.addmm(sae.b_enc.detach()[features], self.x - sae.b_dec.detach(), W_enc_T[features].T)

    @property
    def x_hat(self) -> Tensor:
        """Reconstruction [B, d_in]."""
        return self.x - self.error

    def reconstruction(self, error: Tensor) -> Tensor:
        """The run's reconstruction loss of an error [B, d_in]."""
        return self.of_squares(error.square().sum(1))

    @property
    def progress(self) -> float:
        """p = i / T, in [0, 1)."""
        return self.step / self.total_steps

    def generator(self, stream: int = 0) -> torch.Generator:
        """Random generator of this step, the same after a resume; each `stream` (0 .. 31) draws other numbers."""
        return generator_at(self.x.device, self.seed, self.step, stream)


def generator_at(device: torch.device, seed: int, step: int, stream: int) -> torch.Generator:
    """Random generator of one step of a run."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + step) * 64 + stream)
