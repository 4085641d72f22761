"""Text that comes with every Python: the standard library's sources and reference texts.

A document is one module, one topic of the language reference (`pydoc_data.topics`) or the docstrings of one module
written in C. Parts that distributions package separately or that differ between machines are excluded, so that one
Python version gives one corpus; `digest` identifies it.
"""

import hashlib
import importlib
import inspect
import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from sae_sweeps.errors import DataError

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")

HELD_OUT = 0.1
"""Share of the documents that is held out."""

MIN_CHARS = 200
"""Shorter texts are excluded."""

LEFT_OUT = frozenset(
    "test tests idle_test site-packages dist-packages lib-dynload __pycache__ "  # tests, other people's packages
    "idlelib tkinter turtle turtledemo lib2to3 distutils ensurepip __phello__ "  # often packaged separately, or removed
    "encodings stringprep pydoc_data sitecustomize usercustomize".split()  # tables, the topics' raw form, local files
)
"""Names of folders and modules that are excluded."""

LEFT_OUT_PREFIXES = ("_sysconfigdata", "config-")
"""Prefixes of build records, which differ between machines."""

C_MODULES = (
    "builtins _collections _functools _io _operator _random _struct "
    "array binascii cmath itertools math time unicodedata zlib"
).split()
"""Modules without a source in Python whose docstrings, the same on every platform, are reference texts."""


def documents(split: Split) -> Iterator[tuple[str, str]]:
    """(name, text) of each document of the split, in a fixed, mixed order: a prefix is a fair sample.

    Names are those of modules (`json.decoder`), topics (`pydoc_data.topics:lambda`) and C-implemented modules (`math`).
    A document's split is given by a hash of its name, so no module is both trained on and held out.

    Raises:
        ValueError: no such split.
        DataError: this Python has no standard library in files.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    for name, text in _documents():
        if split_of(name) == split:
            yield name, text


def split_of(name: str) -> Split:
    """The split that the document with this name belongs to."""
    # The last 8 bytes: the first ones give the order, in which held-out documents must be spread evenly.
    return "held_out" if int.from_bytes(_hash(name)[-8:], "big") < HELD_OUT * 2**64 else "train"


@cache
def digest() -> str:
    """Hex digest (BLAKE2b, 16 bytes) of the names and texts of both splits, in order."""
    total = hashlib.blake2b(digest_size=16)
    for name, text in _documents():
        for part in (split_of(name), name, text):
            content = part.encode("utf-8")
            total.update(len(content).to_bytes(8, "big"))  # so that parts cannot run together
            total.update(content)
    return total.hexdigest()


def _documents() -> list[tuple[str, str]]:
    """(name, text) of both splits, sorted by a hash of the name."""
    texts = _reference_texts() | _modules(Path(sysconfig.get_paths()["stdlib"]))
    return sorted(texts.items(), key=lambda document: _hash(document[0]))


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8")).digest()


def _modules(stdlib: Path) -> dict[str, str]:
    """Sources under the folder by module name, files that cannot be read or are not UTF-8 left out."""
    texts = {}
    for folder, subfolders, files in os.walk(stdlib):
        subfolders[:] = filter(_is_text, subfolders)  # prunes the walk
        for path in (Path(folder, file) for file in files if file.endswith(".py")):
            if not _is_text(path.stem):
                continue
            try:
                text = path.read_text("utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if len(text) >= MIN_CHARS:
                texts[".".join(path.relative_to(stdlib).with_suffix("").parts).removesuffix(".__init__")] = text
    if not texts:
        raise DataError(f"{stdlib} holds no Python sources; use a Python that keeps its standard library in files.")
    return texts


def _is_text(name: str) -> bool:
    return name not in LEFT_OUT and not name.startswith(LEFT_OUT_PREFIXES)


def _reference_texts() -> dict[str, str]:
    """The language reference by topic, and the docstrings of the modules written in C."""
    texts = {}
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions leave it out
        topics = {}
    for topic, text in topics.items():
        if len(text) >= MIN_CHARS:
            texts[f"pydoc_data.topics:{topic}"] = text
    for name in C_MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if len(text := _docstrings(module)) >= MIN_CHARS:
            texts[name] = text
    return texts


def _docstrings(module: object) -> str:
    """Docstrings of the module, its functions, classes and methods, each under its name, in alphabetical order."""
    entries = [inspect.getdoc(module) or ""]
    for name, member in sorted(vars(module).items()):
        # Only functions and classes written in C: start-up adds others to `builtins`.
        if name.startswith("_") or not (inspect.isbuiltin(member) or inspect.isclass(member)):
            continue
        entries.append(f"{name}\n\n{inspect.getdoc(member) or ''}")
        if inspect.isclass(member):
            for method_name, method in sorted(vars(member).items()):
                doc = method.__doc__ if callable(method) and not method_name.startswith("_") else None
                if doc:
                    entries.append(f"{name}.{method_name}\n\n{inspect.cleandoc(doc)}")
    return "\n\n\n".join(entries) + "\n"
