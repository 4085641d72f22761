"""A bijection for every n, another for every seed, without a pattern."""

import numpy as np
import pytest

from sae_sweeps.activations.permutation import permute


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 1000, 4097, 100003])
def test_bijection(n):
    assert np.array_equal(np.sort(permute(np.arange(n), n, 3, 1)), np.arange(n))


def test_any_part_alone_is_the_same_part():
    whole = permute(np.arange(5000), 5000, 1)
    assert np.array_equal(permute(np.arange(777, 999), 5000, 1), whole[777:999])


def test_large_n_costs_only_what_is_asked():
    n = 2**40 + 12345
    index = np.arange(n - 4096, n)
    image = permute(index, n, 0)
    assert image.min() >= 0 and image.max() < n and len(np.unique(image)) == 4096
    assert abs(image.mean() / n - 0.5) < 0.03


def test_every_seed_and_part_of_it_counts():
    images = [permute(np.arange(500), 500, *seed) for seed in [(0,), (1,), (0, 0), (0, 1), (1, 0)]]
    for i, one in enumerate(images):
        for other in images[:i]:
            assert (one == other).sum() < 10  # one is expected by chance


def test_looks_uniform():
    n, seeds = 16, 4000
    counts = np.zeros((n, n))
    for seed in range(seeds):
        counts[np.arange(n), permute(np.arange(n), n, seed)] += 1
    expected = seeds / n
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5
    # Neighbours do not stay neighbours: |difference| of images of i and i + 1 is n/3 on average.
    image = permute(np.arange(100_000), 100_000, 5)
    assert abs(np.abs(np.diff(image)).mean() / 100_000 - 1 / 3) < 0.01


def test_index_beyond_n():
    with pytest.raises(ValueError, match="index 10 is not below n = 10"):
        permute(np.array([3, 10]), 10, 0)
