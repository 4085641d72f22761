"""Labelled text of one's own, for `eval.data=FILE`: a row of JSON lines, JSON or Parquet for each text.

| column | |
|---|---|
| `text` | the text |
| `label` | its class: sparse probing and TPP predict it, and it is the coarse class of a hierarchy |
| `split` | `train` or `test` |
| `dataset` | optional: rows of each name have probes of their own; the file's name where the column is missing |
| `attribute` | optional: a second attribute with two values, for SCR |
| `fine` | optional: a finer class inside the class, for hierarchies |

Rows with the same text are in one split only, as the first of them is.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from sae_sweeps.activations.text_files import Row, name_of, rows, without_lone_surrogates
from sae_sweeps.config.data import kinds_at
from sae_sweeps.config.evaluations import UnlearningConfig, file_digest
from sae_sweeps.config.schema import DataConfig
from sae_sweeps.errors import DataError
from sae_sweeps.evaluation.draws import stream_seed
from sae_sweeps.evaluation.questions import Candidates
from sae_sweeps.evaluation.tasks import Hierarchy, Pair, Task, lacking, six_classes

NEEDED, OPTIONAL = ("text", "label", "split"), ("dataset", "attribute", "fine")
"""Columns."""
SPLITS = ("train", "test")
MOST_PAIRS = 4
"""Pairs of classes of a data set that SCR takes where `eval.ablation.pairs` names none: the first by name."""
LEAST = 20
"""Rows of a class or a quadrant in each split, fewer than which it is left out."""

Place = tuple[str, str, str | None, str | None]
"""Split, label, attribute and fine class."""


class LabelledSource:
    """Labelled text from a file of one's own."""

    kind: str = "labelled"

    def __init__(self, file: Path):
        self.file = file
        self._texts_at: dict[str, dict[Place, set[str]]] = {}
        split_of: dict[str, str] = {}
        for number, row in enumerate(self._read(), 1):
            if row["split"] not in SPLITS:
                raise DataError(f"eval.data={file}: row {number}: split is {row['split']!r}; give train or test.")
            if split_of.setdefault(row["text"], row["split"]) == row["split"]:
                place = row["split"], row["label"], row.get("attribute"), row.get("fine")
                self._texts_at.setdefault(row["dataset"], {}).setdefault(place, set()).add(row["text"])
        usable = {name: classes for name in self._texts_at if len(classes := self._classes(name)) > 1}
        if not usable:
            raise DataError(f"eval.data={file}: no two classes of a data set have {LEAST} rows in train and in test.")
        self._usable = usable
        self.probing = tuple(usable)
        # TPP compares several classes: with two, each is the other's complement
        self.tpp = tuple(name for name, classes in usable.items() if len(classes) > 2)
        self.attributes: Mapping[str, tuple[str, ...]] = {
            name: classes for name in usable if len(classes := self._with_both(name)) > 1
        }
        self.pairs = tuple(
            Pair(name, pair)
            for name, found in self.attributes.items()
            for pair in islice(combinations(found, 2), MOST_PAIRS)
        )
        self.hierarchies = tuple(name for name in usable if len(self._fine(name)) > 1)
        self.question_sets: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        return f"labelled:{file_digest(self.file)}"

    def task(self, name: str, train_rows: int, test_rows: int, seed: int) -> Task:
        """As many rows of each class as its rarest has, at most half of `train_rows` and `test_rows`."""
        parts = {}
        for split, most in (("train", train_rows), ("test", test_rows)):
            texts = {label: self._texts(name, split, label=label) for label in self._usable[name]}
            n = min(most // 2, *map(len, texts.values()))
            parts[split] = {
                label: random.Random(stream_seed(seed, "rows", name, label, split)).sample(found, n)
                for label, found in texts.items()
            }
        return Task(name, parts["train"], parts["test"])

    def pair_task(self, pair: Pair, train_rows: int, test_rows: int, seed: int) -> Task:
        """The two values of `attribute` in the place of genders; as many rows as the rarest quadrant allows."""
        first, second = self._kinds(pair.dataset)
        kinds = (first, second)
        parts = {}
        for split, most in (("train", train_rows), ("test", test_rows)):
            quadrants = {
                (label, kind): self._texts(pair.dataset, split, label=label, attribute=kind)
                for label in pair.classes
                for kind in kinds
            }
            for place, texts in quadrants.items():
                random.Random(stream_seed(seed, "quadrant", pair.name, *place, split)).shuffle(texts)
            together = min(len(quadrants[pair.classes[i], kinds[i]]) for i in (0, 1))
            crossed = min(len(quadrants[pair.classes[i], kinds[1 - i]]) for i in (0, 1))
            parts[split] = six_classes(
                quadrants, pair.classes, kinds, min(most // 4, (together - 1) // 2, crossed), seed, pair.name
            )
        return Task(pair.name, parts["train"], parts["test"])

    def hierarchy(self, name: str, n_rows: int, seed: int) -> Hierarchy:
        """Fine classes inside coarse ones, as many rows of each as the rarest has, at most `n_rows`."""
        found = self._fine(name)
        n = min(n_rows, *(len(texts) for of_label in found.values() for texts in of_label.values()))
        return Hierarchy(
            name,
            {
                label: {
                    fine: random.Random(stream_seed(seed, "rows", name, label, fine)).sample(texts, n)
                    for fine, texts in of_label.items()
                }
                for label, of_label in found.items()
            },
        )

    def corpus(self, split: str) -> list[str]:
        raise lacking(str(self.file), "questions", "unlearning")

    def corpus_size(self, contexts: int, context: int) -> tuple[int, int]:
        return contexts, context

    def questions(self, lm: Any, cfg: UnlearningConfig, seed: int, sets: Collection[str]) -> list[Candidates]:
        raise lacking(str(self.file), "questions", "unlearning")

    def _read(self) -> Iterator[dict[str, str]]:
        if not self.file.stat().st_size:
            raise DataError(f"eval.data={self.file}: is empty; give rows with {', '.join(NEEDED)}.")
        kinds = kinds_at(self.file) - {"text"}
        if not kinds:
            raise DataError(f"eval.data={self.file}: must be JSON lines, JSON, Parquet or Arrow, with columns.")
        cfg = DataConfig(kind=kinds.pop(), path=str(self.file))
        for number, (fields, values) in enumerate(self._rows(cfg), 1):
            found = {"dataset": self.file.name.partition(".")[0]}
            for name in (*NEEDED, *OPTIONAL):
                if (value := self._value(number, name, values.get(name))) is not None:
                    found[name] = value
            if missing := [name for name in NEEDED if name not in found]:
                has = f"; its columns are {', '.join(map(str, fields))}" if set(missing) - set(fields) else ""
                raise DataError(
                    f"eval.data={self.file}: row {number} has no {' and no '.join(missing)}; each row needs "
                    f"{', '.join(NEEDED)}{has}."
                )
            yield found

    def _value(self, number: int, column: str, value: Any) -> str | None:
        """The value of a column, None where the row has none. Raises DataError for what is no text or no name."""
        where = f"eval.data={self.file}: row {number}: {column}"
        if column == "text" and isinstance(value, str):
            return without_lone_surrogates(value) if value.strip() else None
        if column == "text" and value is not None:
            raise DataError(f"{where} is of type {type(value).__name__}, not text.")
        try:
            name = name_of(value)
        except DataError as error:
            raise DataError(f"{where} {error}.") from None
        if name is not None and any(character in name for character in "\t\n"):  # which part names in kept files
            raise DataError(f"{where} is {name!r}; write it without tabs and line breaks.")
        return name

    def _rows(self, cfg: DataConfig) -> Iterator[Row]:
        try:
            yield from rows(cfg, (*NEEDED, *OPTIONAL))
        except DataError as error:
            raise DataError(f"eval.{error}" if str(error).startswith("data=") else str(error)) from None

    def _texts(self, name: str, split: str | None = None, **wanted: str) -> list[str]:
        """The texts of a data set's rows with these values, sorted, each once."""
        found = set[str]()
        for (at, *values), texts in self._texts_at[name].items():
            place = dict(zip(("label", "attribute", "fine"), values, strict=True))
            if split in (None, at) and wanted.items() <= place.items():
                found |= texts
        return sorted(found)

    def _enough(self, name: str, **wanted: str) -> bool:
        return all(len(self._texts(name, split, **wanted)) >= LEAST for split in SPLITS)

    def _classes(self, name: str) -> tuple[str, ...]:
        labels = sorted({label for _, label, _, _ in self._texts_at[name]})
        return tuple(label for label in labels if self._enough(name, label=label))

    def _kinds(self, name: str) -> tuple[str, ...]:
        return tuple(sorted({kind for _, _, kind, _ in self._texts_at[name] if kind is not None}))

    def _with_both(self, name: str) -> tuple[str, ...]:
        """The classes with enough rows of both values of the second attribute; none where it has not two values."""
        kinds = self._kinds(name)
        if len(kinds) != 2:
            return ()
        return tuple(
            label for label in self._usable[name] if all(self._enough(name, label=label, attribute=k) for k in kinds)
        )

    def _fine(self, name: str) -> dict[str, dict[str, list[str]]]:
        """Texts of each fine class with enough rows, in the coarse classes that have two of these or more."""
        out: dict[str, dict[str, list[str]]] = {}
        for label in self._usable[name]:
            names = sorted({fine for _, of, _, fine in self._texts_at[name] if of == label and fine is not None})
            texts = {fine: self._texts(name, label=label, fine=fine) for fine in names}
            texts = {fine: found for fine, found in texts.items() if len(found) >= LEAST}
            if len(texts) > 1:
                out[label] = texts
        return out
