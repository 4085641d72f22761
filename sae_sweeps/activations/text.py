"""Text from wherever the config says, as a stream of documents, split into training and held-out ones."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from sae_sweeps.activations.hub import hub_is_reachable
from sae_sweeps.config.schema import DataConfig
from sae_sweeps.errors import ConfigError, DataError, NoNetwork, UserError
from sae_sweeps.files import one_line

KINDS = ("builtin", "text", "jsonl", "parquet", "hub")
SPLITS = ("train", "held_out")
Split = Literal["train", "held_out"]
PIECE = 4000
"""Characters after which a text file is cut at the next blank line; at twice that it is cut anyway."""

_SUFFIXES = {"text": ("*.txt",), "jsonl": ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst"), "parquet": ("*.parquet",)}


@dataclass(frozen=True)
class Document:
    name: str
    text: str
    role: int = 0
    """0 plain, 1 retain, 2 forget, 3 and up labels."""


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
    if cfg.kind == "builtin":
        from sae_sweeps.builtin import corpus

        yield from (Document(name, text) for name, text in corpus.documents(cast(Split, split)))
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


def check_data(cfg: DataConfig) -> None:
    """Refuses what is wrong with the config or its files before anything is read; cheap enough for a dry run."""
    if cfg.kind not in KINDS:
        raise ConfigError(f"data.kind={cfg.kind} is not known; choose one of {', '.join(KINDS)}.")
    if cfg.kind == "builtin":
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
    for i, row in enumerate(_rows(cfg)):
        if cfg.text_field not in row:
            raise DataError(
                f"data.text_field={cfg.text_field} is not in {cfg.path}; its fields are {', '.join(map(str, row))}."
            )
        text = row[cfg.text_field]
        if text is not None and not isinstance(text, str):
            raise DataError(f"data.text_field={cfg.text_field} holds {type(text).__name__}, not text, in {cfg.path}.")
        yield Document(f"{cfg.path}#{i}", text or "")


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
    return (
        f"data={cfg.path} could not be fetched from the hub: check the name, or on a machine with a network run "
        f"`hf download {cfg.path} --repo-type dataset --local-dir DIR`, copy DIR here and name its files "
        "with data=DIR."
    )


def _hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
