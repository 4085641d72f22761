"""Features above a threshold by a product in bfloat16 and its bound: all of them and no other, whatever the numbers."""

import pytest
import torch
from bounds import product_bound, unit_roundoff

from sae_sweeps.kernels import bounded_threshold_numba, sparse_reference

B, D, N = 20, 40, 64


def ordinary():
    return torch.randn(B, D), torch.randn(N, D), torch.randn(N)


def at_the_threshold():
    """Equal pre-activations, halfway between two numbers of bfloat16."""
    return torch.full((B, D), 1.00390625), torch.full((N, D), -0.3), torch.linspace(11.9, 12.2, N)


def huge_and_tiny_norms():
    x, W, b = ordinary()
    return x * 10.0 ** torch.linspace(-30, 15, B)[:, None], W * 10.0 ** torch.linspace(-30, 15, N)[:, None], b * 1e-5


def denormal():
    x, W, b = ordinary()
    return x * 1e-20, W * 1e-22, b * 1e-40


def cancelling():
    """Products of opposite sign, so that z is a rounding error of its terms."""
    x, W, b = ordinary()
    return torch.cat([x, x], 1), torch.cat([W, -W + 1e-7 * torch.randn(N, D)], 1), b * 1e-6


@pytest.fixture
def everywhere(monkeypatch):
    """Taken however many are undecided, in more than one product."""
    monkeypatch.setattr(bounded_threshold_numba, "MOST", 1.0)
    monkeypatch.setattr(bounded_threshold_numba, "TOKENS", 8)


@pytest.mark.parametrize("case", [ordinary, at_the_threshold, huge_and_tiny_norms, denormal, cancelling])
@pytest.mark.parametrize("each", [False, True], ids=["one threshold", "one for each feature"])
@pytest.mark.parametrize("block", [0, 24])
def test_all_above_and_no_other(case, each, block, everywhere):
    torch.manual_seed(0)
    x, W, b = case()
    threshold = 0.3 * b.abs() if each else 0.0
    start, feature, values = bounded_threshold_numba.active(x, W.T, b, threshold, block)
    z = x.double() @ W.double().T + b.double()
    rounding = product_bound(x, W.T, torch.float32, more=1) + 4 * unit_roundoff(torch.float32) * (z.abs() + b.abs())
    rounding += 1e-37  # a processor may take what is smaller as 0
    token = torch.arange(B).repeat_interleave(start.diff())
    found = torch.zeros(B, N, dtype=torch.bool)
    found[token, feature] = True
    least = torch.as_tensor(threshold).double().expand(N)
    assert found[z > least + rounding].all() and not found[z < least - rounding].any()
    assert ((values.double() - z[token, feature]).abs() <= rounding[token, feature]).all()
    assert (values > torch.as_tensor(threshold).expand(N)[feature]).all()
    assert (((token * N + feature).diff()) > 0).all()  # in order, none twice


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_not_finite_is_computed_in_float32(number, everywhere):
    torch.manual_seed(0)
    x, W, b = torch.randint(-8, 8, (B, D)).float(), torch.randint(-8, 8, (N, D)).float(), torch.zeros(N)
    x[1, 2], x[9, 3] = number, -number
    expected = sparse_reference.above(x @ W.T + b, 0.5, B * N)
    found = bounded_threshold_numba.active(x, W.T, b, 0.5, 0)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[2], expected[2], rtol=D * torch.finfo(torch.float32).eps, atol=0)


def test_few_are_computed_in_float32(monkeypatch):
    """With one in thirty active hardly more; where many are, nothing is found, and the product in float32 is due."""
    torch.manual_seed(0)
    x, W = torch.randn(300, 256), torch.randn(400, 256)
    b, computed = torch.full((400,), -30.0), []
    dots = bounded_threshold_numba.dots
    monkeypatch.setattr(bounded_threshold_numba, "dots", lambda *a: computed.append(len(a[1])) or dots(*a))
    start, *_ = bounded_threshold_numba.active(x, W.T, b, 0.0, 0)
    z = x @ W.T + b
    largest_bound = 2.0**-7 * x.norm(dim=1)[:, None] * W.norm(dim=1) + 2.0**-8 * (z - b).abs()
    near = int((z + 2 * largest_bound > 0).sum())
    assert 0.02 * z.numel() < int(start[-1]) <= computed[0] <= near < z.numel() / 10
    assert bounded_threshold_numba.active(x, W.T, b + 30, 0.0, 0) is None and len(computed) == 1
