import math

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_within, close, gamma, unit_roundoff

from sae_sweeps.activations.synthetic import SyntheticWorld
from sae_sweeps.config.schema import SyntheticConfig
from sae_sweeps.evaluation import composition as composition_module
from sae_sweeps.evaluation import geometry
from sae_sweeps.evaluation.composition import composition, distinct
from sae_sweeps.evaluation.geometry import decoder_geometry, similarity_snapshot
from sae_sweeps.evaluation.labels import label_separation
from sae_sweeps.evaluation.recovery import recovery


def rows(n=23, d=6, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_geometry_equals_the_loops(monkeypatch):
    monkeypatch.setattr(geometry, "TILE", 7)
    W = rows()
    W[4] = 0  # a row that is nothing
    unit = [w / w.norm() for w in W if w.norm() > 0]
    cosine = [[float(a @ b) for b in unit] for a in unit]
    n = len(unit)
    nearest = sum(max(c for j, c in enumerate(row) if j != i) for i, row in enumerate(cosine)) / n
    mean = sum(abs(cosine[i][j]) for i in range(n) for j in range(i)) / (n * (n - 1) / 2)
    found = decoder_geometry(W)
    bound = 2 * gamma(3 * W.shape[1] + 8 + n * n, W.dtype)  # means of cosines, |a| |b| <= 1
    assert_within(found["nearest_neighbour_cosine"], nearest, bound)
    assert_within(found["mean_abs_cosine"], mean, bound)
    assert math.isnan(decoder_geometry(W[:1])["mean_abs_cosine"])


def test_snapshot_counts_every_pair_once_and_keeps_the_same_block(monkeypatch):
    monkeypatch.setattr(geometry, "TILE", 7)
    monkeypatch.setattr(geometry, "BLOCK", 5)
    W = rows()
    shot = similarity_snapshot(W)
    assert shot["histogram"].sum() == 23 * 22 / 2 and len(shot["histogram"]) == 50
    unit = F.normalize(W, dim=1)
    i, j = torch.triu_indices(23, 23, 1)
    high = ((unit[i] * unit[j]).sum(1).abs() >= 0.8).sum()
    assert shot["histogram"][40:].sum() == high
    again = similarity_snapshot(W.flip(1))
    assert (again["features"] == shot["features"]).all() and shot["block"].shape == (5, 5)
    cosine = float(unit[shot["features"][0]] @ unit[shot["features"][1]])
    assert_within(float(shot["block"][0, 1]), cosine, unit_roundoff(torch.float16), terms=1.0)  # stored in 16 bits
    monkeypatch.setattr(geometry, "SAMPLED", 10)
    assert similarity_snapshot(W)["histogram"].sum() == 45
    assert (similarity_snapshot(W, seed=1)["features"] != shot["features"]).any()


@pytest.fixture(scope="module")
def world():
    return SyntheticWorld(SyntheticConfig(d_in=48, n_features=24, n_correlated=8, n_hierarchical=8, l0=3.0))


def test_a_perfect_sae_recovers_everything(world):
    noise = F.normalize(rows(10, 48).float(), dim=1)
    W = torch.cat([noise, world.features_FD])[torch.randperm(34, generator=torch.Generator().manual_seed(0))]
    found = recovery(W, world.features_FD, world.kind, world.parent_F)
    for suffix in ("", "_correlated", "_hierarchical", "_plain", "_parents", "_children"):
        for name in ("mmcs", "matched"):  # means over 24 of cosines of 48 numbers in float32
            close(found[f"recovery_{name}{suffix}"], 1.0, n=3 * 48 + 8 + 24, dtype=torch.float32)
        assert found[f"recovery_share{suffix}"] == 1 and found[f"recovery_split{suffix}"] == 0


def test_split_and_merged_features_are_seen(world):
    true = world.features_FD
    W = torch.cat([true[1:], true[1:2] + 0.01, F.normalize(true[0:1] + true[20:21], dim=1)])
    found = recovery(W, true, world.kind, world.parent_F)
    assert found["recovery_split"] == pytest.approx(1 / 24) and found["recovery_split_correlated"] == pytest.approx(
        1 / 8
    )
    assert found["recovery_merged"] == pytest.approx(1 / 25)
    assert found["recovery_share"] == pytest.approx(23 / 24)


def test_a_row_is_matched_once(world):
    W = world.features_FD[:1].repeat(30, 1)
    found = recovery(W, world.features_FD, world.kind, world.parent_F)
    assert found["recovery_share"] == pytest.approx(1 / 24) and found["recovery_split"] == pytest.approx(1 / 24)
    fewer = recovery(world.features_FD[:5], world.features_FD, world.kind, world.parent_F)
    assert fewer["recovery_share"] == pytest.approx(5 / 24)


def test_recovery_by_chance_is_low(world):
    found = recovery(rows(48, 48).float(), world.features_FD, world.kind, world.parent_F)
    assert found["recovery_share"] == 0 and found["recovery_mmcs"] < 0.6


def test_labels_that_the_features_spell_out_are_found():
    labels = torch.arange(300) % 3
    f = F.one_hot(labels, 80).float() * (1 + rows(300, 1).float().abs())
    found = label_separation(f, labels)
    assert found["nmi"] == pytest.approx(1) and found["silhouette"] == pytest.approx(1, abs=1e-5)
    random = label_separation(torch.rand(300, 80, generator=torch.Generator().manual_seed(0)), labels)
    assert random["nmi"] < 0.1 and abs(random["silhouette"]) < 0.05
    assert label_separation(f, labels) == found  # the seed decides


def test_labels_too_few_or_features_that_never_fire_say_nothing():
    f = torch.rand(20, 5)
    assert label_separation(f, torch.zeros(20)) == {} and label_separation(f * 0, torch.arange(20) % 2) == {}
    assert label_separation(f, torch.arange(20)) == {}


def test_sums_of_few_atoms_are_composed_and_orthogonal_rows_are_not():
    atoms = F.normalize(rows(16, 32, seed=1).float(), dim=1)
    generator = torch.Generator().manual_seed(2)
    pairs = torch.randint(16, (256, 2), generator=generator)
    composed = composition(atoms[pairs[:, 0]] + atoms[pairs[:, 1]])
    orthogonal = composition(torch.linalg.qr(rows(64, 64).float())[0])
    assert composed["composition_rate"] > 0.8 > 0.6 > orthogonal["composition_rate"]
    assert orthogonal["distinct_features"] == 64
    assert composition(atoms[pairs[:, 0]] + atoms[pairs[:, 1]]) == composed


def test_equal_rows_are_one_feature(monkeypatch):
    monkeypatch.setattr(composition_module, "TILE", 3)
    unit = F.normalize(rows(10, 40).float(), dim=1)
    assert distinct(torch.cat([unit, unit, -unit])) == 20  # the opposite direction is another feature
    assert composition(unit[:3]) == {}
