"""BatchTopK: the k * B largest of ReLU(z) in a batch. Bussmann et al. 2024 (arXiv 2412.06410).

At inference each token is encoded by itself: features above a threshold, the moving average of the smallest activation
kept in a batch. So f differs from training. The SAE is exported as a JumpReLU with that threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_sweeps.architectures.base import SAE
from sae_sweeps.architectures.topk import TopK, TopKConfig
from sae_sweeps.fields import BelowOne
from sae_sweeps.kernels import choose
from sae_sweeps.kernels.features import DenseFeatures, Features, PairFeatures
from sae_sweeps.kernels.pairs import Pairs, largest_pairs

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context

GUESS = 0.8
"""Share of the moving threshold above which the k * B largest are searched first."""


@dataclass
class BatchTopKConfig(TopKConfig):
    """As TopK's; k is the mean number of active features per token."""

    threshold_decay: BelowOne
    """Decay of the moving average that becomes the threshold at inference."""


class BatchTopK(TopK):
    exports_as = "jumprelu"
    cfg: BatchTopKConfig

    def __init__(self, cfg: Any, d_in: int, total_steps: int, dead_after_tokens: int, generator: torch.Generator):
        super().__init__(cfg, d_in, total_steps, dead_after_tokens, generator)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("thresholds_seen", torch.zeros((), dtype=torch.int64))
        self.threshold: Tensor
        self.thresholds_seen: Tensor

    def activate(self, pre_acts: Tensor, step: int) -> DenseFeatures:
        f = pre_acts.relu()
        kept = self.k_at(step) * len(f)
        if kept < f.numel():
            with torch.no_grad():
                flat = f.flatten()
                largest = flat.topk(kept, sorted=False).indices
                mask = torch.zeros_like(flat).index_fill_(0, largest, 1.0).view_as(f)
            f = f * mask
        return DenseFeatures(f)

    def encode_sparsely(self, centred: Tensor, step: int) -> tuple[Tensor | None, Features]:
        if self.selection.way == "bounded" and not choose.asynchronous(centred):
            assert self.kernels is not None
            weights, kept = (self.W_enc.detach(), self.b_enc.detach()), self.k_at(step) * len(centred)
            found = self.kernels.bounded_above(centred, *weights, self._guess(), kept, self.selection.block)
            if found is not None:
                return None, self._kept_of(found, kept, centred)
        return SAE.encode_sparsely(self, centred, step)  # TopK's selects within each token

    def activate_sparsely(self, pre_acts: Tensor, centred: Tensor, step: int) -> Features | None:
        assert self.kernels is not None
        kept = self.k_at(step) * len(pre_acts)
        if choose.asynchronous(pre_acts):
            pairs, values = largest_pairs(pre_acts.detach(), kept, self.kernels)
            return PairFeatures(self.chosen(values, pairs, centred).relu(), pairs)
        guess = self._guess()
        found = self.kernels.above(pre_acts, guess, pre_acts.numel())
        if guess > 0 and (found is None or len(found[1]) < kept):
            found = self.kernels.above(pre_acts, 0.0, pre_acts.numel())
        assert found is not None
        return self._kept_of(found, kept, centred)

    def _guess(self) -> float:
        """A number that somewhat more pre-activations exceed than are kept, by the batches before; 0 at first."""
        return GUESS * float(self.threshold) if self.thresholds_seen else 0.0

    def _kept_of(self, found: tuple[Tensor, Tensor, Tensor], kept: int, centred: Tensor) -> PairFeatures:
        """The `kept` largest of the pairs found: start [B + 1], feature [P], z [P]; of equal ones the first."""
        assert self.kernels is not None
        start, feature, values = found
        pairs = Pairs(start, feature, self.d_sae, self.kernels, ordered=True)
        if kept < len(values):
            least = values.kthvalue(len(values) - kept + 1).values
            chosen, ties = values > least, values == least
            chosen |= ties & (ties.cumsum(0) <= kept - chosen.sum())
            pairs, values = pairs.where(chosen), values[chosen]
        return PairFeatures(self.chosen(values, pairs, centred).relu(), pairs)

    @torch.no_grad()
    def observe(self, ctx: Context) -> None:
        super().observe(ctx)
        f = ctx.feature_acts.values if ctx.groups is None else self.activate(ctx.pre_acts, ctx.step).values
        positive = torch.where(f > 0, f, torch.inf).min()
        self.thresholds_seen += 1
        rate = (1.0 / self.thresholds_seen).clamp(min=1 - self.cfg.threshold_decay)
        # unchanged by a batch in which nothing fires
        self.threshold += torch.where(positive.isfinite(), rate * (positive - self.threshold), 0.0)

    def export(self, scale: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        weights, _ = super().export(scale)
        return weights | {"threshold": (self.threshold / scale).expand(self.d_sae).clone()}, {}


CONFIG = BatchTopKConfig
COMPONENT = BatchTopK
