"""The bound of a bfloat16 product holds, whatever the matrices."""

import pytest
import torch

from sae_sweeps.kernels import bounded

B, D, N = 12, 40, 64


def ordinary():
    return torch.randn(B, D), torch.randn(N, D)


def equal_values():
    return torch.ones(B, D) * 1.00390625, torch.full((N, D), -0.3)  # halfway between two numbers of bfloat16


def worst_roundings():
    """Every number is rounded by nearly as much as can be, and all errors add up."""
    return torch.full((B, D), 1 + 2.0**-8 + 2.0**-20), torch.full((N, D), 1 + 2.0**-8 + 2.0**-20)


def huge_and_tiny_norms():
    x, W = ordinary()
    return x * 10.0 ** torch.linspace(-30, 15, B)[:, None], W * 10.0 ** torch.linspace(-30, 15, N)[:, None]


def denormal():
    x, W = ordinary()
    return x * 1e-39, W


def denormal_products():
    x, W = ordinary()
    return x * 1e-20, W * 1e-22


def cancelling():
    """Products of opposite sign, so that z is a rounding error of its terms."""
    x, W = ordinary()
    return torch.cat([x, x], 1), torch.cat([W, -W + 1e-7 * torch.randn(N, D)], 1)


def one_large_number():
    x, W = ordinary()
    x[:, 3], W[:, 5] = 1e4, -1e4
    return x, W


CASES = [
    ordinary, equal_values, worst_roundings, huge_and_tiny_norms, denormal, denormal_products, cancelling,
    one_large_number,
]  # fmt: skip


def found(x, W, b):
    """z' + b, its bound, and z in float32 and float64."""
    X, rows = bounded.rounded(x), bounded.rounded(W)
    z = bounded.product(X, rows)
    return z.float() + b, bounded.bound(X, rows, z, b), x @ W.T + b, x.double() @ W.double().T + b.double()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_no_element_is_off_by_more(case, scale):
    torch.manual_seed(0)
    x, W = case()
    near, e, single, double = found(x, W, scale * torch.randn(N))
    assert (e > 0).all() and e.isfinite().all()
    for z in (single, double):
        assert ((z.double() - near.double()).abs() <= e.double()).all()


def test_the_bound_is_as_tight_as_the_roundings():
    """Where all errors add up it is nearly reached; ordinary numbers have half of the largest possible."""
    near, e, _, double = found(*worst_roundings(), torch.zeros(N))
    assert ((double - near).abs() / e).min() > 0.75
    torch.manual_seed(0)
    x, W = ordinary()
    near, e, _, _ = found(x, W, torch.zeros(N))
    largest = 2.0**-7 * x.norm(dim=1)[:, None] * W.norm(dim=1) + bounded.U * near.abs()
    assert (e / largest).mean() < 0.6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, 1e25])
def test_what_is_not_finite_is_not_bounded(value):
    torch.manual_seed(0)
    x, W = ordinary()
    x[1, 2] = value
    _, e, _, _ = found(x, W, torch.zeros(N))
    assert not e[1].isfinite().any() and e[0].isfinite().all()
    x, W = ordinary()
    W[1, 2] = value
    _, e, _, _ = found(x, W, torch.zeros(N))
    assert not e[:, 1].isfinite().any() and e[:, 0].isfinite().all()
