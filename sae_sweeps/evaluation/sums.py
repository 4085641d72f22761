"""Sums of feature activations over consecutive tokens: of a text, of a context."""

import torch
from torch import Tensor

from sae_sweeps.kernels.features import Features, TopKFeatures


def sum_features(f: Features, length_T: Tensor) -> Tensor:
    """Each feature's sum over consecutive tokens [T, d_sae], float32; `length_T` of each text.

    Added in the order of the tokens, so that the last bit does not depend on the form.
    """
    if isinstance(f, TopKFeatures) and not f.values.is_cuda:
        return _sum_entries(f, f.values.float(), length_T)
    return sum_by_text(f.dense().float(), length_T)


def count_firing(f: Features, length_T: Tensor | None = None) -> Tensor:
    """On how many of consecutive tokens each feature fires [T, d_sae], float32; without lengths of all [1, d_sae]."""
    if length_T is None:
        length_T = torch.tensor([len(f.values)], device=f.values.device)
    if isinstance(f, TopKFeatures) and not f.values.is_cuda:
        return _sum_entries(f, (f.values > 0).float(), length_T)
    return sum_by_text((f.dense() > 0).float(), length_T)


def _sum_entries(f: TopKFeatures, values_BK: Tensor, length_T: Tensor) -> Tensor:
    """On the CPU, whose index_add_ adds in the order of the tokens."""
    text_B = torch.arange(len(length_T)).repeat_interleave(length_T)
    place_BK = text_B[:, None] * f.d_sae + f.indices
    total = values_BK.new_zeros(len(length_T) * f.d_sae)
    return total.index_add_(0, place_BK.flatten(), values_BK.flatten()).view(-1, f.d_sae)


def sum_by_text(v_nW: Tensor, length_T: Tensor) -> Tensor:
    """Sums [T, W] of consecutive tokens, `length_T` of each text, added in their order on any device.

    On CUDA index_add_ adds in the order in which threads arrive, so its last bits differ from run to run; on the CPU it
    is the faster of two ways to the same bits.
    """
    if v_nW.is_cuda:
        return torch.segment_reduce(v_nW, "sum", lengths=length_T, axis=0, unsafe=True)
    text_n = torch.arange(len(length_T)).repeat_interleave(length_T)
    return v_nW.new_zeros(len(length_T), v_nW.shape[1]).index_add_(0, text_n, v_nW)
