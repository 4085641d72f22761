"""Each fast kernel beside its plain reference, values and gradients."""

import importlib
import math

import pytest
import torch
from bounds import Rounding, assert_within, gamma, product_bound

from sae_sweeps.kernels import cost, sparse, sparse_reference
from sae_sweeps.kernels.ahead import _prepare_cpu
from sae_sweeps.kernels.choose import choose
from sae_sweeps.kernels.pairs import Pairs, largest_pairs, per_token

SIZES = {"numba": (70, 300, 21), "triton": (7, 40, 5)}
"""B, d_sae and d_in; the interpreter takes a tenth of a second for a row."""


def kernels_of(name):
    """Triton's run under its interpreter (conftest.py), so that they need no GPU."""
    if name == "sparse_triton":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("where there is a GPU, `python -m bench --device cuda` compares Triton's kernels on it")
    return importlib.import_module(f"sae_sweeps.kernels.{name}")


@pytest.fixture(params=["sparse_numba", "sparse_triton"])
def fast(request, monkeypatch):
    monkeypatch.setattr(cost, "dense_is_cheaper", lambda *_: False)
    return kernels_of(request.param)


@pytest.fixture(params=["sparse_numba", "sparse_triton", "dense products"])
def either(request, monkeypatch):
    """Kernels whose sums over pairs a GPU may replace by dense products."""
    monkeypatch.setattr(cost, "dense_is_cheaper", lambda *_: request.param == "dense products")
    return kernels_of("sparse_triton" if request.param == "dense products" else request.param)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ragged(kernels, seed=0, share=0.04):
    """Pairs with rows and features of any length, some empty, one full."""
    B, N, _ = SIZES[kernels.NAME]
    active = torch.rand(B, N, generator=torch.Generator().manual_seed(seed)) < share
    active[3], active[:, 7], active[5] = False, False, True
    start = torch.cat([torch.zeros(1, dtype=torch.int64), active.sum(1).cumsum(0)])
    return Pairs(start, active.nonzero()[:, 1], N, kernels, ordered=True)


def equals(function, found, *arguments):
    """What a fast kernel found is the reference's in float64, within the rounding of the kernel's dtype."""
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    rounding = Rounding(tensors[0].dtype)
    with rounding:
        expected = function(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
    several = isinstance(expected, tuple)
    for one, other in zip(found if several else [found], expected if several else [expected], strict=True):
        rounding.assert_close(one, other, factor=2)  # twice: in float64 the reference rounds as much


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("n", "k"), [(300, 1), (300, 5), (300, 130), (300, 300), (256, 64), (5, 2), (2000, 32), (1025, 1)]
)
def test_largest(fast, n, k, dtype):
    z = normal(70 if fast.NAME == "numba" else 2, n, seed=k, dtype=dtype)
    values, indices = fast.largest(z, k)
    expected = z.topk(k, dim=1).values
    assert torch.equal(values.sort(1, descending=True).values, expected)
    assert torch.equal(z.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_largest_with_ties_and_without_numbers(fast):
    z = torch.zeros(7, 40)
    z[1, 10:14], z[2] = 1.0, -math.inf
    z[4, 20], z[6] = math.nan, math.nan
    values, indices = fast.largest(z, 6)
    assert values[0].eq(0).all() and values[1].sum() == 4 and values[2].eq(-math.inf).all()
    assert all(len(set(row)) == 6 for row in indices.tolist())
    assert values[4].isnan().any() and values[6].isnan().any() and not values[5].isnan().any()


def test_largest_among_numbers_of_any_size(fast):
    """Infinite ones, ties at the k-th place and at the largest, numbers far apart."""
    z = torch.zeros(7, 600)
    z[0], z[0, 50:53] = -math.inf, torch.tensor([2.0, -3.0, 1e-30])
    z[1, 10:16], z[1, 20] = math.inf, -math.inf
    z[2, 10:12], z[2, 12:500] = math.inf, 3e38
    z[3] = torch.logspace(-37, 38, 600)
    z[4, :5], z[4, 5:] = 1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    z[5, 100:], z[6] = -1e-40, -3.4e38
    for k in (1, 4, 6, 100):
        values, indices = fast.largest(z, k)
        assert torch.equal(values.sort(1, descending=True).values, z.topk(k, dim=1).values)
        assert torch.equal(z.gather(1, indices), values)
        assert all(len(set(row)) == k for row in indices.tolist())


def test_largest_of_a_product(fast):
    x, W_enc, b_enc = normal(7, 5), normal(30, 5, seed=1).T, normal(30, seed=2)
    z = torch.empty(7, 30, dtype=torch.float64)
    values, indices = fast.product_and_largest(x, W_enc, b_enc, 3, z)
    assert_within(z, x @ W_enc + b_enc, 2 * (product_bound(x, W_enc, x.dtype, more=1) + gamma(1) * b_enc.abs()))
    assert torch.equal(values.sort(1, descending=True).values, z.topk(3, dim=1).values)
    assert torch.equal(z.gather(1, indices), values)


@pytest.mark.parametrize("threshold", [-5.0, 0.0, 1.5, 10.0])
def test_above(fast, threshold):
    B, N, _ = SIZES[fast.NAME]
    z = normal(B, N)
    z[4, :40], z[5, 3] = threshold, math.nan
    for found, expected in zip(
        fast.above(z, threshold, B * N), sparse_reference.above(z, threshold, B * N), strict=True
    ):
        assert torch.equal(found, expected)
    each = normal(N, seed=1)
    found, expected = (kernels.above(z, each, B * N) for kernels in (fast, sparse_reference))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert fast.above(z, -5.0, 10) is None and sparse_reference.above(z, -5.0, 10) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["ragged", "topk", "none"])
def test_each_operation_equals_its_reference(either, kind, dtype):
    B, N, D = SIZES[either.NAME]
    if kind == "ragged":
        pairs = ragged(either)
    else:
        pairs = per_token(normal(B, N).topk(9 if kind == "topk" else 0, dim=1).indices, N, either)
    values, W, g = (normal(*s, seed=i, dtype=dtype) for i, s in enumerate([(len(pairs.feature),), (N, D), (B, D)]))
    for name, arguments in {
        "decode": (pairs, values, W),
        "dots": (pairs, W, g),
        "residual": (pairs, values, W, W[0], g),
        "weight_gradient": (pairs, values, g),
        "combination": (W[:, 0].contiguous(), W),
        "sums": (pairs, values),
    }.items():
        equals(getattr(sparse_reference, name), getattr(either, name)(*arguments), *arguments)
    for found, expected in zip(either.transposed(pairs), sparse_reference.transposed(pairs), strict=True):
        assert torch.equal(found.long(), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_of_the_decoder(fast, dtype):
    _, N, D = SIZES[fast.NAME]
    W, grad = normal(N, D, dtype=dtype), normal(N, D, seed=1, dtype=dtype)
    W[5] = 0

    def of(kernels):
        def both(rows, gradient):
            rows, gradient = rows.clone(), gradient.clone()
            kernels.normalize(rows)
            kernels.remove_parallel(gradient, rows)
            return rows, gradient

        return both

    equals(of(sparse_reference), of(fast)(W, grad), W, grad)


def test_gradients_of_encoder_and_decoder(either):
    """Against autograd through dense matrices, in float64, with a loss on z itself beside."""
    pairs = ragged(either)
    B, N, D = SIZES[either.NAME]
    x, W_enc = normal(B, D), normal(N, D, seed=1).T.requires_grad_()
    b_enc, b_dec, W_dec = (normal(*s, seed=2).requires_grad_() for s in ((N,), (D,), (N, D)))
    weights = [W_enc, b_enc, b_dec, W_dec]

    def loss(z, values, x_hat):
        return (x_hat + b_dec - x).square().sum() + (values**3).sum() + 0.1 * z.square().sum()

    centred = x - b_dec.detach()
    z = sparse.pre_activations(centred, W_enc, b_enc, b_dec)
    values = sparse.chosen(z[pairs.token, pairs.feature], pairs, centred, W_enc, b_enc, b_dec)
    found = loss(z, values, sparse.decode(pairs, values, W_dec))
    grads = torch.autograd.grad(found, weights)

    rounding = Rounding()
    with rounding:
        z = (x - b_dec) @ W_enc + b_enc
        values = z[pairs.token, pairs.feature]
        expected = loss(z, values, sparse_reference.dense(pairs, values) @ W_dec)
        expected_grads = torch.autograd.grad(expected, weights)
    for one, other in zip([found, *grads], [expected, *expected_grads], strict=True):
        rounding.assert_close(one, other, factor=2)
    assert grads[0].T.is_contiguous()  # stored by feature, as the weights


@pytest.mark.parametrize("looks_at", ["squares", "their mean", "error", "both", "neither"])
def test_gradients_of_the_residual(either, looks_at):
    """Against autograd through dense matrices, in float64, with a weight for each token."""
    pairs = ragged(either)
    B, N, D = SIZES[either.NAME]
    x, weight = normal(B, D), normal(B, seed=3)
    values, b, W = (normal(*s, seed=i).requires_grad_() for i, s in enumerate([(len(pairs.feature),), (D,), (N, D)]))

    def gradients(error, squares):
        loss = values.sum() + b.sum() + W.sum()
        loss = loss + ((weight * squares).sum() if looks_at in ("squares", "both") else 0)
        loss = loss + (squares.mean() if looks_at == "their mean" else 0)
        loss = loss + ((error**3).sum() if looks_at in ("error", "both") else 0)
        return torch.autograd.grad(loss, [values, b, W])

    rounding = Rounding()
    with rounding:
        plain = x - b - sparse_reference.dense(pairs, values) @ W
        expected = gradients(plain, plain.square().sum(1))
    for one, other in zip(gradients(*sparse.residual(pairs, values, W, b, x)), expected, strict=True):
        rounding.assert_close(one, other, factor=2)


@pytest.mark.parametrize("in_order", [True, False])
def test_sums_by_blocks_of_rows_and_columns(in_order):
    """Of a matrix of three blocks of rows and of columns, with lists in any order, one full and one empty."""
    blocks = importlib.import_module("sae_sweeps.kernels.blocks_numba")
    B, N, D = blocks.ROWS + 3, 2 * blocks.ROWS + 1, 2 * (blocks.WIDTH // 8) + 5
    active = torch.rand(B, N, generator=torch.Generator().manual_seed(0)) < 0.01
    active[3], active[5] = False, True
    pairs = Pairs(torch.cat([torch.zeros(1).long(), active.sum(1).cumsum(0)]), active.nonzero()[:, 1], N, sparse)
    if not in_order:
        key = pairs.token + torch.rand(len(pairs.feature), generator=torch.Generator().manual_seed(1))
        pairs.feature = pairs.feature[key.argsort()]
    values, W, g = normal(len(pairs.feature)), normal(N, D, seed=1), normal(B, D, seed=2)
    sums, products = torch.full_like(g, math.nan), torch.full_like(values, math.nan)
    lists = pairs.start.numpy(), pairs.feature.numpy()
    blocks.combinations(*lists, values.numpy(), W.numpy(), sums.numpy())
    blocks.products(*lists, W.numpy(), g.numpy(), products.numpy())
    equals(lambda v, W: sparse_reference.decode(pairs, v, W), sums, values, W)
    equals(lambda W, g: sparse_reference.dots(pairs, W, g), products, W, g)


def test_threads_do_not_change_a_bit():
    fast = importlib.import_module("sae_sweeps.kernels.sparse_numba")
    B, N, D = SIZES["numba"]
    pairs, W = ragged(fast), normal(N, D, dtype=torch.float32)
    values, g = normal(len(pairs.feature), dtype=torch.float32), normal(B, D, dtype=torch.float32)
    results, long = [], normal(3000, D, dtype=torch.float32)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append([fast.decode(pairs, values, W), fast.dots(pairs, W, g)])
            results[-1] += fast.residual(pairs, values, W, W[0], g)
            results[-1] += [fast.sums(pairs, values), fast.combination(long[:, 0], long)]
            results[-1] += [fast.weight_gradient(pairs, values, g), *fast.largest(g @ W.T, 9)]
        finally:
            torch.set_num_threads(1)
    for one, other in ((results[0], results[1]), (results[0], results[2])):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_is_compiled_ahead_is_what_steps_need():
    _prepare_cpu(torch.device("cpu"))  # raises where a kernel cannot take its arguments


def test_what_is_asked_for_is_chosen():
    assert choose("reference", torch.device("cpu")) is None
    assert choose("auto", torch.device("cpu")).NAME == "numba"


@pytest.mark.parametrize("n", [1, 12, 100, 280])
def test_the_largest_pairs_of_a_batch(n):
    """As many as wanted at ties too, in order of token and feature; NaN is the largest."""
    z = normal(7, 40)
    z[2], z[3, ::2], z[4, 20] = 1.0, 2.0, math.nan
    pairs, values = largest_pairs(z, n, sparse_reference)
    place = pairs.token * 40 + pairs.feature
    assert len(place) == n and bool((place.diff() > 0).all()) and pairs.start[-1] == n
    assert values.equal(z.flatten()[place]) or values.isnan().sum() == 1
    expected = z.flatten().topk(n).values
    assert torch.equal(values.nan_to_num(9.0).sort(descending=True).values, expected.nan_to_num(9.0))


def test_the_same_pairs_by_part_of_the_dictionary():
    pairs, values = largest_pairs(normal(7, 40), 90, sparse_reference)
    parts = pairs.by_part((3, 10, 40))
    expected = sparse_reference.dense(pairs, values)
    found = sparse_reference.dense(parts, values).view(7, 3, 40)
    for part, (first, end) in enumerate([(0, 3), (3, 10), (10, 40)]):
        assert torch.equal(found[:, part, first:end], expected[:, first:end])
    assert torch.equal(found.sum(1), expected)
    for one, other in zip(parts.transposed, sparse_reference.transposed(parts), strict=True):
        assert torch.equal(one, other)
