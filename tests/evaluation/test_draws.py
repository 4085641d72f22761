import math

import torch

from sae_sweeps.evaluation.draws import against, against_the_rest, offsets, stream, stream_seed


def test_a_stream_depends_on_seed_and_purpose_alone():
    first = torch.rand(3, generator=stream(0, "rows", "a"))
    torch.rand(7)  # the global stream has no say
    assert torch.equal(first, torch.rand(3, generator=stream(0, "rows", "a")))
    others = [
        stream_seed(1, "rows", "a"),
        stream_seed(0, "rows", "b"),
        stream_seed(0, "rowsa"),
        stream_seed(0, "rows", "", "a"),
    ]
    assert len({stream_seed(0, "rows", "a"), *others}) == 5
    assert 0 <= stream_seed(42, "x") < 2**63


def saebenchs(n_by_class, name, seed):
    """SAEBench's prepare_probe_data on row numbers, from the global stream."""
    start, rows = 0, {}
    for label, n in n_by_class.items():
        rows[label] = torch.arange(start, start + n)
        start += n
    torch.manual_seed(seed)
    positive = rows[name]
    others = [label for label in n_by_class if label != name]
    share = math.ceil(len(positive) / len(others))
    negative = torch.cat([rows[o][torch.randperm(len(rows[o]))[:share]] for o in others])
    negative = negative[torch.randperm(len(negative))[: len(positive)]]
    both = torch.cat([positive, negative])
    labels = torch.arange(len(both)) < len(positive)
    order = torch.randperm(len(both))
    return both[order], labels[order]


def test_rows_of_a_task_are_drawn_as_saebench_draws_them():
    sizes = {"a": 10, "b": 10, "c": 10, "d": 10}
    seed = stream_seed(5, "rows", "x", "c", "train")
    rows, labels = against_the_rest(sizes, "c", stream(5, "rows", "x", "c", "train"))
    expected_rows, expected_labels = saebenchs(sizes, "c", seed)
    assert torch.equal(rows, expected_rows) and torch.equal(labels, expected_labels)
    assert set(rows[labels].tolist()) == set(range(20, 30)) and len(rows[~labels].unique()) == 10
    assert not set(rows[~labels].tolist()) & set(range(20, 30))


def test_a_pair_takes_all_rows_of_both():
    sizes = {"a": 6, "b": 6, "c": 6}
    rows, labels = against(sizes, "a", "c", stream(0, "p"))
    assert sorted(rows[labels].tolist()) == list(range(6)) and sorted(rows[~labels].tolist()) == list(range(12, 18))
    assert offsets(sizes) == {"a": 0, "b": 6, "c": 12}
