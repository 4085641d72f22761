"""Text from wherever the config says, as a stream of documents, split into training and held-out ones."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

from sae_sweeps.activations.document import Document
from sae_sweeps.activations.roles import FIRST_LABEL, FORGET, NAMED, PLAIN, RETAIN, interleaved, label_names
from sae_sweeps.config.data import source
from sae_sweeps.config.schema import DataConfig
from sae_sweeps.errors import ConfigError, DataError, NoNetwork, UserError
from sae_sweeps.storage.files import one_line
from sae_sweeps.storage.hub import hub_is_reachable

BUILTIN = ("builtin", "builtin_roles", "builtin_labelled")
KINDS = (*BUILTIN, "text", "jsonl", "parquet", "hub", "forget_retain")
SPLITS = ("train", "held_out")
Split = Literal["train", "held_out"]
PIECE = 4000
"""Characters after which a text file is cut at the next blank line; at twice that it is cut anyway."""

_SUFFIXES = {"text": ("*.txt",), "jsonl": ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst"), "parquet": ("*.parquet",)}


def documents(cfg: DataConfig, split: str) -> Iterator[Document]:
    """The documents of one split, in the order of the source; empty ones are left out.

    A document is held out when a hash of its text falls under `cfg.held_out`, so the split does not depend on order,
    file names or how much is read. Built-in data have a split of their own, by module.

    Raises:
        ConfigError: a key has a value that cannot be meant.
        DataError: a file is missing, empty or unreadable, a row lacks the text field, or the split has no documents.
        NoNetwork: a hub data set cannot be reached.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, not one of {SPLITS}")
    check_data(cfg)
    if cfg.kind in BUILTIN:
        from sae_sweeps.builtin.text import corpus

        role = _builtin_roles(cfg.kind)
        yield from (Document(name, text, role(name)) for name, text in corpus.documents(cast(Split, split)))
        return
    if cfg.kind == "forget_retain":
        yield from interleaved(
            documents(source(cfg, "forget"), split), documents(source(cfg, "retain"), split), cfg.forget_share
        )
        return
    total = kept = 0
    for document in _read(cfg):
        if not document.text.strip():
            continue
        total += 1
        if (_hash_fraction(document.text) < cfg.held_out) == (split == "held_out"):
            kept += 1
            yield document
    if not total:
        raise DataError(f"data={cfg.path} holds no text; give one that does.")
    if not kept:
        mend = "raise" if split == "held_out" else "lower"
        purpose = "evaluation" if split == "held_out" else "training"
        raise DataError(
            f"data.held_out={cfg.held_out} leaves none of the {total} documents of {cfg.path} for {purpose}; "
            f"{mend} it or give more text."
        )


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
    """What the roles of this text are called; empty where it has none.

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
    assert cfg.label_field is not None
    return (_field(cfg, "label_field", row) for row in _rows(cfg))


def _field(cfg: DataConfig, key: str, row: dict[str, Any]) -> Any:
    """A column of a row by the config key that names it."""
    column = getattr(cfg, key)
    if column not in row:
        raise DataError(f"data.{key}={column} is not in {cfg.path}; its fields are {', '.join(map(str, row))}.")
    return row[column]


def check_data(cfg: DataConfig) -> None:
    """Refuses what is wrong with the config or its files before anything is read; cheap enough for a dry run."""
    if cfg.kind not in KINDS:
        raise ConfigError(f"data.kind={cfg.kind} is not known; choose one of {', '.join(KINDS)}.")
    if cfg.kind in BUILTIN:
        return
    if cfg.kind == "forget_retain":
        if not 0 < cfg.forget_share < 1:
            raise ConfigError(f"data.forget_share={cfg.forget_share} is not a share; choose one above 0 and below 1.")
        for key in ("forget", "retain"):
            check_data(source(cfg, key))
        return
    if not cfg.path:
        raise ConfigError(f"data.path is not set, and data.kind={cfg.kind} needs a file, folder or name there.")
    if not 0 < cfg.held_out < 1:
        raise ConfigError(f"data.held_out={cfg.held_out} is not a share; choose one above 0 and below 1.")
    if cfg.kind != "hub":
        _files(cfg)


def _files(cfg: DataConfig) -> list[Path]:
    path = Path(str(cfg.path)).expanduser()
    if path.is_dir():
        patterns = _SUFFIXES[cfg.kind]
        files = sorted({file for pattern in patterns for file in path.rglob(pattern)})
        if not files:
            raise DataError(f"data={cfg.path}: the folder holds no {patterns[0]} file; give one that does.")
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"data={cfg.path}: there is no such file or folder; check data.path.")
    if not any(file.stat().st_size for file in files):
        raise DataError(f"data={cfg.path} is empty; give a file with text in it.")
    return files


def _read(cfg: DataConfig) -> Iterator[Document]:
    if cfg.kind == "text":
        for file in _files(cfg):
            for i, piece in enumerate(_pieces(file)):
                yield Document(f"{file.name}#{i}", piece)
        return
    role_of = {name: role for role, name in roles(cfg).items()}
    for i, row in enumerate(_rows(cfg)):
        role, pair = PLAIN, None
        if cfg.label_field is not None:
            label = str(_field(cfg, "label_field", row))
            if label not in role_of:
                raise DataError(f"data.labels={cfg.labels}: {cfg.path} holds the label {label} too; list it.")
            role = role_of[label]
        if cfg.pair_field is not None:
            pair = _text(cfg, "pair_field", row)
        yield Document(f"{cfg.path}#{i}", _text(cfg, "text_field", row), role, pair)


def _text(cfg: DataConfig, key: str, row: dict[str, Any]) -> str:
    text = _field(cfg, key, row)
    if text is not None and not isinstance(text, str):
        raise DataError(f"data.{key}={getattr(cfg, key)} holds {type(text).__name__}, not text, in {cfg.path}.")
    return text or ""


def _pieces(file: Path) -> Iterator[str]:
    """A text file cut at blank lines, so that the held-out share of one long file is close to what was asked for."""
    piece: list[str] = []
    size = 0
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            while line := lines.readline(PIECE):
                piece.append(line)
                size += len(line)
                if (size >= PIECE and not line.strip()) or size >= 2 * PIECE:
                    yield "".join(piece)
                    piece, size = [], 0
    except OSError as error:
        raise DataError(f"data={file} cannot be read ({one_line(error)}).") from error
    yield "".join(piece)


def _rows(cfg: DataConfig) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL, Parquet or hub data set, one at a time, through `datasets`."""
    import datasets

    datasets.utils.logging.set_verbosity_error()
    datasets.utils.logging.disable_progress_bar()
    try:
        rows: Iterable[dict[str, Any]]
        if cfg.kind == "hub":
            if not Path(str(cfg.path)).is_dir() and not hub_is_reachable():
                raise NoNetwork(_fetch_first(cfg))
            rows = datasets.load_dataset(
                str(cfg.path), cfg.subset, split=cfg.split, revision=cfg.revision, streaming=True
            )
        else:
            files = [str(file) for file in _files(cfg) if file.stat().st_size]
            builder = "json" if cfg.kind == "jsonl" else "parquet"
            rows = datasets.load_dataset(builder, data_files=files, split="train", streaming=True)
        yield from rows
    except UserError:
        raise
    except ConnectionError as error:
        raise NoNetwork(_fetch_first(cfg)) from error
    except Exception as error:  # datasets, pyarrow and fsspec each have their own
        raise DataError(f"data={cfg.path} cannot be read as {cfg.kind} ({one_line(error)}).") from error


def _fetch_first(cfg: DataConfig) -> str:
    key = f"data.{cfg.name}" if cfg.name in NAMED else "data"
    return (
        f"{key}={cfg.path} could not be fetched from the hub: check the name (and, where its owner asks for it, accept "
        "its terms there and run `hf auth login`), or on a machine with a network run "
        f"`hf download {cfg.path} --repo-type dataset --local-dir DIR`, copy DIR here and name its files with "
        f"{key}=DIR."
    )


def _hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
