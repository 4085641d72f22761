import statistics

import torch
from bounds import assert_within, gamma

from sae_sweeps.evaluation.geometry import decoder_geometry


def decoder(n=11, d=5):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_the_median_of_the_nearest_neighbours_equals_the_loops():
    for n in (10, 11):
        unit = [w / w.norm() for w in decoder(n)]
        nearest = [max(float(a @ b) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
        found = decoder_geometry(decoder(n))
        bound = gamma(3 * 5 + 8 + n)  # of cosines of 5 numbers, |a| |b| <= 1, and their mean; both sides round
        assert_within(found["nearest_neighbour_cosine_median"], statistics.median(nearest), 2 * bound)
        assert_within(found["nearest_neighbour_cosine"], statistics.mean(nearest), 2 * bound)


def test_nearness_has_a_sign_and_mean_cosine_has_none():
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert decoder_geometry(opposite)["nearest_neighbour_cosine"] == -1
    assert decoder_geometry(opposite)["mean_abs_cosine"] == 1


def test_weights_in_16_bit_are_measured_in_float32():
    stored = decoder().to(torch.bfloat16)
    exact = decoder_geometry(stored.double())
    found = decoder_geometry(stored)
    assert found.keys() == exact.keys()
    for name, value in exact.items():  # means of cosines of 5 numbers in float32
        assert_within(found[name], value, gamma(3 * 5 + 8 + 55, torch.float32), name)
