"""Activations with known ground-truth features, on which recovery by an SAE can be measured."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from sae_sweeps.architectures.batch import Batch
from sae_sweeps.config.schema import CHILD_RATE, SyntheticConfig

CHUNK = 1024
"""Tokens drawn together; the unit of `SyntheticWorld.sample`."""


class SyntheticWorld:
    """x = sum_j a_j features_j + noise, with a_j >= 0 sparse.

    The first `n_correlated` features come in groups whose activity shares a Gaussian latent (copula), the next
    `n_hierarchical` in families of one parent and its children, the rest fire independently. Plain and correlated
    features and parents are active equally often, children half as often, and only with their parent; the mean number
    of active features is `l0`.

    Attributes:
        features_FD: unit-norm directions [n_features, d_in], float32.
        kind: per feature, `correlated`, `hierarchical` or `plain`.
        parent_F: number of the feature's parent, -1 if it has none [n_features], int64.
        group_F: number of the feature's correlated group, -1 if it has none [n_features], int64.
        rate_F: share of tokens on which the feature is active [n_features], float32.
    """

    def __init__(self, cfg: SyntheticConfig):
        self.cfg = cfg
        self.d_in = cfg.d_in or 0
        n, n_correlated, n_hierarchical = cfg.n_features, cfg.n_correlated, cfg.n_hierarchical
        n_plain = n - n_correlated - n_hierarchical
        self.kind = ["correlated"] * n_correlated + ["hierarchical"] * n_hierarchical + ["plain"] * n_plain

        number_F = torch.arange(n)
        self.group_F = torch.where(number_F < n_correlated, number_F // cfg.correlated_group_size, -1)
        family = 1 + cfg.children_per_parent
        place_F = (number_F - n_correlated) % family
        in_family_F = (number_F >= n_correlated) & (number_F < n_correlated + n_hierarchical)
        self.parent_F = torch.where(in_family_F & (place_F > 0), number_F - place_F, -1)

        weight_F = torch.where(self.parent_F >= 0, CHILD_RATE, 1.0)
        self.rate_F = weight_F * (cfg.l0 / weight_F.sum())
        # A child is drawn with probability CHILD_RATE where its parent fires.
        self._threshold_F = torch.special.ndtri(torch.where(self.parent_F >= 0, CHILD_RATE, self.rate_F))

        features_FD = torch.randn(n, self.d_in, generator=self._generator("features"))
        self.features_FD = features_FD / features_FD.norm(dim=1, keepdim=True)

    def sample(self, chunk: int, split: str = "train") -> tuple[Tensor, Tensor]:
        """Chunk number `chunk` of a split: x [CHUNK, d_in] and coefficients [CHUNK, n_features], float32.

        A pure function of (`world_seed`, `split`, `chunk`).
        """
        cfg, generator = self.cfg, self._generator(split, chunk)
        latent_BF = torch.randn(CHUNK, cfg.n_features, generator=generator)
        if cfg.n_correlated:
            shared_BG = torch.randn(CHUNK, int(self.group_F.max()) + 1, generator=generator)
            own_BC = latent_BF[:, : cfg.n_correlated]
            shared_BC = shared_BG[:, self.group_F[: cfg.n_correlated]]
            own_BC.mul_((1 - cfg.correlation) ** 0.5).add_(shared_BC, alpha=cfg.correlation**0.5)
        active_BF = latent_BF < self._threshold_F
        child_F = self.parent_F >= 0
        active_BF[:, child_F] &= active_BF[:, self.parent_F[child_F]]
        magnitude_BF = torch.randn(CHUNK, cfg.n_features, generator=generator)
        magnitude_BF = magnitude_BF.mul_(cfg.magnitude_std).add_(cfg.magnitude_mean).clamp_(min=0.1)
        coefficients_BF = magnitude_BF * active_BF
        noise_BD = torch.randn(CHUNK, self.d_in, generator=generator)
        return coefficients_BF @ self.features_FD + cfg.noise * noise_BD, coefficients_BF

    def stream(self, start: int, stop: int, context: int, split: str = "train") -> Iterator[Batch]:
        """Tokens `start` to `stop` of a split, in contexts of `context` tokens; all token ids are 0."""
        for chunk in range(start // CHUNK, -(-stop // CHUNK)):
            first = chunk * CHUNK
            number_B = torch.arange(max(start, first), min(stop, first + CHUNK))
            x_BD, _ = self.sample(chunk, split)
            yield Batch(
                x=x_BD[number_B - first],
                token_ids=torch.zeros(len(number_B), dtype=torch.int32),
                sequence=(number_B // context).to(torch.int32),
                position=(number_B % context).to(torch.int32),
                role=torch.zeros(len(number_B), dtype=torch.int8),
            )

    def _generator(self, *what: str | int) -> torch.Generator:
        digest = hashlib.blake2b(repr((self.cfg.world_seed, *what)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
