"""The bounds hold for what float32 makes of computations, are not far above it, and a wrong term exceeds them."""

import math

import pytest
import torch
import torch.nn.functional as F
from bounds import Rounding, assert_within, close, gamma, product_bound, unit_roundoff


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float().double()


def in_place(x, W):
    y = x @ W
    y[:, 1:].mul_(3).add_(x[:, :1])
    return y.sum(1)


def gradients(function):
    def of(x, W):
        x, W = x.detach().requires_grad_(), W.detach().requires_grad_()
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(function(x, W).square().sum(), [x, W])])

    return of


COMPUTATIONS = {
    "product": lambda x, W: x @ W,
    "product of a transposed view": lambda x, W: W.T @ x.T,
    "sum that cancels": lambda x, W: (x @ W - (x * 1.0) @ W[:, :1]).sum(0),
    "mean and quotient": lambda x, W: x.mean(1) / (1 + x.square().mean(1)),
    "unit rows": lambda x, W: F.normalize(x, dim=1) @ F.normalize(W, dim=0),
    "logarithm of softmax": lambda x, W: (x @ W).log_softmax(1),
    "softmax": lambda x, W: (x @ W).softmax(1),
    "powers and roots": lambda x, W: (
        (W.abs() + 0.1).sqrt().sum() + (x.abs() + 0.1) ** 0.7 + x.exp() + x.square().log1p()
    ),
    "sigmoid and tanh": lambda x, W: torch.sigmoid(x @ W) * torch.tanh(x @ W),
    "changed in place": in_place,
    "scattered": lambda x, W: x.new_zeros(9).index_add(0, torch.arange(x.numel()) % 9, x.flatten()),
    "spread": lambda x, W: x.std(0),
}
COMPUTATIONS |= {
    f"gradients of {name}": gradients(COMPUTATIONS[name])
    for name in ("product", "unit rows", "logarithm of softmax", "softmax", "powers and roots", "sigmoid and tanh")
}


@pytest.mark.parametrize("name", COMPUTATIONS)
def test_bounds_hold_and_are_of_use(name):
    x, W = normal(40, 24), normal(24, 7, seed=1)
    rounding = Rounding(torch.float32)
    with rounding:
        expected = COMPUTATIONS[name](x, W)
    found = COMPUTATIONS[name](x.float(), W.float())
    assert found.dtype == torch.float32
    rounding.assert_close(found, expected, name=name)
    share = ((found.double() - expected).abs() / rounding.bound(expected)).max()
    assert share > 1e-3, "a bound a thousand times above what rounding does"
    for wrong in (found * 1.01, -found, torch.zeros_like(found)):
        with pytest.raises(AssertionError, match="off by more than their bound"):
            rounding.assert_close(wrong, expected)


def test_one_of_many_terms_left_out_exceeds_the_bound():
    a, b = normal(3, 500), normal(500, 4, seed=1)
    bound = product_bound(a, b, torch.float32)
    assert_within(a.float() @ b.float(), a @ b, bound)
    with pytest.raises(AssertionError, match="off by more"):
        assert_within(a[:, :-1].float() @ b[:-1].float(), a @ b, bound)


def test_gamma_is_the_formula_and_refuses_what_leaves_no_digit():
    assert unit_roundoff(torch.float32) == 2.0**-24 and unit_roundoff(torch.bfloat16) == 2.0**-8
    assert gamma(10, torch.float32) == 10 * 2.0**-24 / (1 - 10 * 2.0**-24)
    with pytest.raises(AssertionError, match="no digit"):
        gamma(256, torch.bfloat16)


def test_a_sum_near_cancellation_may_be_off_by_what_its_terms_are_worth():
    terms = torch.tensor([1e4, -1e4, 1e-3], dtype=torch.float32)
    found = float((terms[0] + terms[2]) + terms[1])
    assert found != pytest.approx(1e-3, rel=1e-2)
    with pytest.raises(AssertionError):  # a relative bound is none here
        close(found, 1e-3, n=3, dtype=torch.float32)
    close(found, 1e-3, n=3, dtype=torch.float32, magnitude=2e4, terms=2e4)


def test_a_bound_that_proves_nothing_is_refused():
    with pytest.raises(AssertionError, match="proves nothing"):
        assert_within(1.0, 1.0, 0.02)
    with pytest.raises(AssertionError, match="not finite"):
        assert_within(1.0, 1.0, math.inf)
    with pytest.raises(AssertionError):
        assert_within(math.nan, 1.0, 1e-3)
    with pytest.raises(NotImplementedError, match="no rule"), Rounding():
        torch.erfinv(torch.tensor(0.5))


def test_coarser_dtypes_on_the_way_count():
    x = normal(30)
    with Rounding() as rounding:
        through = x.to(torch.bfloat16).double()
    assert ((through - x).abs() <= rounding.bound(through)).all()
    assert rounding.bound(through).max() >= (through - x).abs().max() > unit_roundoff(torch.float32)
