"""Competing cosines by Triton's kernels, under its interpreter, against all pairs in float64."""

import pytest
import torch
from bounds import assert_within, gamma

from sae_sweeps.kernels.coactivation import plain
from sae_sweeps.kernels.competition import Competition
from sae_sweeps.kernels.features import DenseFeatures, TopKFeatures

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("Triton is interpreted only where there is no GPU", allow_module_level=True)

from sae_sweeps.kernels import coactivation_triton  # noqa: E402

PART = 2.0**-22
"""Relative error of two float16 parts, and of the product that is left out."""


def case(d_sae, d_in, n_tokens, seed=0, scale=0.6):
    """Features from hardly ever to often active, so that some tiles are empty and some full."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(d_sae, d_in, generator=generator)
    rate = scale * torch.rand(d_sae, generator=generator) ** 3
    f = torch.rand(n_tokens, d_sae, generator=generator)
    f *= torch.rand(n_tokens, d_sae, generator=generator) < rate
    W /= W.norm(dim=1, keepdim=True)
    f[:, ((W @ W.T).abs() < 1e-4).any(0)] = 0  # so that the sign of every cosine that counts is certain
    return W, f


def equals_the_reference(W, f, competition):
    """Value and gradient within the bound that the module states; the number of pairs the same."""
    n_tokens, d_in = len(f.dense()), W.shape[1]
    value, pairs, grad = coactivation_triton.by_tiles(W, f, n_tokens, competition)
    wide = DenseFeatures(f.dense().double())
    expected, expected_pairs, expected_grad = plain(W.double(), wide, n_tokens, competition)
    assert pairs.shape == () and int(pairs) == expected_pairs
    # c_ij of all pairs, and what a cosine is off by
    active = (wide.values > 0).double()
    n = active.sum(0)
    both = active.T @ active
    c = competition.weigh(both, n[:, None], n, n_tokens).masked_fill(both == 0, 0).fill_diagonal_(0)
    size = W.double().abs()
    split = 3 * PART + 2.0**-24 * d_in**0.5
    of_cosine = split + gamma(3 * d_in + 8, torch.float32) * (size @ size.T)
    exponent = (1 / c[(c > 0) & (c < 1)] - 1).log().abs().amax() if competition.form == "sigmoid" else 0
    of_c = gamma(1, torch.float32) * (16 + 4 * float(exponent))
    cosine = W.double() @ W.double().T
    assert (cosine.abs() > of_cosine)[c > 0].all(), "a cosine so small that its sign may be the other one"
    terms = c * cosine.abs()
    of_part = 2.0**-25 + 8 * gamma(1, torch.float32)  # of the second part of a small c_ij, and of n - t near t
    assert_within(
        value,
        expected,
        ((c * of_cosine).sum() + (of_c + gamma(200, torch.float32)) * terms.sum()) / 2
        + of_part * cosine.abs()[c > 0].sum(),
    )
    of_products = split + of_c + gamma(3 * len(W), torch.float32)
    small = 2.0**-25 * c.sum(1, keepdim=True)  # of the second part of a small weight
    assert_within(grad, expected_grad, of_products * (c @ size) + of_part * ((c > 0).double() @ size) + small)


@pytest.fixture(autouse=True)
def panels(monkeypatch):
    """Small enough for several, of two rows of tiles each."""
    monkeypatch.setattr(coactivation_triton, "PANEL", 256)


@pytest.mark.parametrize("form", ["linear", "sigmoid"])
@pytest.mark.parametrize("overlap", coactivation_triton.OVERLAPS)
def test_every_competition(overlap, form):
    W, f = case(300, 40, 50)
    equals_the_reference(W, DenseFeatures(f), Competition(overlap, form, torch.tensor(0.3, dtype=torch.float64), 0.1))


@pytest.mark.parametrize("threshold", [1e-6, 0.05])
def test_several_panels_of_a_shape_that_is_no_multiple_of_anything(threshold):
    W, f = case(520, 70, 33)
    equals_the_reference(W, DenseFeatures(f), Competition("jaccard", "linear", threshold, 0.1))


def test_the_k_largest_of_which_some_are_0():
    W, f = case(200, 33, 40, scale=0.1)
    values, indices = f.topk(9, dim=1, sorted=False)
    assert (values == 0).any() and (values > 0).any()
    equals_the_reference(W, TopKFeatures(values, indices, 200), Competition("min", "linear", 0.2, 0.1))


def test_an_overlap_at_the_threshold_does_not_compete():
    """3 of 10 tokens: as exact a division as in torch, or a pair more would compete."""
    f = torch.zeros(10, 130)
    f[:, 0], f[:3, 1] = 1, 1
    W = case(130, 20, 10)[0]
    for threshold, n_pairs in ((0.3, 0), (0.29, 1)):
        value, pairs, grad = coactivation_triton.by_tiles(
            W, DenseFeatures(f), 10, Competition("jaccard", "linear", torch.tensor(threshold), 0.1)
        )
        assert int(pairs) == n_pairs and bool(value > 0) == bool(grad.any()) == bool(n_pairs)


def test_nothing_active_and_orthogonal_rows():
    W, f = case(200, 40, 20)
    competition = Competition("jaccard", "linear", 0.1, 0.1)
    value, pairs, grad = coactivation_triton.by_tiles(W, DenseFeatures(f * 0), 20, competition)
    assert value == 0 and pairs == 0 and not grad.any()
    value, pairs, grad = coactivation_triton.by_tiles(torch.eye(40), DenseFeatures(torch.ones(20, 40)), 20, competition)
    assert value == 0 and pairs == 40 * 39 / 2 and not grad.any()


def test_a_weight_that_is_not_a_number_makes_the_value_one_too():
    W, f = case(200, 40, 20)
    W[f.sum(0).argmax(), 3] = torch.nan
    assert coactivation_triton.by_tiles(W, DenseFeatures(f), 20, Competition("min", "linear", 0.1, 0.1))[0].isnan()
