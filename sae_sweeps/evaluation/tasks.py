"""Labelled rows of text by class: SAEBench's data sets, or built-in ones in their place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sae_sweeps.config.evaluations import EvalConfig, UnlearningConfig
from sae_sweeps.errors import ConfigError, DataError
from sae_sweeps.evaluation.questions import Candidates


class MissingRows(DataError):
    """The data have too few rows of one of their classes."""


@dataclass(frozen=True)
class Task:
    """Texts by class; every class has as many as the others."""

    name: str
    train: dict[str, list[str]]
    test: dict[str, list[str]]


@dataclass(frozen=True)
class Pair:
    """Two classes whose rows also differ in a second attribute, for SCR."""

    dataset: str
    classes: tuple[str, str]

    @property
    def name(self) -> str:
        """SAEBench's name for the pair."""
        return f"{self.dataset}_scr_{self.classes[0]}_{self.classes[1]}"


@dataclass(frozen=True)
class Hierarchy:
    """Texts by coarse class and fine class inside it."""

    name: str
    texts: dict[str, dict[str, list[str]]]


class Source(Protocol):
    """Where labelled text and questions come from."""

    kind: str
    """saebench, builtin or labelled."""
    probing: tuple[str, ...]
    """Data sets of sparse probing."""
    tpp: tuple[str, ...]
    """Those of them that TPP uses."""
    pairs: tuple[Pair, ...]
    """Pairs of classes for SCR."""
    attributes: Mapping[str, tuple[str, ...]]
    """Classes that such a pair may have, by data set."""
    hierarchies: tuple[str, ...]
    question_sets: tuple[str, ...]
    """Sets of questions for unlearning; the first is about what is to be forgotten."""

    @property
    def digest(self) -> str:
        """Identifies the content in the names of kept files."""
        ...

    def task(self, name: str, train_rows: int, test_rows: int, seed: int) -> Task:
        """The rows of a data set: train_rows / 2 and test_rows / 2 of each class, or as many as there are."""
        ...

    def pair_task(self, pair: Pair, train_rows: int, test_rows: int, seed: int) -> Task:
        """SAEBench's six classes of a pair, half of train_rows and test_rows each."""
        ...

    def hierarchy(self, name: str, n_rows: int, seed: int) -> Hierarchy:
        """Rows of fine classes inside coarse ones, `n_rows` each, or as many as there are."""
        ...

    def corpus(self, split: str) -> list[str]:
        """Texts to `forget` or to `retain`."""
        ...

    def corpus_size(self, contexts: int, context: int) -> tuple[int, int]:
        """Number of contexts of each corpus and their length, at most those requested."""
        ...

    def questions(self, lm: Any, cfg: UnlearningConfig, seed: int, sets: Collection[str]) -> list[Candidates]:
        """Multiple-choice questions about both, of these `question_sets`."""
        ...


PAIRED = {
    "male / female": "female_data_only",
    "professor / nurse": "nurse_data_only",
    "male_professor / female_nurse": "female_nurse_data_only",
}
"""SAEBench's six classes of SCR, named after its first data set whatever the data are: by the second attribute alone,
by the class alone, and by both at once (the biased task)."""


BY_ATTRIBUTE, BY_CLASS, BIASED = PAIRED
"""The three probes of SCR, by the difference between their classes."""


def six_classes(
    quadrants: dict[tuple[str, str], list[str]],
    classes: tuple[str, str],
    attributes: tuple[str, str],
    m: int,
    seed: int,
    name: str,
) -> dict[str, list[str]]:
    """2m rows of each of SAEBench's six classes from the texts of (class, attribute), in their order.

    Raises DataError where a quadrant has too few rows: more than 2m where class and attribute go together, m elsewhere.
    """
    (one, other), (first, second) = classes, attributes
    pp, pn, np_, nn = (quadrants[place] for place in ((one, first), (one, second), (other, first), (other, second)))
    for texts, least, place in ((pp, 2 * m + 1, (one, first)), (pn, m, (one, second)), (np_, m, (other, first)),
                                (nn, 2 * m + 1, (other, second))):  # fmt: skip
        if len(texts) < least:
            raise MissingRows(
                f"{name}: {len(texts)} rows are {place[0]} and {place[1]}, and {least} are needed; lower "
                "eval.ablation.train_rows or eval.ablation.test_rows."
            )
    out = {
        BY_ATTRIBUTE: pp[:m] + np_[:m],
        PAIRED[BY_ATTRIBUTE]: pn[:m] + nn[:m],
        BY_CLASS: pp[:m] + pn[:m],
        PAIRED[BY_CLASS]: np_[:m] + nn[:m],
        BIASED: pp[: 2 * m],
        PAIRED[BIASED]: nn[: 2 * m],
    }
    rng = np.random.default_rng(seed)
    for texts in out.values():
        rng.shuffle(texts)
    return out


def chosen(known: tuple[str, ...], names: list[str] | None, key: str) -> tuple[str, ...]:
    """The data sets that `key` names, all that are known where it is null. Raises ConfigError for others, or none."""
    if names is not None and not names:
        raise ConfigError(f"{key}: names none; give one of {', '.join(known)}, or null for the usual ones.")
    for name in names or ():
        if name not in known:
            raise ConfigError(f"{key}: {name} is not known; choose from {', '.join(known)}.")
    return known if names is None else tuple(names)


def chosen_pairs(source: Source, given: dict[str, Any] | None) -> tuple[Pair, ...]:
    """The pairs of `eval.ablation.pairs`, the source's where it is null. Raises ConfigError for other classes."""
    if given is None or not source.attributes:
        return source.pairs
    pairs = []
    for dataset, several in given.items():
        if dataset not in source.attributes:
            names = ", ".join(source.attributes)
            raise ConfigError(f"eval.ablation.pairs.{dataset}: has no second attribute here; choose from {names}.")
        known = source.attributes[dataset]
        for pair in several if isinstance(several, list) else [several]:
            if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1] or not all(map(known.count, pair)):
                raise ConfigError(
                    f"eval.ablation.pairs.{dataset}={pair}: must be two different classes of "
                    f"{', '.join(known)}, as in [[{known[0]},{known[1]}]]."
                )
            pairs.append(Pair(dataset, (pair[0], pair[1])))
    if not pairs:
        raise ConfigError("eval.ablation.pairs: names no pair; give one, or null for the usual ones.")
    return tuple(pairs)


def lacking(data: str, what: str, evaluation: str) -> DataError:
    """What an evaluation needs, and these data have not."""
    return DataError(
        f"eval.data={data}: has no {what}, which {evaluation} needs; leave it out of eval.evaluations, or give "
        "eval.data=saebench or builtin."
    )


def probing_sets(source: Source, cfg: EvalConfig) -> tuple[str, ...]:
    """The data sets of sparse probing."""
    return chosen(source.probing, cfg.probing.datasets, "eval.probing.datasets")


def tpp_sets(source: Source, cfg: EvalConfig) -> tuple[str, ...]:
    """The data sets of TPP, by default those that have three classes."""
    if cfg.ablation.datasets is None and not source.tpp:
        raise lacking(cfg.data, "data set of three classes with enough rows", "tpp")
    names = list(source.tpp) if cfg.ablation.datasets is None else cfg.ablation.datasets
    return chosen(source.probing, names, "eval.ablation.datasets")


def scr_pairs(source: Source, cfg: EvalConfig) -> tuple[Pair, ...]:
    """The pairs of classes of SCR."""
    pairs = chosen_pairs(source, cfg.ablation.pairs)
    if not pairs:
        raise lacking(cfg.data, "two classes with enough rows of both values of an `attribute`", "scr")
    return pairs


def hierarchies(source: Source, cfg: EvalConfig) -> tuple[str, ...]:
    """The data sets with classes inside classes."""
    if not source.hierarchies:
        raise lacking(cfg.data, "two classes with two `fine` classes of enough rows each", "hierarchy")
    return source.hierarchies


def question_sets(source: Source, cfg: EvalConfig) -> tuple[str, ...]:
    """The sets of questions of unlearning. Raises ConfigError where not both kinds are named."""
    if not source.question_sets:
        raise lacking(cfg.data, "questions", "unlearning")
    own = cfg.unlearning
    if source.kind == "builtin" and own.questions != "correct":
        raise ConfigError(f"eval.unlearning.questions={own.questions}: built-in data have `correct` alone.")
    names = chosen(source.question_sets, own.datasets, "eval.unlearning.datasets")
    if len({name == source.question_sets[0] for name in names}) < 2:
        raise ConfigError(
            f"eval.unlearning.datasets={own.datasets}: must name a set of questions to forget and one to retain."
        )
    return names


NEEDED: dict[str, Callable[[Source, EvalConfig], tuple[Any, ...]]] = {
    "sparse_probing": probing_sets,
    "tpp": tpp_sets,
    "scr": scr_pairs,
    "hierarchy": hierarchies,
    "unlearning": question_sets,
}
"""What each evaluation on labelled text takes of its source. Raise ConfigError for names that the source has not,
DataError where it has nothing for the evaluation."""


def check_tasks(source: Source, cfg: EvalConfig, evaluations: Collection[str]) -> None:
    """Raise ConfigError or DataError as these evaluations would, before anything is drawn or read by the model."""
    for name in evaluations:
        if name in NEEDED:
            NEEDED[name](source, cfg)
