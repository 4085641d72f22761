"""SAEBench's own data sets, by name from the hub or from a folder that holds them under those names.

Rows are chosen as SAEBench 0.6 chooses them: the same pandas samples, the same shuffles, the same seed. A local folder
has the hub's layout, `FOLDER/fancyzhx/ag_news/...`, as `hf download NAME --repo-type dataset` leaves it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_sweeps.config.evaluations import UnlearningConfig
from sae_sweeps.errors import DataError, NoNetwork, UserError
from sae_sweeps.evaluation.questions import Candidates, QuestionSet, is_trick, mcq_rows
from sae_sweeps.evaluation.tasks import Hierarchy, Pair, Task, six_classes
from sae_sweeps.storage.digests import short_hash
from sae_sweeps.storage.files import one_line
from sae_sweeps.storage.hub import hub_is_reachable

if TYPE_CHECKING:
    import pandas as pd

BIAS, AMAZON = "LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5"
SENTIMENT, CODE, NEWS, EUROPARL = (
    f"{AMAZON}_sentiment", "codeparrot/github-code", "fancyzhx/ag_news", "Helsinki-NLP/europarl",
)  # fmt: skip
CLASSES = {
    f"{BIAS}_class_set1": ("0", "1", "2", "6", "9"),
    f"{BIAS}_class_set2": ("11", "13", "14", "18", "19"),
    f"{BIAS}_class_set3": ("20", "21", "22", "25", "26"),
    AMAZON: ("1", "2", "3", "5", "6"),
    SENTIMENT: ("1.0", "5.0"),
    CODE: ("C", "Python", "HTML", "Java", "PHP"),
    NEWS: ("0", "1", "2", "3"),
    EUROPARL: ("en", "fr", "de", "es", "nl"),
}
"""The classes that SAEBench uses."""
COLUMNS = {BIAS: ("hard_text", "profession", "gender"), AMAZON: ("text", "category", "rating")}
"""Text, class and second attribute of the data sets that have two."""
LANGUAGE_PAIRS = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}
CODE_LEAST, CODE_SKIPPED = 534, 150
"""Characters that a code file must exceed, and characters of licence at its head that are cut off."""

PROFESSIONS = (
    "accountant", "architect", "attorney", "chiropractor", "comedian", "composer", "dentist", "dietitian", "dj",
    "filmmaker", "interior_designer", "journalist", "model", "nurse", "painter", "paralegal", "pastor",
    "personal_trainer", "photographer", "physician", "poet", "professor", "psychologist", "rapper",
    "software_engineer", "surgeon", "teacher", "yoga_teacher",
)  # fmt: skip
CATEGORIES = (
    "All_Beauty", "Toys_and_Games", "Cell_Phones_and_Accessories", "Industrial_and_Scientific", "Gift_Cards",
    "Musical_Instruments", "Electronics", "Handmade_Products", "Arts_Crafts_and_Sewing", "Baby_Products",
    "Health_and_Household", "Office_Products", "Digital_Music", "Grocery_and_Gourmet_Food", "Sports_and_Outdoors",
    "Home_and_Kitchen", "Subscription_Boxes", "Tools_and_Home_Improvement", "Pet_Supplies", "Video_Games",
    "Kindle_Store", "Clothing_Shoes_and_Jewelry", "Patio_Lawn_and_Garden", "Unknown", "Books", "Automotive",
    "CDs_and_Vinyl", "Beauty_and_Personal_Care", "Amazon_Fashion", "Magazine_Subscriptions", "Software",
    "Health_and_Personal_Care", "Appliances", "Movies_and_TV",
)  # fmt: skip
"""The classes by their number in the column."""
NAMED = {f"{BIAS}_class_set1": PROFESSIONS, AMAZON: CATEGORIES}
"""The classes that SCR's pairs may have, by data set."""
PAIRS = (
    *(
        Pair(f"{BIAS}_class_set1", pair)
        for pair in (("professor", "nurse"), ("architect", "journalist"), ("surgeon", "psychologist"),
                     ("attorney", "teacher"))
    ),
    *(
        Pair(AMAZON, pair)
        for pair in (("Books", "CDs_and_Vinyl"), ("Software", "Electronics"), ("Pet_Supplies", "Office_Products"),
                     ("Industrial_and_Scientific", "Toys_and_Games"))
    ),
)  # fmt: skip
ATTRIBUTES = {BIAS: (("male", 0.0), ("female", 1.0)), AMAZON: (("1.0", 1.0), ("5.0", 5.0))}
"""The second attribute's two values, and what they are in the column."""

FORGET, RETAIN = "cais/wmdp-corpora", "wikitext"
WMDP, MMLU = "cais/wmdp", "cais/mmlu"
FORGOTTEN = "wmdp-bio"
SUBJECTS = (FORGOTTEN, "high_school_us_history", "college_computer_science", "high_school_geography", "human_aging")
LEAST_CHARS = 50
"""A text of unlearning's corpora must exceed this."""


class SAEBenchSource:
    """Labelled text and questions from SAEBench's data sets."""

    kind: str = "saebench"
    probing: tuple[str, ...] = tuple(CLASSES)
    tpp: tuple[str, ...] = (f"{BIAS}_class_set1", AMAZON)
    pairs: tuple[Pair, ...] = PAIRS
    attributes: Mapping[str, tuple[str, ...]] = NAMED
    hierarchies: tuple[str, ...] = (BIAS, AMAZON)
    question_sets: tuple[str, ...] = SUBJECTS

    def __init__(self, folder: Path | None):
        if folder is not None and not folder.is_dir():
            raise DataError(
                f"eval.data={folder}: there is no such folder; give one that holds SAEBench's data sets, builtin, or "
                "saebench to fetch them from the hub."
            )
        self.folder = folder
        self._tables: dict[str, dict[str, pd.DataFrame]] = {}

    @cached_property
    def digest(self) -> str:
        if self.folder is None:
            return "saebench"
        files = sorted(p for p in self.folder.rglob("*") if p.is_file())
        return short_hash([[str(p.relative_to(self.folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in files])

    def task(self, name: str, train_rows: int, test_rows: int, seed: int) -> Task:
        sizes = {"train": train_rows, "test": test_rows}
        if name in (CODE, EUROPARL):
            parts = self._streamed(name, train_rows // 2, test_rows // 2, seed)
        elif name == NEWS:
            parts = {
                split: _sampled(self._table(name, split), "label", "text", map(int, CLASSES[name]), n // 2, seed)
                for split, n in sizes.items()
            }
        elif name == SENTIMENT:
            parts = {
                split: _sampled(self._table(AMAZON, split), "rating", "text", map(float, CLASSES[name]), n // 2, seed)
                for split, n in sizes.items()
            }
        else:
            base = name.split("_class_set")[0]
            parts = {
                split: balanced(self._table(base, split), COLUMNS[base], n // 4, seed) for split, n in sizes.items()
            }
        for split, by_class in parts.items():
            missing = [label for label in CLASSES[name] if label not in by_class]
            if missing:
                raise DataError(
                    f"{name}: the {split} part has too few rows of class {', '.join(missing)} for {sizes[split]} rows "
                    "of a binary task; lower eval.probing.train_rows or eval.probing.test_rows."
                )
        kept = {split: {label: by_class[label] for label in CLASSES[name]} for split, by_class in parts.items()}
        return Task(name, kept["train"], kept["test"])

    def pair_task(self, pair: Pair, train_rows: int, test_rows: int, seed: int) -> Task:
        base = pair.dataset.split("_class_set")[0]
        text, column, attribute = COLUMNS[base]
        number, parts = NAMED[pair.dataset].index, {}
        (first, _), (second, _) = ATTRIBUTES[base]
        for split, n in (("train", train_rows), ("test", test_rows)):
            table = self._table(base, split)
            quadrants = {
                (label, kind): table[(table[column] == number(label)) & (table[attribute] == value)][text].tolist()
                for label in pair.classes
                for kind, value in ATTRIBUTES[base]
            }
            parts[split] = six_classes(quadrants, pair.classes, (first, second), n // 4, seed, pair.name)
        return Task(pair.name, parts["train"], parts["test"])

    def hierarchy(self, name: str, n_rows: int, seed: int) -> Hierarchy:
        """The class, and inside it the second attribute, for the classes of sparse probing."""
        text, column, second = COLUMNS[name]
        table = self._table(name, "train")
        labels = [label for data, found in CLASSES.items() if data.split("_class_set")[0] == name for label in found]
        texts: dict[str, dict[str, list[str]]] = {}
        for label in labels:
            of_label = table[table[column] == int(label)]
            groups = {str(value): group for value, group in of_label.groupby(second) if len(group) >= n_rows}
            if len(groups) > 1:
                texts[label] = {
                    value: group.sample(n=n_rows, random_state=seed)[text].tolist() for value, group in groups.items()
                }
        if len(texts) < 2:
            raise DataError(
                f"{name}: fewer than two classes have {n_rows} rows of each kind; lower eval.hierarchy.rows."
            )
        return Hierarchy(name, texts)

    def corpus(self, split: str) -> list[str]:
        if split == "retain":
            rows = self._rows(RETAIN, "test", subset="wikitext-2-raw-v1")
        else:
            rows = self._rows(FORGET, "train", subset="bio-forget-corpus")
        return [str(row["text"]) for row in rows if len(row["text"]) > LEAST_CHARS]

    def corpus_size(self, contexts: int, context: int) -> tuple[int, int]:
        return contexts, context

    def questions(self, lm: Any, cfg: UnlearningConfig, seed: int, sets: Collection[str]) -> list[Candidates]:
        made = []
        for name in sets:
            bio = name == FORGOTTEN
            rows = list(self._rows(WMDP if bio else MMLU, "test", subset=name))
            if cfg.questions == "correct-no-tricks":
                rows = [row for row in rows if not any(map(is_trick, row["choices"]))]
            subject = "biology" if bio else name.replace("_", " ")
            questions = QuestionSet(name, bio, *mcq_rows(rows, subject, lm, False))
            trial = QuestionSet(name, bio, *mcq_rows(rows, subject, lm, True)) if cfg.all_orders else questions
            unseen = None
            if cfg.questions == "correct-iff-question":
                unseen = QuestionSet(name, bio, *mcq_rows(rows, None, lm, cfg.all_orders))
            made.append(Candidates(trial, questions, 24 if cfg.all_orders else 1, unseen))
        return made

    def _streamed(self, name: str, n_train: int, n_test: int, seed: int) -> dict[str, dict[str, list[str]]]:
        """The first rows of each class, shuffled by Python's generator and split."""
        wanted = n_train + n_test + 1  # SAEBench reads one more than it needs, and shuffles it with the others
        found: dict[str, list[str]] = {label: [] for label in CLASSES[name]}
        if name == EUROPARL:
            for language, pair in LANGUAGE_PAIRS.items():
                rows = self._rows(name, "train", subset=pair)
                found[language] = [row["translation"][language] for row in islice(rows, wanted)]
        else:
            for row in self._rows(name, "train", languages=list(CLASSES[name])):
                if row["language"] in found and len(row["code"]) > CODE_LEAST:
                    found[row["language"]].append(row["code"][CODE_SKIPPED:])
                    if all(len(texts) >= wanted for texts in found.values()):
                        break
        rng = random.Random(seed)
        parts: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
        for label, texts in found.items():
            rng.shuffle(texts)
            if len(texts) >= n_train + n_test:
                parts["train"][label] = texts[:n_train]
                parts["test"][label] = texts[n_train : n_train + n_test]
        return parts

    def _table(self, name: str, split: str) -> pd.DataFrame:
        import pandas as pd

        tables = self._tables.setdefault(name, {})
        if split not in tables:
            tables[split] = pd.DataFrame(list(self._rows(name, split, streaming=False)))
        return tables[split]

    def _rows(
        self,
        name: str,
        split: str,
        subset: str | None = None,
        streaming: bool = True,
        languages: list[str] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Rows of a data set of the hub, or of its local copy. Raises NoNetwork, DataError."""
        import datasets

        datasets.utils.logging.set_verbosity_error()
        datasets.utils.logging.disable_progress_bar()
        local = None if self.folder is None else self.folder / name
        if local is not None and not local.is_dir():
            raise DataError(
                f"eval.data={self.folder}: holds no {name}; on a machine with a network run "
                f"`hf download {name} --repo-type dataset --local-dir {local}`, or leave it out."
            )
        if local is None and not hub_is_reachable():
            raise NoNetwork(
                f"{name} could not be fetched from the hub: give eval.data=builtin, or on a machine with a network run "
                f"`hf download {name} --repo-type dataset --local-dir DIR/{name}` and give eval.data=DIR here."
            )
        lines = None if local is None else local / f"{subset}.jsonl"
        if lines is not None and lines.is_file():  # the corpus to forget is one file
            with lines.open(encoding="utf-8") as file:
                yield from map(json.loads, file)
            return
        try:
            options = {} if languages is None or local is not None else {"languages": languages}
            yield from datasets.load_dataset(str(local or name), subset, split=split, streaming=streaming, **options)
        except UserError:
            raise
        except Exception as error:  # datasets, pyarrow and fsspec each have their own
            raise DataError(f"{name} cannot be read ({one_line(error)}); fetch it again.") from error


def _sampled(table: pd.DataFrame, column: str, text: str, labels: Any, n: int, seed: int) -> dict[str, list[str]]:
    """n texts of each class, those that pandas draws with the seed."""
    found = {label: table[table[column] == label] for label in labels}
    return {
        str(label): rows[text].sample(n=n, random_state=seed).tolist()
        for label, rows in found.items()
        if len(rows) >= n
    }


def balanced(table: pd.DataFrame, columns: tuple[str, str, str], n: int, seed: int) -> dict[str, list[str]]:
    """2n texts of each class, n of each value of the second attribute; classes with too few are left out."""
    text, column, second = columns
    out = {}
    for label in table[column].unique():
        of_label = table[table[column] == label]
        groups = list(of_label.groupby(second))
        if len(groups) >= 2 and min(len(group) for _, group in groups) >= n:
            out[str(label)] = [t for _, group in groups for t in group.sample(n=n, random_state=seed)[text].tolist()]
    return out
