import pytest
import torch
import torch.nn.functional as F

from sae_sweeps.evaluation import composition as composition_module
from sae_sweeps.evaluation.composition import composition, meta_sae_explains


def gaussian(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(composition_module, "STEPS", 100)
    composition_module.by_chance.cache_clear()
    yield
    composition_module.by_chance.cache_clear()


def test_random_rows_are_as_composed_as_chance_and_sums_of_atoms_more():
    by_chance = composition(gaussian(96, 24, seed=5))
    assert by_chance["composition_rate"] == pytest.approx(by_chance["composition_rate_random"], abs=0.05)
    atoms = F.normalize(gaussian(12, 24), dim=1)
    first, second = torch.randint(12, (2, 96), generator=torch.Generator().manual_seed(1))
    composed = composition(atoms[first] + atoms[second])
    assert composed["composition_rate_random"] == by_chance["composition_rate_random"]
    assert composed["composition_rate"] > by_chance["composition_rate"] + 0.2


def test_orthonormal_rows_have_the_share_of_the_latents():
    rows = torch.linalg.qr(gaussian(64, 64))[0]
    assert meta_sae_explains(rows, seed=0) == pytest.approx(1 / composition_module.RATIO, abs=0.02)


def test_of_many_rows_a_seeded_sample_is_taken(monkeypatch):
    monkeypatch.setattr(composition_module, "MOST_ROWS", 40)
    rows = F.normalize(gaussian(100, 16), dim=1)
    assert meta_sae_explains(rows, 0) == meta_sae_explains(rows, 0) != meta_sae_explains(rows, 1)


def test_a_row_of_zeros_is_no_feature():
    rows = gaussian(20, 8, seed=2)
    padded = torch.cat([rows, torch.zeros(3, 8)])
    assert composition(padded) == composition(rows)
