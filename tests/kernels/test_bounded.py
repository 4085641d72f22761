"""The bound of a bfloat16 product holds and what is selected by it is exact, whatever the matrices."""

import pytest
import torch
from bounds import assert_within, gamma

from sae_sweeps.kernels import bounded, bounded_numba, sparse_numba
from sae_sweeps.kernels.launching import StepShape
from sae_sweeps.kernels.selection import product_block

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
    """z' + b, its upper bound as kernels have it, and z in float32 and float64."""
    z, *features, alpha, beta = bounded_numba.product(bounded_numba.rounded(x), bounded_numba.rounded(W, "W'"), b)
    up = torch.empty(z.shape)
    for i in range(len(z)):
        bounded_numba.uppers(z[i], *features, alpha[i], beta[i], up[i].numpy())
    near = torch.from_numpy(z).view(torch.bfloat16).float() + b
    return near, up, x @ W.T + b, x.double() @ W.double().T + b.double()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_no_element_is_off_by_more(case, scale):
    torch.manual_seed(0)
    x, W = case()
    near, up, single, double = found(x, W, scale * torch.randn(N))
    assert (up > near).all() and up.isfinite().all()
    for z in (single, double):
        assert (z <= up).all() and (z >= near - (up - near)).all()


def test_the_bound_is_as_tight_as_the_roundings():
    """Where all errors add up it is nearly reached; ordinary numbers have half of the largest possible."""
    near, up, _, double = found(*worst_roundings(), torch.zeros(N))
    assert ((double - near).abs() / (up - near)).min() > 0.75
    torch.manual_seed(0)
    x, W = ordinary()
    near, up, _, _ = found(x, W, torch.zeros(N))
    largest = 2.0**-7 * x.norm(dim=1)[:, None] * W.norm(dim=1) + bounded.U * near.abs()
    assert ((up - near) / largest).mean() < 0.6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, 1e25])
def test_what_is_not_finite_is_not_bounded(value):
    torch.manual_seed(0)
    x, W = ordinary()
    x[1, 2] = value
    _, up, _, _ = found(x, W, torch.zeros(N))
    assert not up[1].isfinite().any() and up[0].isfinite().all()
    x, W = ordinary()
    W[1, 2] = value
    _, up, _, _ = found(x, W, torch.zeros(N))
    assert not up[:, 1].isfinite().any() and up[:, 0].isfinite().all()


def z_of_all(x, W, block):
    """Every x.w, summed as `bounded_numba.dots` does."""
    start, feature = torch.arange(len(x) + 1) * len(W), torch.arange(len(W), dtype=torch.int32).repeat(len(x))
    z = bounded_numba.dots(start.numpy(), feature.numpy(), W.T, x, block)
    return torch.from_numpy(z).view(len(x), len(W))


def with_nothing_to_compute(case, value):
    x, W = case()
    x[2, 1], W[5, 3] = value, value
    return x, W


NOT_FINITE = [float("nan"), float("inf"), 1e25, 3e38]


@pytest.mark.parametrize("case", [*CASES, *NOT_FINITE], ids=lambda case: getattr(case, "__name__", str(case)))
@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("block", [0, 24])
def test_the_largest_are_those_of_all(case, k, block, monkeypatch):
    """The same numbers in the same places to the last bit, ties and what is not finite too."""
    monkeypatch.setattr(bounded_numba, "UNDECIDED", 1.0)
    torch.manual_seed(0)
    x, W = case() if callable(case) else with_nothing_to_compute(ordinary, case)
    for b in (torch.zeros(N), torch.randn(N).round()):
        values, indices = sparse_numba.bounded_largest(x, W.T, b, k, block)
        expected, places = sparse_numba.largest(z_of_all(x, W, block) + b, k)
        assert torch.equal(indices, places)
        torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", [*CASES, *NOT_FINITE], ids=lambda case: getattr(case, "__name__", str(case)))
@pytest.mark.parametrize("guess", [0.0, 1e-6, 1.0, 1e30])
def test_what_is_found_above_holds_the_largest_of_the_batch(case, guess, monkeypatch):
    monkeypatch.setattr(bounded_numba, "MOST_CANDIDATES", N)
    torch.manual_seed(0)
    x, W = case() if callable(case) else with_nothing_to_compute(ordinary, case)
    b, n = torch.randn(N), 3 * B
    found = sparse_numba.bounded_above(x, W.T, b, guess, n, 24)
    if not callable(case):
        assert found is None  # left to the product in float32
        return
    start, feature, values = found
    start_T = torch.arange(B + 1) * N
    every = torch.from_numpy(
        bounded_numba.dots(start_T.numpy(), torch.arange(N, dtype=torch.int32).repeat(B).numpy(), W.T, x, 24, b.numpy())
    ).view(B, N)
    token = torch.repeat_interleave(torch.arange(B), start.diff())
    assert torch.equal(values, every[token, feature]) and (values > 0).all()
    order = token * N + feature
    assert (order.diff() > 0).all()
    least = every.flatten().sort(descending=True).values[n - 1].clamp(min=torch.finfo().tiny)
    missed = every >= least
    missed[token, feature] = False
    assert not missed.any()


def test_a_bound_that_decides_nothing_leaves_the_product_in_float32():
    x, W, b = torch.ones(B, D), torch.full((2 * N, D), 0.3), torch.zeros(2 * N)
    assert bounded_numba.largest(x, W.T, b, 1, 0) is None and bounded_numba.above(x, W.T, b, 0.0, 1, 0) is None
    values, indices = sparse_numba.bounded_largest(x, W.T, b, 1, 0)
    expected, places = sparse_numba.product_and_largest(x, W.T, b, 1, torch.empty(B, 2 * N))
    assert torch.equal(values, expected) and torch.equal(indices, places)


def test_rounded_rows_and_bounds_of_their_norms():
    for case in CASES:
        torch.manual_seed(0)
        for rows in case():
            found, near = bounded_numba.rounded(rows), rows.to(torch.bfloat16)
            assert torch.equal(found.rows, near)
            for bound, of in ((found.norm, near), (found.rest, rows - near.float()), (found.whole, rows)):
                norm = of.double().norm(dim=1)
                rounding = gamma(2 * rows.shape[1] + 16, torch.float32)
                assert (bound >= norm).all() and (bound <= (norm + bounded.FLOOR) * (1 + rounding)).all()


@pytest.mark.parametrize("block", [0, 16, 24, 40, 100])
def test_dots_are_sums_of_products_of_any_block(block):
    torch.manual_seed(0)
    x, W = ordinary()
    expected = x.double() @ W.double().T
    bound = gamma(D + 2, torch.float32) * (x.double().abs() @ W.double().abs().T)
    assert_within(z_of_all(x, W, block), expected, bound)


def test_the_products_own_bits():
    """Where the order of the library's sums is found, each element of another product of this shape has its bits."""
    shape = StepShape(128, 512, 1024, 8)
    block = product_block(shape, torch.device("cpu"))
    x, W = torch.randn(128, 512), torch.randn(1024, 512)
    if block:
        assert torch.equal(z_of_all(x, W, block), x @ W.T)
    else:  # unknown here: then a sum in another order is no product's own
        assert not torch.equal(z_of_all(x, W, 512), x @ W.T)
