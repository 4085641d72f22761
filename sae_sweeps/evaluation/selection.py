"""Which rows choose and which rows measure.

An epoch, a direction or a setting that is chosen for its accuracy on some rows looks better on them than it is. Under
`eval.selection=validation` every text of the test rows is in one of two halves: what one half has chosen is measured on
the other, and the other way round, so each row measures once. Under `test` the rows that measure also choose, as in
SAEBench.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from sae_sweeps.errors import DataError
from sae_sweeps.evaluation.probes import BinaryTask
from sae_sweeps.evaluation.rows import Rows

Draw = Callable[[dict[str, int], str, str], tuple[Tensor, Tensor]]
"""draw(rows of each class, class, part): rows and labels of the class's binary task, drawn from the part's stream."""


@dataclass
class Fold:
    """The binary task of each class, with the rows that choose and with those that measure as its test rows."""

    choosing: dict[str, BinaryTask]
    measured: dict[str, BinaryTask]


def drawn(labels: Iterable[str], train: dict[str, int], test: dict[str, int], draw: Draw) -> dict[str, BinaryTask]:
    """The binary task of each label, from numbers of train and test rows of each class."""
    return {label: BinaryTask(*draw(train, label, "train"), *draw(test, label, "test")) for label in labels}


def folds(tasks: Mapping[str, BinaryTask], rows: Rows, selection: str, draw: Draw, redrawn: bool = False) -> list[Fold]:
    """The folds of the tasks, whose test rows are drawn from `rows`.

    Args:
        redrawn: whether SAEBench draws the rows that measure anew (TPP; the positives are the same ones).

    Raises DataError where a class has no row in one of the halves.
    """

    def with_rows(part: str, within_n: Tensor, n_by_class: dict[str, int]) -> dict[str, BinaryTask]:
        drawn = {label: draw(n_by_class, label, part) for label in tasks}
        return {
            label: replace(task, test_rows=within_n[drawn[label][0]], test_labels=drawn[label][1])
            for label, task in tasks.items()
        }

    if selection == "test":
        every = torch.arange(len(rows.text_R))
        return [Fold(dict(tasks), with_rows("measured", every, rows.n_by_class) if redrawn else dict(tasks))]
    both = halves(rows.text_R, rows.n_by_class)
    if not all(n for _, n_by_class in both for n in n_by_class.values()):
        raise DataError(
            "the test rows of a class are too few for two halves: raise eval.probing.test_rows and "
            "eval.ablation.test_rows, or give eval.selection=test."
        )
    parts = [with_rows(f"half {number}", *half) for number, half in enumerate(both, 1)]
    return [Fold(*parts), Fold(*reversed(parts))]


def halves(text_R: Tensor, n_by_class: Mapping[str, int]) -> list[tuple[Tensor, dict[str, int]]]:
    """Rows of two halves without a text in common, and how many of each class they have: as many, or one more."""
    class_R = torch.repeat_interleave(torch.tensor(list(n_by_class.values())))
    classes_of: dict[int, tuple[int, ...]] = {}
    for text, number in zip(text_R.tolist(), class_R.tolist(), strict=True):
        classes_of[text] = (*classes_of.get(text, ()), number)
    second = dict(zip(classes_of, every_second(classes_of.values()), strict=True))
    second_R = torch.tensor([second[text] for text in text_R.tolist()])
    out = []
    for here_R in (~second_R, second_R):
        counts = class_R[here_R].bincount(minlength=len(n_by_class)).tolist()
        out.append((here_R.nonzero()[:, 0], dict(zip(n_by_class, counts, strict=True))))
    return out


def every_second(kinds: Iterable[Any]) -> list[bool]:
    """Which of the things are in the second half: every second of each kind."""
    seen: dict[Any, int] = {}
    out = []
    for kind in kinds:
        seen[kind] = seen.get(kind, 0) + 1
        out.append(seen[kind] % 2 == 0)
    return out


def fold_masks(kind_N: Tensor, selection: str) -> list[tuple[Tensor, Tensor]]:
    """Which of N things choose and which measure [N], bool, in each fold; the halves have as many of each kind."""
    every_N = torch.ones(len(kind_N), dtype=torch.bool)
    if selection == "test":
        return [(every_N, every_N)]
    second_N = torch.tensor(every_second(kind_N.tolist()), dtype=torch.bool)
    return [(~second_N, second_N), (second_N, ~second_N)]


def averaged(parts: Sequence[Any]) -> Any:
    """The mean over folds of every number in nested dicts of the same keys."""
    if isinstance(parts[0], Mapping):
        return {key: averaged([part[key] for part in parts]) for key in parts[0]}
    return mean(parts)
