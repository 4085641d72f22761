import math

import numpy as np
import pytest
import torch
from torch import nn

from sae_sweeps.evaluation.draws import stream
from sae_sweeps.evaluation.first_letters import learning_rates
from sae_sweeps.evaluation.probes import (
    BinaryTask,
    accuracy,
    most_different,
    sparse_probe_accuracy,
    train_probes,
    unconverged,
)


def tasks(n=3, rows=60, d=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d, generator=g)
    out = []
    for c in range(n):
        label = x[:, c] + 0.5 * torch.randn(rows, generator=g) > 0
        order = torch.randperm(rows, generator=g)
        out.append(BinaryTask(order[:40], label[order[:40]], order[40:], label[order[40:]]))
    return x, out


def with_torch(x, task, generator, *, batch_size, epochs, lr, l1, patience):
    """One probe as SAEBench trains it: nn.Linear, AdamW, autograd."""
    seed = generator.initial_seed()
    torch.manual_seed(seed)
    probe = nn.Linear(x.shape[1], 1)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=lr)
    best, kept, waited = 0.0, None, 0
    for _ in range(epochs):
        order = torch.randperm(len(task.train_rows))
        for part in order.split(batch_size):
            z = probe(x[task.train_rows[part]]).squeeze(-1)
            loss = nn.BCEWithLogitsLoss()(z, task.train_labels[part].to(z.dtype)) + l1 * probe.weight.abs().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        score = accuracy(probe(x[task.test_rows]).squeeze(-1).detach(), task.test_labels)
        if score > best:
            best, waited = score, 0
            kept = (probe.weight.detach().clone()[0], probe.bias.detach().clone()[0])
        else:
            waited += 1
        if waited >= patience:
            break
    return *kept, best


@pytest.mark.parametrize(("l1", "patience", "batch_size"), [(0.0, 3, 16), (1e-3, 20, 7), (0.0, 1, 40)])
def test_probes_are_torchs_side_by_side(in_float64, l1, patience, batch_size):
    x, several = tasks()
    how = dict(batch_size=batch_size, epochs=12, lr=1e-2, l1=l1, patience=patience)
    (found,) = train_probes(x, x, [several], [stream(0, "p", str(c)) for c in range(3)], **how)
    for c, task in enumerate(several):
        weight, bias, best = with_torch(x, task, stream(0, "p", str(c)), **how)
        torch.testing.assert_close(found.weight_CD[c], weight, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(found.bias_C[c], bias, rtol=1e-9, atol=1e-11)
        assert round(20 * float(found.accuracy_C[c])) == round(20 * best)  # of 20 rows


def test_a_probe_is_the_same_alone(in_float64):
    x, several = tasks()
    how = dict(batch_size=16, epochs=5, lr=1e-2, patience=3)
    (together,) = train_probes(x, x, [several], [stream(0, "p", str(c)) for c in range(3)], **how)
    (alone,) = train_probes(x, x, [several[1:2]], [stream(0, "p", "1")], **how)
    torch.testing.assert_close(together.weight_CD[1], alone.weight_CD[0], rtol=1e-9, atol=1e-11)


def test_one_training_serves_several_choices(in_float64):
    """Each as if it were alone, also where one ends before the other."""
    x, several = tasks()
    others = [BinaryTask(t.train_rows, t.train_labels, t.test_rows[:7], t.test_labels[:7]) for t in several]
    how = dict(batch_size=16, epochs=12, lr=1e-2, patience=2)

    def made(*choosing):
        return train_probes(x, x, choosing, [stream(0, "p", str(c)) for c in range(3)], **how)

    for together, alone in zip(made(several, others), [*made(several), *made(others)], strict=True):
        assert torch.equal(together.accuracy_C, alone.accuracy_C)
        torch.testing.assert_close(together.weight_CD, alone.weight_CD, rtol=1e-9, atol=1e-11)


def test_a_probe_that_cannot_converge_is_named():
    """The words of the case in which 4,096 words a step made 50 steps, and 512 make 250."""
    lrs = learning_rates(50)
    assert unconverged(2360, 4096, lrs) == "the probes take 50 steps of at most 0.01, too few to converge"
    assert not unconverged(2360, 512, lrs) and not unconverged(4000, 16, [1e-3] * 20)


def test_most_different_dimensions_and_the_probe_on_them():
    from sklearn.linear_model import LogisticRegression

    x, (task, *_) = tasks()
    rows, labels = task.train_rows, task.train_labels
    means = [abs(float(x[rows[labels]][:, j].mean() - x[rows[~labels]][:, j].mean())) for j in range(7)]
    ranked = most_different(x, [task], 3)[0].tolist()
    assert ranked == sorted(range(7), key=lambda j: -means[j])[:3] and ranked[0] == 0
    dims = sorted(ranked)
    probe = LogisticRegression(max_iter=1000).fit(x[rows][:, dims].numpy(), labels.numpy())
    expected = np.mean(probe.predict(x[task.test_rows][:, dims].numpy()) == task.test_labels.numpy())
    assert sparse_probe_accuracy(x, x, task, torch.tensor(ranked)) == expected


def test_dead_features_leave_a_probe_at_chance():
    x, (task, *_) = tasks()
    dead = torch.zeros_like(x)
    balanced = BinaryTask(task.train_rows, torch.arange(40) % 2 == 0, task.test_rows, torch.arange(20) % 2 == 0)
    assert sparse_probe_accuracy(dead, dead, balanced, torch.arange(2)) == 0.5
    assert math.isfinite(accuracy(torch.zeros(3), torch.tensor([True, False, False])))
