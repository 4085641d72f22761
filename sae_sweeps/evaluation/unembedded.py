"""The logits that decoder rows raise and lower, through the model's own final norm and unembedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae_sweeps.config.hooks import STREAM
from sae_sweeps.config.schema import LayerConfig

ADDED = (*STREAM, "resid_mid")
"""Hooks whose activations are the residual stream or what is added to it."""
LOGITS_AT_ONCE = 2**24
"""Most logits in memory together."""
METHOD = (
    "The decoder row is put in the place of the whole residual stream after the last layer, and goes through the "
    "model's own final norm and unembedding; what a row of zeros gives is subtracted. The norm brings every row to one "
    "size, so that logits compare within a feature and between features, but are not those that the feature adds on a "
    "token: later layers are left out."
)


@torch.no_grad()
def logit_effects(W_dec: Tensor, lm: Any, layer: LayerConfig, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Tokens and logits [d_sae, n] that each row of W_dec [d_sae, d_in] raises most, then those that it lowers most.

    None where the hook's activations are not added to the residual stream. As METHOD describes it.
    """
    if layer.hook not in ADDED:
        return None
    last = LayerConfig("resid_post", lm.n_layers - 1)

    def logits(rows_nD: Tensor) -> Tensor:
        tokens_n1 = torch.zeros(len(rows_nD), 1, dtype=torch.long)
        return lm.unembed(lm.resume(tokens_n1, last, rows_nD[:, None])).float()[:, 0]

    nothing_V = logits(W_dec.new_zeros(1, W_dec.shape[1]).to(lm.dtype))[0]
    n, parts = min(n, len(nothing_V)), []
    for rows_nD in W_dec.split(max(1, LOGITS_AT_ONCE // len(nothing_V))):
        effect_nV = logits(rows_nD.to(lm.device, lm.dtype)) - nothing_V
        raised, lowered = effect_nV.topk(n), effect_nV.topk(n, largest=False)
        parts.append((raised.indices, raised.values, lowered.indices, lowered.values))
    raised_ids, raised_logits, lowered_ids, lowered_logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return raised_ids, raised_logits, lowered_ids, lowered_logits
