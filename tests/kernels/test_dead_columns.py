"""Products of the dead features' columns beside their definition in float64, values and gradients, ties and NaN.

Triton's kernels run under its interpreter (conftest.py), so that they need no GPU.
"""

import math

import pytest
import torch
from bounds import Rounding, assert_within, gamma, product_bound

from sae_sweeps.kernels import dead_columns, sparse, sparse_reference
from sae_sweeps.kernels.features import TopKFeatures
from sae_sweeps.kernels.pairs import per_token

B, N, D = 13, 90, 11


def drawn(seed=0, dtype=torch.float32):
    """x - b_dec, W_enc, b_enc, b_dec, W_dec and the error; values that a bfloat16 holds, so that products differ in
    their sums alone."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, D), (N, D), (N,), (D,), (N, D), (B, D)]
    x, W_enc, *rest = (torch.randn(*s, generator=generator).bfloat16().to(dtype) for s in shapes)
    return x, W_enc.T, *rest


def slow(z, dead, k, error, W_dec):
    """Token by token, from the words of the definition."""
    numbers, squares = dead.nonzero().squeeze(1).tolist(), []
    for row, target in zip(z, error, strict=True):
        ranked = sorted(numbers, key=lambda i: -row[i].item())[:k]
        squares.append((target - sum((torch.relu(row[i]) * W_dec[i] for i in ranked), 0 * target)).square().sum())
    return torch.stack(squares)


@pytest.fixture
def triton_kernels():
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("where there is a GPU, its kernels are compared on it")
    from sae_sweeps.kernels import dead_columns_triton

    return dead_columns_triton


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(("n_dead", "k"), [(0, 5), (40, 60), (40, 7), (N, 7)])
def test_values_and_gradients(triton_kernels, n_dead, k, linked):
    """Alone, and beside the main path, into whose gradients those of the dead columns are added."""
    x, W_enc, b_enc, b_dec, W_dec, error = drawn(n_dead)
    dead = torch.zeros(N, dtype=torch.bool)
    dead[torch.randperm(N, generator=torch.Generator().manual_seed(1))[:n_dead]] = True
    scale = torch.linspace(0.5, 2, B)

    def fast():
        weights = [w.clone().requires_grad_() for w in (W_enc.T, b_enc, b_dec, W_dec)]
        W = weights[0].T
        z = torch.addmm(b_enc, x, W_enc)
        main, total, target = None, 0.0, error
        if linked:
            values, indices = z.topk(6, dim=1)
            pairs = per_token(indices, N, sparse_reference)
            values = sparse.chosen(values.reshape(-1), pairs, x, W, *weights[1:3]).view_as(indices)
            main = TopKFeatures(values.relu(), indices, N, pairs)
            left, squares = sparse.residual(pairs, main.values.reshape(-1), weights[3], weights[2], x + error)
            total, target = squares.sum(), left + error - left.detach()
        of = (W, weights[1], weights[2], weights[3])
        squares = dead_columns.squares_left(triton_kernels, z, dead, k, target, x, of, main=main)
        term = (squares * scale).sum()
        alone = torch.autograd.grad(term, weights, retain_graph=True)
        again = torch.autograd.grad(total, weights, retain_graph=True) if linked else []
        return squares, alone, again, torch.autograd.grad(total + term, weights)

    def expected():
        weights = [w.double().clone().requires_grad_() for w in (W_enc.T, b_enc, b_dec, W_dec)]
        W, (b, c, V) = weights[0].T, weights[1:]
        z = (x.double() + c.detach() - c) @ W + b
        total = 0.0
        if linked:
            f = z.relu() * torch.zeros_like(z).scatter(1, z.topk(6, dim=1).indices, 1.0)
            total = (x + error - c - f @ V).square().sum()
        squares = slow(z, dead, k, error.double(), V)
        term = (squares * scale).sum()
        alone = [0 * w for w in weights]
        if n_dead:
            alone = torch.autograd.grad(term, weights, retain_graph=True)
        again = torch.autograd.grad(total, weights) if linked else []
        return squares, alone, again, [a + b for a, b in zip(alone, again or [0.0] * 4, strict=True)]

    rounding = Rounding(torch.float32)
    with rounding:
        wanted = expected()
    for part, (mine, theirs) in enumerate(zip(fast(), wanted, strict=True)):
        for one, other in zip([mine] if part == 0 else mine, [theirs] if part == 0 else theirs, strict=True):
            rounding.assert_close(one, other, factor=2, name=str(part))


def test_ties_and_numbers_that_are_none(triton_kernels):
    """As many as k at a tie, whichever; NaN is the largest, and NaN of a living feature is not seen."""
    z = torch.zeros(5, N)
    z[0, 3:30], z[1, ::2], z[2, 7:9] = 1.0, 2.0, torch.tensor([math.inf, 1e-30])
    z[3, 8], z[3, 3:6], z[4, 50] = math.nan, 1.0, math.nan
    dead = torch.arange(N) < 40
    number, n = (~dead).byte().argsort(stable=True), dead.sum(dtype=torch.int32)
    for product in (torch.float32, torch.bfloat16):
        for k in (1, 6, 39, 40, 41):
            f = triton_kernels.largest(z, number, n, k, product)[:, :40].float()
            expected = z[:, :40].topk(min(k, 40), dim=1).values.relu().sort(1).values
            found = f.topk(min(k, 40), dim=1).values.sort(1).values
            assert torch.equal(found.nan_to_num(7e9), expected.to(product).float().nan_to_num(7e9))
            assert (f != 0).sum(1).le(k).all()
            assert f[3].isnan().sum() == 1 and not f[4].isnan().any()
            assert torch.equal(dead_columns.masked(z, dead, k).ne(0).sum(1), f.ne(0).sum(1))


def test_each_product_in_bfloat16(triton_kernels):
    """Of numbers that a bfloat16 holds: the sums are float32's, and a result kept as bfloat16 is rounded once."""
    x, W_enc, _, _, W_dec, error = (t.double() for t in drawn(3))
    dead, product = torch.arange(N) % 3 == 0, torch.bfloat16
    number, n = (~dead).byte().argsort(stable=True), dead.sum(dtype=torch.int32)
    z = (x @ W_enc).bfloat16().float()
    f = triton_kernels.largest(z, number, n, 20, product)
    dense = dead_columns.masked(z, dead, 20).double()
    assert torch.equal(f[:, :n].double(), dense[:, dead])
    left = triton_kernels.left(f, number, n, W_dec.float(), error.float(), product)
    bound = 2 * product_bound(dense, W_dec, torch.float32) + gamma(1, torch.float32) * error.abs()
    assert_within(left, error - dense @ W_dec, bound)
    dots = triton_kernels.dots(error.float(), W_dec.float(), number, n, f, product)[:, :n].double()
    wanted = (error @ W_dec.T)[:, dead] * (dense[:, dead] > 0)
    bound = 2 * product_bound(error, W_dec.T[:, dead], torch.float32)
    assert_within(dots, wanted, gamma(2, product) * wanted.abs() + bound)  # the interpreter cuts digits off
    out, sums = torch.ones(N, D), torch.ones(N)
    triton_kernels.add_products(out, f, error.float(), number, n, product, sums)
    assert_within(
        out, 1 + dense.T @ error, 2 * product_bound(dense.T, error, torch.float32, more=1) + gamma(1, torch.float32)
    )
    assert_within(sums, 1 + dense.sum(0), 2 * gamma(B, torch.float32) * (1 + dense.sum(0)))
    assert out[~dead].eq(1).all()


def test_values_of_a_coarse_selection(triton_kernels):
    x, W_enc, b_enc, b_dec, W_dec, error = drawn(3)
    dead, z = torch.arange(N) % 3 == 0, (x @ W_enc + b_enc).bfloat16().float()
    weights = [w.clone().requires_grad_() for w in (W_enc.T, b_enc, b_dec, W_dec)]
    of = (weights[0].T, *weights[1:])
    squares = dead_columns.squares_left(triton_kernels, z, dead, 20, error, x, of, coarse=True)
    found = [squares, *torch.autograd.grad(squares.sum(), weights)]
    kept, exact = dead_columns.masked(z, dead, 20) > 0, [w.detach().double().requires_grad_() for w in weights]
    rounding = Rounding(torch.float32)
    with rounding:
        f = torch.where(kept, (x.double() + b_dec - exact[2]) @ exact[0].T + exact[1], 0.0).relu()
        squares = (error - f @ exact[3]).square().sum(1)
        wanted = [squares, *torch.autograd.grad(squares.sum(), exact)]
    for mine, theirs in zip(found, wanted, strict=True):
        rounding.assert_close(mine, theirs, factor=2)
