import math

import pytest
import torch
from bounds import assert_within, gamma

from sae_sweeps.evaluation.labels import information, label_separation


def random(n, d, seed=0):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed))


def by_loops(fires, labels):
    """I(fires; label) / H(label) by counting."""
    n = len(labels)

    def entropy(values):
        return -sum(c / n * math.log(c / n) for c in (values.count(v) for v in set(values)))

    return (entropy(fires) + entropy(labels) - entropy(list(zip(fires, labels, strict=True)))) / entropy(labels)


def test_information_equals_the_counts():
    labels = torch.tensor([7, 7, 2, 2, 2, 9, 9, 7, 2, 9])
    f = (random(10, 6) - 0.5).relu()
    f[:, 0], f[:, 1] = 0, 1  # never fires, always fires
    found = information(f, labels)
    for j in range(6):
        expected = by_loops((f[:, j] > 0).tolist(), labels.tolist())
        # three entropies of at most 6 counts, none above log 6, over that of the labels, which is above 1
        assert_within(found[j], expected, gamma(6 * 8) * 3 * math.log(6), terms=1.0)
    assert found[:2].abs().max() <= gamma(6 * 8) * 3 * math.log(6)


def test_one_feature_that_is_the_label_is_found_among_noise():
    labels = torch.arange(400) % 2
    f = (random(400, 60) - 0.8).relu()
    without = label_separation(f, labels)
    assert without["feature_mi"] < 0.05 and without["feature_mi_top10"] <= without["feature_mi"]
    f[:, 7] = labels
    found = label_separation(f, labels)
    assert found["feature_mi"] == pytest.approx(1) and 0.1 <= found["feature_mi_top10"] < 0.15


def test_fewer_features_than_ten():
    labels = torch.arange(60) % 3
    found = label_separation(torch.nn.functional.one_hot(labels, 4).float(), labels)
    assert 0 < found["feature_mi_top10"] <= found["feature_mi"] < 1  # one of three labels is told
