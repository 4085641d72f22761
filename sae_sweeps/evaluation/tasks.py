"""Labelled rows of text by class: SAEBench's data sets, or built-in ones in their place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.config.schema import ModelConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.evaluation.questions import Candidates


@dataclass(frozen=True)
class Task:
    """Texts by class; every class has as many as the others."""

    name: str
    train: dict[str, list[str]]
    test: dict[str, list[str]]


@dataclass(frozen=True)
class Pair:
    """Two classes whose rows also differ in a second attribute: what SCR needs."""

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
    """saebench or builtin."""
    probing: tuple[str, ...]
    """Data sets of sparse probing."""
    tpp: tuple[str, ...]
    """Those of them that TPP asks about."""
    pairs: tuple[Pair, ...]
    """What SCR asks about."""
    hierarchies: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Stands for the content in the names of kept files."""
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
        """Contexts of each corpus and their length, given what is asked for."""
        ...

    def questions(self, lm: Any, seed: int, all_orders: bool) -> list[Candidates]:
        """Multiple-choice questions about both."""
        ...


PAIRED = {
    "male / female": "female_data_only",
    "professor / nurse": "nurse_data_only",
    "male_professor / female_nurse": "female_nurse_data_only",
}
"""SAEBench's six classes of SCR, named after its first data set whatever the data are: by the second attribute alone,
by the class alone, and by both at once (the biased task)."""


def kind_of(cfg: EvalConfig, model: ModelConfig) -> str:
    """builtin, or saebench for the hub's data sets and local copies of them."""
    if cfg.data == "auto":
        return "builtin" if model.source == "builtin" else "saebench"
    return "builtin" if cfg.data == "builtin" else "saebench"


def open_source(cfg: EvalConfig, model: ModelConfig) -> Source:
    """The source that `eval.data` names."""
    if kind_of(cfg, model) == "builtin":
        from sae_sweeps.builtin.tasks import BuiltinSource

        return BuiltinSource()
    from sae_sweeps.evaluation.saebench_data import SAEBenchSource

    return SAEBenchSource(None if cfg.data in ("auto", "saebench") else Path(cfg.data).expanduser())


def chosen(source: Source, names: list[str] | None) -> tuple[str, ...]:
    """The data sets that `eval.probing.datasets` names, all where it is null. Raises ConfigError for others."""
    if names is None:
        return source.probing
    for name in names:
        if name not in source.probing:
            raise ConfigError(f"eval.probing.datasets: {name} is not known; choose from {', '.join(source.probing)}.")
    return tuple(names)
