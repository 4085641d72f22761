"""The fused update beside torch's Adam between plain formulas."""

import copy
import importlib.util
import itertools
from types import SimpleNamespace

import pytest
import torch
from bounds import Rounding, close
from torch import nn

from sae_sweeps.architectures.base import SAE
from sae_sweeps.kernels import memory, sparse_numba
from sae_sweeps.kernels.rounded import rounded
from sae_sweeps.training.optimizer import FusedAdam, TorchAdam, TritonAdam, optimizer

BETAS = (0.9, 0.99)
KINDS = [FusedAdam, TorchAdam, *([TritonAdam] if importlib.util.find_spec("triton") else [])]


def made(d_in, d_sae, dtype, sae=SAE):
    torch.manual_seed(0)
    model = sae(SimpleNamespace(d_sae=d_sae), d_in, 10, 10, torch.Generator().manual_seed(0)).to(dtype)
    model.W_dec.data = nn.functional.normalize(model.W_dec.data, dim=1)
    head = [torch.randn(3, 5, 7).transpose(0, 2), torch.randn(()), torch.randn(9001), torch.randn(1, 4), torch.randn(3)]
    return model, [*model.parameters(), *(nn.Parameter(p.to(dtype)) for p in head)]


def slow_step(W, others, moments, n, lr, clip):
    """One step straight from the formulas; gradients are in `.grad`, updates in place. Norm and what divides it."""
    with torch.no_grad():
        if W.grad is not None:
            W.grad -= (W.grad * W).sum(1, keepdim=True) * W
        moved = [p for p in (W, *others) if p.grad is not None]
        norm = torch.sqrt(sum(p.grad.square().sum() for p in moved))
        divisor = ((norm + 1e-6) / clip).clamp(min=1.0).float() if clip else torch.ones(())
        for p in moved:
            g = p.grad / divisor.double()
            m, v = moments.get(p, (0.0, 0.0))
            m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g * g
            moments[p], n[p] = (m, v), n.get(p, 0) + 1
            p -= lr * (m / (1 - BETAS[0] ** n[p])) / ((v / (1 - BETAS[1] ** n[p])).sqrt() + 1e-8)
        W /= W.norm(dim=1, keepdim=True)
    return norm, divisor


SIZES = [
    *itertools.product([FusedAdam], [(16, 200), (21, 77), (1, 3)], [1, 3]),
    *itertools.product([TorchAdam], [(16, 200), (21, 77), (1, 3)], [1]),
    *itertools.product(KINDS[2:], [(1, 3), (21, 7)], [1]),  # by an interpreter
]
"""Optimizer, d_in and d_sae, threads."""


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kind", "size", "threads"), SIZES)
def test_steps_equal_the_formulas(kind, size, threads, dtype, clip):
    """Odd sizes, parameters of any shape, some without a gradient at some steps."""
    d_in, d_sae = size
    sae, parameters = made(d_in, d_sae, dtype)
    expected = [nn.Parameter(p.detach().double().clone()) for p in parameters]
    W = next(theirs for p, theirs in zip(parameters, expected, strict=True) if p is sae.W_dec)
    others = [p for p in expected if p is not W]
    adam, moments, n = kind(sae, parameters, BETAS), {}, {}
    rounding = Rounding(dtype)

    def compare(found, wanted):
        if d_in == 1 and found.shape == sae.W_dec.shape:  # a row of one number is 1 or -1: nothing of it rounds
            assert torch.equal(found.double(), wanted)
        else:
            rounding.assert_close(found, wanted, factor=2)

    torch.set_num_threads(threads)
    try:
        for step in range(5):
            adam.zero_grad()
            for i, (p, theirs) in enumerate(zip(parameters, expected, strict=True)):
                has_none = (i + step) % 4 == 0
                p.grad = None if has_none else torch.randn_like(p)
                theirs.grad = None if has_none else p.grad.double().clone()
            norm = adam.project_gradients()
            with rounding:
                expected_norm, divisor = slow_step(W, others, moments, n, 0.01, clip)
            rounding.assert_close(norm, expected_norm, factor=2)
            adam.step(0.01, divisor, None)
            for p, theirs in zip(parameters, expected, strict=True):
                compare(p, theirs)
    finally:
        torch.set_num_threads(1)
    for p, theirs in zip(parameters, expected, strict=True):
        state = adam.state[p]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"} and state["step"] == n[theirs]
        compare(state["exp_avg"], moments[theirs][0])
        compare(state["exp_avg_sq"], moments[theirs][1])


@pytest.mark.skipif(TritonAdam not in KINDS, reason="Triton is not installed")
def test_a_gpu_writes_the_weights_rounded_beside_them():
    """From gradients in bfloat16 too, in one visit: of a skipped step nothing, after a write from outside all anew."""
    sae, parameters = made(21, 7, torch.float32)
    expected = [nn.Parameter(p.detach().double().clone()) for p in parameters]
    adam, moments, n, rounding = TritonAdam(sae, parameters, BETAS, keep_rounded=True), {}, {}, Rounding(torch.float32)
    wide = next(theirs for p, theirs in zip(parameters, expected, strict=True) if p is sae.W_dec)
    for step in range(4):
        copies = [rounded(weight, torch.bfloat16) for weight in (sae.W_enc, sae.W_dec)]
        if step == 2:
            with torch.no_grad():
                sae.W_enc[3] = 0.5
                next(theirs for p, theirs in zip(parameters, expected, strict=True) if p is sae.W_enc)[3] = 0.5
            copies = [rounded(weight, torch.bfloat16) for weight in (sae.W_enc, sae.W_dec)]
        adam.zero_grad()
        for p, theirs in zip(parameters, expected, strict=True):
            in_products = step > 0 and (p is sae.W_enc or p is sae.W_dec)
            p.grad = torch.randn_like(p).to(torch.bfloat16 if in_products else torch.float32)
            theirs.grad = p.grad.double()
        norm = adam.project_gradients()
        skipped = step == 1
        if not skipped:
            with rounding:
                slow_step(wide, [p for p in expected if p is not wide], moments, n, 0.01, 0.0)
        adam.step(0.01, torch.ones(()), torch.tensor(skipped))
        assert norm.dtype == torch.float32
        for p, theirs in zip(parameters, expected, strict=True):
            rounding.assert_close(p, theirs, factor=2)
        for weight, kept in zip((sae.W_enc, sae.W_dec), copies, strict=True):
            assert rounded(weight, torch.bfloat16) is kept and torch.equal(kept, weight.detach().bfloat16())


def test_threads_do_not_change_a_bit():
    results = []
    for threads in (1, 2, 3):
        sae, parameters = made(37, 300, torch.float32)
        adam = FusedAdam(sae, parameters, BETAS)
        torch.set_num_threads(threads)
        try:
            for p in parameters:
                p.grad = torch.randn_like(p)
            results.append([adam.project_gradients(), *parameters])
            adam.step(0.01, adam.project_gradients(), None)
        finally:
            torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_to_be_skipped_changes_nothing(kind):
    sae, parameters = made(5, 9, torch.float32)
    adam = kind(sae, parameters, BETAS)
    before = copy.deepcopy([p.detach() for p in parameters])
    for p in parameters:
        p.grad = torch.full_like(p, torch.nan)
    assert adam.project_gradients().isnan()
    adam.step(0.01, torch.ones(()), torch.ones((), dtype=torch.bool))
    for p, old in zip(parameters, before, strict=True):
        if p is sae.W_dec and kind is TorchAdam:  # whose rows are brought to unit norm again
            close(p, old, n=2 * (5 + 4), dtype=torch.float32)
        else:
            assert torch.equal(p, old)
        assert adam.state[p]["step"] == 0 and not adam.state[p]["exp_avg"].any()


class FreeRows(SAE):
    """Rows may have any norm."""

    def remove_parallel_gradient(self):
        pass

    def normalize_decoder(self):
        self.W_dec.data *= 1.5


def test_an_architecture_may_have_its_own_way_with_the_rows():
    outcomes = []
    for kind in KINDS:
        sae, parameters = made(5, 9, torch.float64, FreeRows)
        before = [p.detach().clone() for p in parameters]
        adam = kind(sae, parameters, BETAS)
        for p in parameters:
            p.grad = torch.ones_like(p)
        norm = adam.project_gradients()
        n = sum(p.numel() for p in parameters)
        close(norm, n**0.5, n)
        adam.step(0.01, torch.ones(()), None)
        outcomes.append([p.detach() for p in parameters])
    for others in outcomes[1:]:
        for one, other, old in zip(outcomes[0], others, before, strict=True):
            # w - lr m / (sqrt(v) + eps), times 1.5 for W_dec
            close(one, other, n=24, magnitude=1.5 * (old.abs() + 0.01))


def test_gradients_have_the_memory_of_those_before():
    sae, parameters = made(5, 9, torch.float32)
    adam, places = FusedAdam(sae, parameters, BETAS), []
    for _ in range(3):
        grads = [memory.take((9, 5), torch.float32).normal_() for _ in range(2)]
        sae.W_dec.grad, sae.W_enc.grad = grads[0], grads[1].T
        places.append({grad.data_ptr() for grad in grads})
        adam.project_gradients()
        adam.step(0.01, torch.ones(()), None)
        assert sae.W_dec.grad is None and len(places[-1]) == 2
    assert places[0] == places[1] == places[2]
    assert memory.take((9, 4), torch.float32).shape == (9, 4)


def test_a_cpu_with_fast_kernels_takes_the_fused_way():
    sae, parameters = made(5, 9, torch.float32)
    assert isinstance(optimizer(sae, parameters, BETAS), TorchAdam)
    sae.kernels = sparse_numba
    assert isinstance(optimizer(sae, parameters, BETAS), FusedAdam)
