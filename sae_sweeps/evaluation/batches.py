"""The interface of a language model to evaluations, and batches of held-out contexts."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.errors import DataError


class LanguageModel(Protocol):
    """The part of `sae_sweeps.activations.language_model.LanguageModel` that evaluations use."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def special_ids(self) -> frozenset[int]: ...

    def tokenize_rows(self, texts: list[str], context: int) -> Tensor: ...

    def activations(self, tokens_SL: Tensor, layer: LayerConfig) -> Tensor: ...

    def resume(self, tokens_SL: Tensor, layer: LayerConfig, x_SLD: Tensor) -> Tensor: ...

    def unembed(self, hidden: Tensor) -> Tensor: ...


def is_plain(tokens_SL: Tensor, special_ids: Iterable[int]) -> Tensor:
    """Mask [S, L] of the tokens that are not special (BOS, EOS, padding): the ones that metrics average over."""
    special = torch.tensor(sorted(special_ids), dtype=tokens_SL.dtype, device=tokens_SL.device)
    return ~torch.isin(tokens_SL, special)


def by_length(lengths: Sequence[int], at_once: int) -> list[list[int]]:
    """Numbers of rows, shortest first, `at_once` in a batch: so padded little, a model reads few tokens in vain."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[first : first + at_once] for first in range(0, len(order), at_once)]


def split_batches(tokens_NL: Tensor, cfg: EvalConfig) -> tuple[list[Tensor], list[Tensor], list[str]]:
    """Batches of contexts for the forward-pass metrics, the batches that follow them for the others, and warnings.

    Text that is too short for these batches is divided in the same proportion, with a warning.
    Raises DataError when there are not two contexts.
    """
    if len(tokens_NL) < 2:
        raise DataError(f"the held-out text gives {len(tokens_NL)} contexts; evaluation needs at least 2, so add text.")
    wanted = cfg.recon_batches + cfg.sparsity_batches
    batch_size = min(cfg.batch_size, len(tokens_NL) // 2)
    n_batches = min(wanted, len(tokens_NL) // batch_size)
    n_recon = min(max(1, n_batches * cfg.recon_batches // wanted), n_batches - 1)
    batches = list(tokens_NL[: n_batches * batch_size].split(batch_size))
    warnings = []
    if n_batches < wanted:
        warnings.append(
            f"evaluated on {n_recon} + {n_batches - n_recon} batches of {batch_size} contexts instead of "
            f"{cfg.recon_batches} + {cfg.sparsity_batches} of {cfg.batch_size}: the held-out text is too short"
        )
    return batches[:n_recon], batches[n_recon:], warnings
