"""Linear probes: by AdamW on all dimensions at once, and by scikit-learn on the k that differ most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.evaluation.logistic import fitted


@dataclass
class BinaryTask:
    """Rows of one matrix as a binary task."""

    train_rows: Tensor
    """[n_train], int64."""
    train_labels: Tensor
    """[n_train], bool."""
    test_rows: Tensor
    test_labels: Tensor


@dataclass
class Probes:
    """One probe per task: logit = x . weight + bias."""

    weight_CD: Tensor
    bias_C: Tensor
    accuracy_C: Tensor
    """Of the best epoch, on the rows that chose it."""


def accuracy(logits_n: Tensor, labels_n: Tensor) -> float:
    """Share of rows on the right side of 0."""
    return ((logits_n > 0) == labels_n.to(logits_n.device)).float().mean().item()


@torch.no_grad()
def train_probes(
    train_RD: Tensor,
    test_RD: Tensor,
    choosing: Sequence[Sequence[BinaryTask]],
    generators: list[torch.Generator],
    *,
    batch_size: int,
    epochs: int,
    lr: float,
    l1: float = 0.0,
    patience: int,
) -> list[Probes]:
    """Logistic regressions by AdamW (weight decay 0.01), side by side; each is kept as it was in its best epoch.

    The best epoch is chosen on a task's test rows, and no epoch counts after `patience` epochs without a strictly
    better accuracy. `choosing` has the tasks once for each choice, with other test rows: one training serves all of
    them. Initialisation and order of rows come from each task's own generator, in torch.nn.Linear's and SAEBench's
    order, so a task's probe is the same alone and beside others. Gradients are written out:
    (sigmoid(z) - y) x / B + l1 sign(w).
    """
    device, d = train_RD.device, train_RD.shape[1]
    tasks = choosing[0]
    n_tasks, n_train = len(tasks), len(tasks[0].train_rows)
    w_CD, b_C = torch.empty(n_tasks, d), torch.empty(n_tasks)
    for c, generator in enumerate(generators):
        torch.nn.init.kaiming_uniform_(w_CD[c : c + 1], a=math.sqrt(5), generator=generator)
        b_C[c].uniform_(-1 / math.sqrt(d), 1 / math.sqrt(d), generator=generator)
    w_CD, b_C = w_CD.to(device), b_C.to(device)
    best = [Probes(w_CD.clone(), b_C.clone(), torch.zeros(n_tasks)) for _ in choosing]
    moments = [torch.zeros_like(p) for p in (w_CD, w_CD, b_C, b_C)]
    waited = torch.zeros(len(choosing), n_tasks, dtype=torch.long)
    alive = torch.arange(n_tasks)
    step = 0
    for _ in range(epochs):
        order = torch.stack([torch.randperm(n_train, generator=generators[c]) for c in alive.tolist()])
        rows_Cn = torch.stack([tasks[c].train_rows for c in alive.tolist()]).gather(1, order).to(device)
        y_Cn = torch.stack([tasks[c].train_labels for c in alive.tolist()]).gather(1, order).to(device).float()
        for first in range(0, n_train, batch_size):
            step += 1
            x_CBD = train_RD[rows_Cn[:, first : first + batch_size]]
            y_CB = y_Cn[:, first : first + batch_size]
            z_CB = torch.bmm(x_CBD, w_CD[:, :, None])[..., 0] + b_C[:, None]
            g_CB = (z_CB.sigmoid() - y_CB) / y_CB.shape[1]
            grad_CD = torch.bmm(g_CB[:, None], x_CBD)[:, 0]
            if l1:
                grad_CD += l1 * w_CD.sign()
            adamw(w_CD, grad_CD, moments[0], moments[1], step, lr)
            adamw(b_C, g_CB.sum(1), moments[2], moments[3], step, lr)
        for choice, (kept, several) in enumerate(zip(best, choosing, strict=True)):
            for i, c in enumerate(alive.tolist()):
                if waited[choice, c] >= patience:
                    continue
                score = accuracy(logits_at(test_RD, several[c].test_rows, w_CD[i], b_C[i]), several[c].test_labels)
                if score > kept.accuracy_C[c]:
                    kept.accuracy_C[c], waited[choice, c] = score, 0
                    kept.weight_CD[c], kept.bias_C[c] = w_CD[i], b_C[i]
                else:
                    waited[choice, c] += 1
        goes_on = (waited[:, alive] < patience).any(0)
        if not goes_on.all():
            alive = alive[goes_on]
            if not len(alive):
                break
            w_CD, b_C = w_CD[goes_on], b_C[goes_on]
            moments = [m[goes_on] for m in moments]
    return best


LEAST_REACH = 0.25
"""Sum of a probe's learning rates below which its weights are nearer to where they began than to where they go: a
weight moves by about the learning rate in a step of Adam. Measured in docs/evaluations.md, "Steps of a probe"."""


def unconverged(n_rows: int, batch_size: int, lr_by_epoch: list[float]) -> str:
    """A sentence where a probe takes fewer steps than it can converge in, else nothing."""
    per_epoch = math.ceil(n_rows / batch_size)
    if per_epoch * sum(lr_by_epoch) >= LEAST_REACH:
        return ""
    n_steps = per_epoch * len(lr_by_epoch)
    return f"the probes take {n_steps} steps of at most {max(lr_by_epoch):g}, too few to converge"


def logits_at(x_RD: Tensor, rows_n: Tensor, weight_D: Tensor, bias: Tensor) -> Tensor:
    """Logits [n] of one probe on some rows."""
    return x_RD[rows_n.to(x_RD.device)] @ weight_D + bias


def adamw(p: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, lr: float, decay: float = 0.01) -> None:
    """torch.optim.AdamW's update with its default constants, in place."""
    p.mul_(1 - lr * decay)
    m.lerp_(grad, 0.1)
    v.mul_(0.999).addcmul_(grad, grad, value=0.001)
    scale = (v.sqrt() / math.sqrt(1 - 0.999**step)).add_(1e-8)
    p.addcdiv_(m, scale, value=-lr / (1 - 0.9**step))


def mean_differences(train_RD: Tensor, tasks: list[BinaryTask]) -> Tensor:
    """Mean of the rows of each task's class less that of its others [C, d], by one product for all tasks."""
    weight_CR = torch.zeros(len(tasks), len(train_RD))
    for weight_R, task in zip(weight_CR, tasks, strict=True):
        n_class = int(task.train_labels.sum())
        share_n = torch.where(task.train_labels, 1 / n_class, -1 / (len(task.train_labels) - n_class))
        weight_R.index_add_(0, task.train_rows, share_n)
    return weight_CR.to(train_RD) @ train_RD


def most_different(train_RD: Tensor, tasks: list[BinaryTask], k: int) -> Tensor:
    """The k dimensions whose means differ most between each task's labels, in the order of the difference [C, k]."""
    return mean_differences(train_RD, tasks).abs().argsort(dim=1, descending=True)[:, :k]


def sparse_probe_accuracy(train_RD: Tensor, test_RD: Tensor, task: BinaryTask, dims_k: Tensor) -> float:
    """Test accuracy of scikit-learn's logistic regression (L2, C = 1) on a few dimensions."""
    dims = dims_k.sort().values  # SAEBench keeps them in the dictionary's order

    def columns(x_RD: Tensor, rows: Tensor) -> np.ndarray:
        return x_RD[rows.to(x_RD.device)[:, None], dims].float().cpu().numpy()

    probe = fitted(columns(train_RD, task.train_rows), task.train_labels.numpy(), C=1.0, max_iter=1000)
    return float((probe.predict(columns(test_RD, task.test_rows)) == task.test_labels.numpy()).mean())
