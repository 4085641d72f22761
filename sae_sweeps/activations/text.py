"""The text that `data` names as a stream of documents, split into training and held-out ones."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

from sae_sweeps.activations import text_files
from sae_sweeps.activations.document import Document
from sae_sweeps.activations.roles import FIRST_LABEL, FORGET, NAMED, PLAIN, RETAIN, interleaved, label_names
from sae_sweeps.config.data import check_data, files_of, find_source, source
from sae_sweeps.config.schema import DataConfig
from sae_sweeps.errors import DataError, NoNetwork, UserError
from sae_sweeps.storage.files import one_line
from sae_sweeps.storage.hub import hub_is_reachable

LOOKED_AT = 1000
"""Rows that `look` reads."""
LARGE_ARRAY = 2**26
"""Bytes of one JSON array, which is read whole, above which `look` does not."""
SPLITS = ("train", "held_out")
Split = Literal["train", "held_out"]


def documents(cfg: DataConfig, split: str) -> Iterator[Document]:
    """The documents of one split, in the order of the source; empty ones are left out.

    A document is held out when a hash of its text falls under `cfg.held_out`, so the split does not depend on order,
    file names or how much is read. Built-in data have a split of their own, by module.

    Raises:
        ConfigError: a key has a wrong value.
        DataError: a file is missing, empty or unreadable, a row lacks the text field, or the split has no documents.
        NoNetwork: a hub data set cannot be reached.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, not one of {SPLITS}")
    check_data(cfg)
    if cfg.kind in SPLIT:
        yield from SPLIT[cfg.kind](cfg, split)
        return
    total = kept = 0
    for document in READ.get(cfg.kind, _from_outside)(cfg):
        if not document.text.strip():
            continue
        total += 1
        if (_hash_fraction(document.text) < cfg.held_out) == (split == "held_out"):
            kept += 1
            yield document
    if not total:
        raise DataError(f"data={cfg.path or cfg.name} holds no text; give one that does.")
    if not kept:
        mend = "raise" if split == "held_out" else "lower"
        purpose = "evaluation" if split == "held_out" else "training"
        raise DataError(
            f"data.held_out={cfg.held_out} leaves none of the {total} documents of {cfg.path or cfg.name} for "
            f"{purpose}; {mend} it or give more text."
        )


def look(cfg: DataConfig) -> list[str]:
    """Warnings about the first rows of local text. Raises ConfigError, DataError for what reading them would end in."""
    if cfg.kind == "forget_retain":
        return [warning for key in ("forget", "retain") for warning in look(source(cfg, key))]
    if cfg.kind not in ("text", "jsonl", "parquet", "arrow"):
        return []
    files = files_of(cfg)
    if cfg.kind == "text":
        next(text_files.pieces(next(file for file in files if file.stat().st_size)))
        return []
    if any(file.suffix == ".json" and file.stat().st_size > LARGE_ARRAY for file in files[:1]):
        return []
    rows = list(itertools.islice(_rows(cfg), LOOKED_AT))
    empty = 0
    for number, row in enumerate(rows, 1):
        empty += not _text(cfg, "text_field", row)
        _label(cfg, row, number)
    if not empty:
        return []
    which = f"the first {len(rows):,}" if len(rows) == LOOKED_AT else f"{len(rows):,}"
    return [f"data={cfg.path}: {empty:,} of {which} rows have no text in data.text_field={cfg.text_field}: left out"]


def _builtin(cfg: DataConfig, split: str) -> Iterator[Document]:
    from sae_sweeps.builtin.text import corpus

    role = _builtin_roles(cfg.kind)
    return (Document(name, text, role(name)) for name, text in corpus.documents(cast(Split, split)))


def _forget_retain(cfg: DataConfig, split: str) -> Iterator[Document]:
    forget, retain = (documents(source(cfg, key), split) for key in ("forget", "retain"))
    return interleaved(forget, retain, cfg.forget_share)


def _builtin_roles(kind: str) -> Callable[[str], int]:
    """The role of a built-in document by its name."""
    from sae_sweeps.builtin.text.topics import FORGET as FORGOTTEN
    from sae_sweeps.builtin.text.topics import LABELS, topic_of

    if kind == "builtin_roles":
        return lambda name: FORGET if topic_of(name) == FORGOTTEN else RETAIN
    if kind == "builtin_labelled":
        return lambda name: FIRST_LABEL + LABELS.index(topic_of(name))
    return lambda name: PLAIN


def roles(cfg: DataConfig) -> dict[int, str]:
    """Names of the roles of this text; empty where it has none.

    Raises ConfigError and DataError as `documents` does: local labelled text is read once to find its labels.
    """
    if cfg.kind in ("builtin_roles", "forget_retain"):
        return {RETAIN: "retain", FORGET: "forget"}
    if cfg.kind == "builtin_labelled":
        from sae_sweeps.builtin.text.topics import LABELS

        return dict(enumerate(LABELS, FIRST_LABEL))
    if cfg.label_field is None:
        return {}
    named = {role: name for name, role in NAMED.items()}
    return named | dict(enumerate(label_names(cfg, lambda: _labels(cfg)), FIRST_LABEL))


def _labels(cfg: DataConfig) -> Iterator[object]:
    return (_label(cfg, row, number) for number, row in enumerate(_rows(cfg), 1))


def _label(cfg: DataConfig, row: dict[str, Any], number: int) -> str | None:
    """The row's label; None where the text has no labels. Raises DataError for a row that lacks one."""
    if cfg.label_field is None:
        return None
    try:
        label = text_files.name_of(row[cfg.label_field])
    except DataError as error:
        raise DataError(
            f"data.label_field={cfg.label_field}: the label of row {number:,} of {cfg.path} {error}; name a column of "
            "labels."
        ) from None
    if label is None:
        raise DataError(
            f"data.label_field={cfg.label_field}: row {number:,} of {cfg.path} has no label; give it one, or remove it."
        )
    return label


def _text_files(cfg: DataConfig) -> Iterator[Document]:
    for file in files_of(cfg):
        for i, piece in enumerate(text_files.pieces(file)):
            yield Document(f"{file.name}#{i}", piece)


def _from_outside(cfg: DataConfig) -> Iterator[Document]:
    """The documents of a kind that was registered. Raises DataError for what is no document."""
    read = find_source(cfg.kind).documents
    assert read is not None
    for item in read(cfg if cfg.own is None else cfg.own):
        if isinstance(item, Document):
            yield item
        elif isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
            yield Document(*item)
        else:
            raise DataError(
                f"data={cfg.name}: its documents give a {type(item).__name__}, which is neither a Document nor a pair "
                "of name and text; mend the source."
            )


def _labelled_rows(cfg: DataConfig) -> Iterator[Document]:
    role_of = {name: role for role, name in roles(cfg).items()}
    for i, row in enumerate(_rows(cfg)):
        role, pair = PLAIN, None
        if (label := _label(cfg, row, i + 1)) is not None:
            if label not in role_of:
                raise DataError(f"data.labels={cfg.labels}: {cfg.path} holds the label {label} too; list it.")
            role = role_of[label]
        if cfg.pair_field is not None:
            pair = _text(cfg, "pair_field", row)
        yield Document(f"{cfg.path}#{i}", _text(cfg, "text_field", row), role, pair)


def _text(cfg: DataConfig, key: str, row: dict[str, Any]) -> str:
    text = row[getattr(cfg, key)]
    if text is not None and not isinstance(text, str):
        raise DataError(
            f"data.{key}={getattr(cfg, key)} holds {type(text).__name__}, not text, in {cfg.path}; name a column of "
            f"text, as data.{key}=COLUMN."
        )
    return text_files.without_lone_surrogates(text or "")


def _rows(cfg: DataConfig) -> Iterator[dict[str, Any]]:
    """The used columns of the rows of a JSONL, Parquet, Arrow or hub data set; None where a row lacks one.

    Raises DataError for a column that no row has, after PATIENCE of them.
    """
    columns = [column for column in (cfg.text_field, cfg.label_field, cfg.pair_field) if column is not None]
    missing, first, names = set(columns), list[dict[str, Any]](), dict[str, None]()
    for fields, row in _hub_rows(cfg) if cfg.kind == "hub" else text_files.rows(cfg, columns):
        used = {column: row.get(column) for column in columns}
        if missing:
            missing -= set(fields)
            names |= dict.fromkeys(fields)
            first.append(used)
            if missing and len(first) < text_files.PATIENCE:
                continue
            _refuse_missing(cfg, missing, names)
            yield from first
        else:
            yield used
    if first:
        _refuse_missing(cfg, missing, names)


def _refuse_missing(cfg: DataConfig, missing: set[str], names: Iterable[str]) -> None:
    for key in ("text_field", "label_field", "pair_field"):
        column = getattr(cfg, key)
        if column in missing:
            tokenized = key == "text_field" and "input_ids" in names
            mend = " (token ids, which are not read; give the text that they were made from)" if tokenized else ""
            raise DataError(
                f"data.{key}={column} is not in {cfg.path}; its fields are {', '.join(map(str, names))}{mend}."
            )


def _hub_rows(cfg: DataConfig) -> Iterator[text_files.Row]:
    """Rows of a hub data set, or of a copy of one in a folder, through `datasets`."""
    import datasets

    datasets.utils.logging.set_verbosity_error()
    datasets.utils.logging.disable_progress_bar()
    try:
        if not Path(str(cfg.path)).is_dir() and not hub_is_reachable():
            raise NoNetwork(_fetch_first(cfg))
        found = datasets.load_dataset(str(cfg.path), cfg.subset, split=cfg.split, revision=cfg.revision, streaming=True)
        for row in found:
            yield row.keys(), row
    except UserError:
        raise
    except ConnectionError as error:
        raise NoNetwork(_fetch_first(cfg)) from error
    except Exception as error:  # datasets, pyarrow and fsspec each have their own
        raise DataError(f"data={cfg.path} cannot be read as {cfg.kind} ({one_line(error)}).") from error


def _fetch_first(cfg: DataConfig) -> str:
    key = f"data.{cfg.name}" if cfg.name in NAMED else "data"
    return (
        f"{key}={cfg.path} could not be fetched from the hub: check the name (and, where it is gated, accept "
        "its terms there and run `hf auth login`), or on a machine with a network run "
        f"`hf download {cfg.path} --repo-type dataset --local-dir DIR`, copy DIR here and name its files with "
        f"{key}=DIR."
    )


def _hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


SPLIT: dict[str, Callable[[DataConfig, str], Iterator[Document]]] = {
    "builtin": _builtin,
    "builtin_roles": _builtin,
    "builtin_labelled": _builtin,
    "forget_retain": _forget_retain,
}
"""Readers of the kinds that have a split of their own."""
READ: dict[str, Callable[[DataConfig], Iterator[Document]]] = {
    "text": _text_files,
    "jsonl": _labelled_rows,
    "parquet": _labelled_rows,
    "arrow": _labelled_rows,
    "hub": _labelled_rows,
}
"""Readers of the kinds that are split by a hash of each text."""
