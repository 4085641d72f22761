import pytest
import torch
import torch.nn.functional as F

from sae_sweeps.activations.synthetic import SyntheticWorld
from sae_sweeps.config.schema import SyntheticConfig
from sae_sweeps.evaluation.recovery import recovery


@pytest.fixture(scope="module")
def world():
    return SyntheticWorld(SyntheticConfig(d_in=48, n_features=24, n_correlated=8, n_hierarchical=8, l0=3.0))


@pytest.mark.parametrize("of", [2, 3, 4])
def test_a_row_that_is_a_whole_group_is_merged(world, of):
    true = world.features_FD
    group = true[:of].sum(0, keepdim=True)
    found = recovery(torch.cat([true[4:], group]), true, world.kind, world.parent_F)
    assert found["recovery_merged"] == pytest.approx(1 / 21) == found["recovery_merged_correlated"]
    assert found["recovery_merged_plain"] == 0


def test_a_true_feature_with_a_little_of_another_is_not_merged(world):
    true = world.features_FD
    rows = F.normalize(true + 0.3 * true.roll(1, 0), dim=1)
    found = recovery(rows, true, world.kind, world.parent_F)
    assert found["recovery_merged"] == 0 and found["recovery_share"] == 1


def test_random_rows_are_not_merged_and_one_true_feature_cannot_be(world):
    rows = torch.randn(500, 48, generator=torch.Generator().manual_seed(0))
    assert recovery(rows, world.features_FD, world.kind, world.parent_F)["recovery_merged"] == 0
    alone = recovery(rows, world.features_FD[:1], ["plain"], torch.tensor([-1]))
    assert alone["recovery_merged"] == 0 and alone["recovery_mmcs"] < 0.9
