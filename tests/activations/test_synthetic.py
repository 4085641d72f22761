"""The synthetic world does what its config says, measured on what it draws."""

from statistics import NormalDist

import numpy as np
import pytest
import torch

from sae_sweeps.activations.synthetic import CHUNK, SyntheticWorld
from sae_sweeps.config.schema import CHILD_RATE, SyntheticConfig
from sae_sweeps.config.typed import check_values
from sae_sweeps.errors import ConfigError

SMALL = {"d_in": 16, "n_features": 40, "l0": 6.0, "n_correlated": 12, "n_hierarchical": 16}


@pytest.fixture(scope="module")
def world():
    return SyntheticWorld(SyntheticConfig(**SMALL))


@pytest.fixture(scope="module")
def active_BF(world):
    return torch.cat([world.sample(chunk)[1] for chunk in range(60)]) > 0


def test_activations_are_the_features_they_are_made_of(world):
    x_BD, coefficients_BF = world.sample(3)
    torch.testing.assert_close(world.features_FD.norm(dim=1), torch.ones(40))
    noise_BD = x_BD.double() - coefficients_BF.double() @ world.features_FD.double()
    assert x_BD.shape == (CHUNK, 16) and abs(noise_BD.std() - 0.01) < 5e-4
    magnitudes = coefficients_BF[coefficients_BF > 0]
    assert abs(magnitudes.mean() - 1) < 0.02 and abs(magnitudes.std() - 0.25) < 0.02 and magnitudes.min() >= 0.1


def test_sparsity_and_rates(world, active_BF):
    assert abs(active_BF.sum(1).float().mean() - 6.0) < 0.1
    torch.testing.assert_close(active_BF.float().mean(0), world.rate_F, atol=0.01, rtol=0)


def test_kinds_and_families(world):
    assert world.kind == ["correlated"] * 12 + ["hierarchical"] * 16 + ["plain"] * 12
    assert world.group_F[:12].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2] and set(world.group_F[12:].tolist()) == {
        -1
    }
    assert world.parent_F[12:28].tolist() == [
        p for p in (-1, 12, 12, 12, -1, 16, 16, 16, -1, 20, 20, 20, -1, 24, 24, 24)
    ]


def test_a_child_fires_only_with_its_parent(world, active_BF):
    for child in torch.nonzero(world.parent_F >= 0).flatten():
        parent_B, child_B = active_BF[:, world.parent_F[child]], active_BF[:, child]
        assert not (child_B & ~parent_B).any()
        assert abs(child_B[parent_B].float().mean() - CHILD_RATE) < 0.03


def test_groups_fire_together_as_the_copula_says(world, active_BF):
    """P(both) = E_g[Phi((t - sqrt(rho) g) / sqrt(1 - rho))^2], by a fine sum over g."""
    rate, rho = float(world.rate_F[0]), world.cfg.correlation
    threshold = NormalDist().inv_cdf(rate)
    g = np.linspace(-8, 8, 4001)
    inner = [NormalDist().cdf((threshold - rho**0.5 * x) / (1 - rho) ** 0.5) ** 2 for x in g]
    expected = np.sum(np.array(inner) * np.exp(-(g**2) / 2) / np.sqrt(2 * np.pi)) * (g[1] - g[0])
    together = [(active_BF[:, i] & active_BF[:, i + 1]).float().mean().item() for i in (0, 1, 2, 4, 5, 6, 8, 9, 10)]
    assert abs(np.mean(together) - expected) < 0.003
    across = [(active_BF[:, i] & active_BF[:, i + 4]).float().mean().item() for i in range(8)]
    assert abs(np.mean(across) - rate**2) < 0.003 < expected - rate**2


def test_pure_function_of_seed_split_and_chunk(world):
    again = SyntheticWorld(SyntheticConfig(**SMALL))
    again.sample(0)
    assert torch.equal(again.sample(7)[0], world.sample(7)[0])
    other = SyntheticWorld(SyntheticConfig(**SMALL, world_seed=1))
    for x_BD in (world.sample(8)[0], world.sample(7, "held_out")[0], other.sample(7)[0]):
        assert not torch.allclose(x_BD, world.sample(7)[0])
    assert torch.equal(world.features_FD, again.features_FD) and not torch.equal(world.features_FD, other.features_FD)


def test_a_stream_may_start_anywhere(world):
    x_ND = torch.cat([world.sample(chunk)[0] for chunk in range(3)])
    parts = list(world.stream(1000, 2500, context=16))
    assert torch.equal(torch.cat([part.x for part in parts]), x_ND[1000:2500])
    number_N = torch.cat([part.sequence * 16 + part.position for part in parts])
    assert torch.equal(number_N, torch.arange(1000, 2500, dtype=torch.int32))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"n_correlated": 30}, "exceed model.n_features=40"),
        ({"l0": 0}, "model.l0=0"),
        ({"l0": 40}, "model.l0=40"),
        ({"l0": 39}, "always active"),
        ({"correlation": 1.0}, "model.correlation=1.0"),
        ({"noise": -1}, "model.noise=-1"),
        ({"d_in": 0}, "model.d_in=0"),
    ],
)
def test_impossible_worlds(change, words):
    cfg = SyntheticConfig(**SMALL | change)
    with pytest.raises(ConfigError, match=words):
        check_values(cfg, "model")
        cfg.check()
