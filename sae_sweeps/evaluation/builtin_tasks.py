"""Labelled text, hierarchies and questions made from the standard library, so that every evaluation runs offline.

A row is a piece of a module: prose (docstrings and comments) or code. Its coarse class is the module's topic, its fine
class the package, its second attribute prose or code. Train and test rows come from different blocks of the modules.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from itertools import chain, islice
from typing import Any

from sae_sweeps.builtin.text import corpus
from sae_sweeps.builtin.text.topics import FORGET, topic_of
from sae_sweeps.config.evaluations import UnlearningConfig
from sae_sweeps.errors import DataError
from sae_sweeps.evaluation.draws import stream_seed
from sae_sweeps.evaluation.questions import Candidates, QuestionSet
from sae_sweeps.evaluation.tasks import Hierarchy, Pair, Task, six_classes

ROW_CHARS = 240
"""About 64 tokens of the built-in tokenizer."""
BLOCK_CHARS = 8000
"""Rows of one block are all in one split."""
TEST_BLOCKS = 3
"""Every third block, by a hash, is for testing."""
TRAIN_ROWS, TEST_ROWS, FINE_ROWS = 400, 200, 100
"""Most rows of a binary task, and of a fine class."""
KINDS = ("prose", "code")
CONTEXTS, CONTEXT = 64, 128
"""Of each corpus of unlearning."""
QUESTIONS, GIVEN, CONTINUED = 120, 32, 8
"""Candidates about each corpus, tokens that are given, and tokens of a continuation."""

TOPICS = {
    "builtin/topics_set1": ("archives", "concurrency", "markup", "network", "testing"),
    "builtin/topics_set2": ("code", "mail", "numbers", "other"),
}
PACKAGES = "builtin/packages"
KIND_TASK = "builtin/prose_or_code"
PACKAGE_CLASSES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")
PAIRS = (("concurrency", "markup"), ("network", "testing"), ("testing", "markup"), ("concurrency", "network"))
FINE = {
    "archives": ("tarfile", "zipfile"),
    "code": ("importlib", "inspect", "pydoc", "typing"),
    "concurrency": ("asyncio", "concurrent", "multiprocessing", "threading"),
    "mail": ("email", "mailbox"),
    "markup": ("html", "xml"),
    "network": ("http", "ipaddress", "urllib", "xmlrpc"),
    "numbers": ("_pydecimal", "datetime"),
    "testing": ("doctest", "pdb", "unittest"),
}
HIERARCHY = "builtin/topics_and_packages"
QUESTION_SETS = ("builtin/forget_continuations", "builtin/retain_continuations")


class BuiltinSource:
    """Labelled text and questions from the standard library."""

    kind: str = "builtin"
    probing: tuple[str, ...] = (*TOPICS, PACKAGES, KIND_TASK)
    tpp: tuple[str, ...] = tuple(TOPICS)
    pairs: tuple[Pair, ...] = tuple(Pair("builtin/topics_set1", pair) for pair in PAIRS)
    attributes: Mapping[str, tuple[str, ...]] = TOPICS
    hierarchies: tuple[str, ...] = (HIERARCHY,)
    question_sets: tuple[str, ...] = QUESTION_SETS

    @property
    def digest(self) -> str:
        return f"builtin:{corpus.digest()}"

    def task(self, name: str, train_rows: int, test_rows: int, seed: int) -> Task:
        """Topics have as much prose as code, and prose and code as much of each topic."""
        sizes = {"train": min(train_rows, TRAIN_ROWS) // 2, "test": min(test_rows, TEST_ROWS) // 2}
        parts: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
        for split, n in sizes.items():
            for label in classes_of(name):
                rng = random.Random(stream_seed(seed, "rows", name, label, split))
                groups = groups_of(name, label, split)
                texts = [text for group in groups for text in sample(group, n // len(groups), rng, f"{name}: {label}")]
                parts[split][label] = texts
        return Task(name, parts["train"], parts["test"])

    def pair_task(self, pair: Pair, train_rows: int, test_rows: int, seed: int) -> Task:
        """Topics in the place of professions, prose and code in the place of genders."""
        parts = {}
        for split, n in (("train", min(train_rows, TRAIN_ROWS)), ("test", min(test_rows, TEST_ROWS))):
            quadrants = {
                (label, kind): texts_of(topic=label, kind=kind, split=split) for label in pair.classes for kind in KINDS
            }
            for place, texts in quadrants.items():
                random.Random(stream_seed(seed, "quadrant", *place, split)).shuffle(texts)
            parts[split] = six_classes(quadrants, pair.classes, KINDS, n // 4, seed, pair.name)
        return Task(pair.name, parts["train"], parts["test"])

    def hierarchy(self, name: str, n_rows: int, seed: int) -> Hierarchy:
        """Topics, and packages inside them."""
        n = min(n_rows, FINE_ROWS)
        texts: dict[str, dict[str, list[str]]] = {}
        for topic, packages in FINE.items():
            texts[topic] = {}
            for package in packages:
                rng = random.Random(stream_seed(seed, "rows", name, topic, package))
                found = texts_of(package=package)
                texts[topic][package] = sample(found, n, rng, f"{name}: {package}")
        return Hierarchy(name, texts)

    def corpus(self, split: str) -> list[str]:
        """Modules about one topic, and all others."""
        return [text for name, text in documents() if (topic_of(name) == FORGET) == (split == "forget")]

    def corpus_size(self, contexts: int, context: int) -> tuple[int, int]:
        return min(contexts, CONTEXTS), min(context, CONTEXT)

    def questions(self, lm: Any, cfg: UnlearningConfig, seed: int, sets: Collection[str]) -> list[Candidates]:
        """Which of four continuations of a piece of code is the real one; the others come from the same corpus."""
        made = []
        for name in sets:
            forget = name == QUESTION_SETS[0]
            texts = [t for (topic, _, kind, _), t in rows() if (topic == FORGET) == forget and kind == "code"]
            rng = random.Random(stream_seed(seed, "questions", name))
            tokens = tokenized(rng.sample(texts, len(texts)), lm.tokenizer)
            long = list(
                islice((row[: GIVEN + CONTINUED] for row in tokens if len(row) >= GIVEN + CONTINUED), QUESTIONS)
            )
            start = [] if lm.bos_id is None else [lm.bos_id]
            choices, answers = [], []
            for i, row in enumerate(long):
                right = rng.randrange(4)
                others = rng.sample([j for j in range(len(long)) if j != i], 3)
                order = [*others[:right], i, *others[right:]]
                choices += [start + row[:GIVEN] + long[j][GIVEN:] for j in order]
                answers.append(right)
            questions = QuestionSet(name, forget, choices, answers, CONTINUED)
            made.append(Candidates(questions, questions, 1))
        return made


def tokenized(texts: list[str], tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of each text, a few hundred texts at a time, so that the first need not wait for all."""
    for first in range(0, len(texts), 256):
        yield from tokenizer(texts[first : first + 256], add_special_tokens=False)["input_ids"]


def classes_of(name: str) -> tuple[str, ...]:
    return {**TOPICS, PACKAGES: PACKAGE_CLASSES, KIND_TASK: KINDS}[name]


def groups_of(name: str, label: str, split: str) -> list[list[str]]:
    """The texts of a class in groups that are to be equally large."""
    if name == KIND_TASK:
        return [texts_of(topic=topic, kind=label, split=split) for topics in TOPICS.values() for topic in topics]
    if name == PACKAGES:
        return [texts_of(package=label, split=split)]
    return [texts_of(topic=label, kind=kind, split=split) for kind in KINDS]


def texts_of(**wanted: str) -> list[str]:
    """Rows whose topic, package, kind or split are as wanted."""
    fields = ("topic", "package", "kind", "split")
    places = [(fields.index(key), value) for key, value in wanted.items()]
    found = [texts for row, texts in alike().items() if all(row[place] == value for place, value in places)]
    return [text for _, text in sorted(chain.from_iterable(found))]


def sample(texts: list[str], n: int, rng: random.Random, where: str) -> list[str]:
    if len(texts) < n:
        raise DataError(f"{where} has {len(texts)} rows in this Python's standard library, and {n} are needed.")
    return rng.sample(texts, n)


@cache
def rows() -> list[tuple[tuple[str, str, str, str], str]]:
    """((topic, package, prose or code, train or test), text) of every row of every module, each text once: a licence
    that two modules share must not be in both splits."""
    found: dict[str, tuple[str, str, str, str]] = {}
    for name, source in documents():
        for kind, part in zip(KINDS, prose_and_code(source), strict=True):
            for split, text in pieces(part, name):
                found.setdefault(text, (topic_of(name), name.partition(".")[0], kind, split))
    return [(row, text) for text, row in found.items()]


@cache
def alike() -> dict[tuple[str, str, str, str], list[tuple[int, str]]]:
    """The numbers and texts of the rows that agree in topic, package, kind and split."""
    found: dict[tuple[str, str, str, str], list[tuple[int, str]]] = {}
    for number, (row, text) in enumerate(rows()):
        found.setdefault(row, []).append((number, text))
    return found


def documents() -> Iterator[tuple[str, str]]:
    for split in corpus.SPLITS:
        for name, text in corpus.documents(split):
            if ":" not in name:  # topics of the reference are no modules
                yield name, text


def prose_and_code(source: str) -> tuple[str, str]:
    """Docstrings and comments of a module, and the rest of it."""
    lines = source.splitlines()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # docstrings of a module written in C
        return source, ""
    prose = {n for n, line in enumerate(lines, 1) if line.lstrip().startswith("#")}
    for node in statements(tree):
        if isinstance(node, DOCUMENTED) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                prose |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    comments = [line.strip().lstrip("#").strip().strip('"') for n, line in enumerate(lines, 1) if n in prose]
    done = [line for n, line in enumerate(lines, 1) if n not in prose]
    return "\n".join(filter(None, comments)), "\n".join(line for line in done if line.strip())


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """The tree and every statement in it, in any order: a tenth of its nodes, and no expression defines anything."""
    left = [tree]
    while left:
        node = left.pop()
        yield node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            left += getattr(node, part, ())


def pieces(text: str, name: str) -> Iterator[tuple[str, str]]:
    """(split, piece) of about ROW_CHARS characters, cut at line ends."""
    piece: list[str] = []
    size = at = 0
    for line in text.splitlines():
        piece.append(line)
        size += len(line) + 1
        if size >= ROW_CHARS:
            block = at // BLOCK_CHARS
            is_test = stream_seed(0, "block", name, str(block)) % TEST_BLOCKS == 0
            yield ("test" if is_test else "train"), "\n".join(piece)
            at += size
            piece, size = [], 0
