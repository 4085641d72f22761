"""Copies of weights in bfloat16 are those of the weights as they are, whatever wrote them."""

import gc

import pytest
import torch
from torch import nn

from sae_sweeps.kernels.rounded import _kept, at_hand, keep, rounded, to_write, written


def kept_weight():
    weight = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).T.clone())
    keep(weight)
    return weight


def moved(weight):
    weight.data = weight.data.clone() + 1


WRITES = {
    "a view": lambda weight: weight.detach().T[1].add_(1),
    "copy_": lambda weight: weight.copy_(torch.ones(4, 6)),
    "a state": lambda weight: nn.ParameterDict({"w": weight}).load_state_dict({"w": torch.ones(4, 6)}),
    "out=": lambda weight: torch.where(torch.tensor(True), torch.ones(4, 6), weight.detach(), out=weight.detach()),
    "a slice": lambda weight: weight.__setitem__((2, 3), 5.0),
    "foreach": lambda weight: torch._foreach_mul_([weight], 2.0),
    "other memory": moved,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_is_seen(write):
    weight = kept_weight()
    copy = rounded(weight, torch.bfloat16)
    assert at_hand(weight, None) is weight  # of a run in float32 that only selects in bfloat16
    assert copy.stride() == weight.stride() and rounded(weight, torch.bfloat16) is copy is at_hand(weight)
    before = copy.clone()
    with torch.no_grad():
        write(weight)
    assert at_hand(weight) is weight and to_write(weight) is None
    again = rounded(weight, torch.bfloat16)
    assert torch.equal(again, weight.detach().bfloat16()) and not torch.equal(again, before)
    assert not again.requires_grad


def test_a_kernel_of_our_own_writes_both():
    weight = kept_weight()
    assert to_write(weight) is None  # nobody used one
    copy = rounded(weight, torch.bfloat16)
    for _ in range(2):
        rounded(weight, torch.bfloat16)
        assert to_write(weight) is copy
        weight.detach().numpy()[:] += 1  # as a kernel does, which torch does not count
        copy.copy_(weight.detach())
        written(weight)
        assert at_hand(weight) is copy and torch.equal(copy, weight.detach().bfloat16())
    assert to_write(weight) is None  # not used since
    written(weight)
    assert at_hand(weight) is weight


def test_what_is_not_kept_is_rounded_each_time():
    weight = nn.Parameter(torch.ones(2, 3))
    assert rounded(weight, torch.bfloat16) is not rounded(weight, torch.bfloat16)
    assert at_hand(weight) is weight and to_write(weight) is None
    written(weight)
    before = len(_kept)
    kept = kept_weight()
    assert rounded(kept, torch.float32).data_ptr() == kept.data_ptr() and len(_kept) == before + 1
    del kept
    gc.collect()
    assert len(_kept) == before
