"""Local files of text: pieces of plain text and rows of JSON, Parquet and Arrow, one at a time.

Only the columns that are used are read: what other columns hold, and whether every file has them, does not matter.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sae_sweeps.config.data import COMPRESSED, files_of
from sae_sweeps.config.schema import DataConfig
from sae_sweeps.errors import DataError
from sae_sweeps.storage.files import one_line

PIECE = 4000
"""Characters after which a text file is cut at the next blank line; at twice that it is cut anyway."""
LONGEST_LINE = 2**28
"""Characters of one row of JSON."""
LONGEST_ARRAY = 2**30
"""Characters of one JSON array, however small its compressed file is."""
PATIENCE = 1000
"""Rows after which a column that none of them had is missed."""

NOT_TEXT = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "a zip archive",
    b"%PDF": "a PDF",
    b"PAR1": "Parquet",
}
"""Formats by a file's first bytes."""
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Encodings by the byte order mark that a file begins with."""

Row = tuple[Collection[str], dict[str, Any]]
"""A row: the names of all its fields, and the values of at least the columns that are used, where it has them."""


def pieces(file: Path) -> Iterator[str]:
    """A text file cut at blank lines, so that the held-out share of one long file is close to `data.held_out`.

    Raises DataError for a file that is no text or in another encoding than UTF-8, or UTF-16 with its mark.
    """
    piece: list[str] = []
    size = 0
    with opened(file) as lines:
        while line := lines.readline(PIECE):
            piece.append(line)
            size += len(line)
            if (size >= PIECE and not line.strip()) or size >= 2 * PIECE:
                yield "".join(piece)
                piece, size = [], 0
    yield "".join(piece)


@contextmanager
def opened(file: Path) -> Iterator[IO[str]]:
    """A text file for reading, decompressed by its ending. Raises DataError, while it is read too."""
    try:
        with _decompressed(file) as content:
            first = content.peek(4096)[:4096]
            mark = next((encoding for start, encoding in MARKS.items() if first.startswith(start)), None)
            if mark is None:
                found = next((what for start, what in NOT_TEXT.items() if first.startswith(start)), None)
                if found in COMPRESSED.values():
                    ending = next(ending for ending, what in COMPRESSED.items() if what == found)
                    raise DataError(f"data={file}: is compressed by {found}; rename it to {file.name}{ending}.")
                if found or b"\0" in first:
                    raise DataError(f"data={file}: is {found or 'no text, it holds zero bytes'}; give text in UTF-8.")
            yield io.TextIOWrapper(content, encoding=mark or "utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"data={file}: is not in UTF-8 (it holds the byte 0x{byte:02x} where no character begins); convert it, "
            f"for Latin-1 with `iconv -f latin1 -t utf-8`."
        ) from None
    except (OSError, EOFError, zlib.error) as error:  # gzip's own error is an OSError
        raise DataError(f"data={file} cannot be read ({one_line(error)}); fetch or make the file again.") from error


def _decompressed(file: Path) -> io.BufferedReader:
    kind = COMPRESSED.get(file.suffix.lower())
    if kind == "gzip":
        return io.BufferedReader(gzip.open(file))
    if kind is None:
        return file.open("rb")
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(file), compression=kind))


def rows(cfg: DataConfig, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of all files of a local data set.

    Raises DataError for a file that cannot be read and for a split that the data set has not.
    """
    if cfg.kind == "arrow":
        yield from _saved_rows(cfg, columns)
        return
    read = READERS[cfg.kind]
    for file in files_of(cfg):
        if file.stat().st_size:
            yield from read(file, columns)


def name_of(value: object) -> str | None:
    """A value of a column of names (labels, splits, data sets) as text.

    None where there is none: null, NaN (which is how pandas writes null), or blank text. Raises DataError, to be
    completed by the key, for what is no name: a list, an object or bytes.
    """
    if value is None or value != value:
        return None
    if isinstance(value, list | tuple | dict | bytes):
        raise DataError(f"is of type {type(value).__name__}, not one word or number")
    return without_lone_surrogates(str(value)) if str(value).strip() else None


def without_lone_surrogates(text: str) -> str:
    """The text with halves of UTF-16 pairs, which no tokenizer takes, joined or replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _json_rows(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of JSON lines, or of one array of objects."""
    with opened(file) as lines:
        number, line = 0, lines.readline(LONGEST_LINE)
        while line and not line.strip():
            number, line = number + 1, lines.readline(LONGEST_LINE)
        if line.lstrip().startswith("["):
            array = _parsed(file, f"line {number + 1} and on", line + _rest(file, lines))
            for place, row in enumerate(array, 1):
                yield _object(file, f"row {place}", row)
            return
        while line:
            number += 1
            if len(line) == LONGEST_LINE:
                raise DataError(f"data={file}: line {number} is longer than {LONGEST_LINE:,} characters; split it.")
            if line.strip():
                yield _object(file, f"line {number}", _parsed(file, f"line {number}", line))
            line = lines.readline(LONGEST_LINE)


def _rest(file: Path, lines: IO[str]) -> str:
    """The rest of a file that has to be in memory whole. Raises DataError for one that is too long for that."""
    rest = lines.read(LONGEST_ARRAY)
    if len(rest) == LONGEST_ARRAY:
        raise DataError(
            f"data={file}: is one JSON array of more than {LONGEST_ARRAY:,} characters, which is read whole; write it "
            "as JSON lines."
        )
    return rest


def _parsed(file: Path, place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"data={file} cannot be read as jsonl: {place} is no JSON ({one_line(error)}); mend or remove it."
        ) from None


def _object(file: Path, place: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"data={file}: {place} holds {type(row).__name__}; each row must be a JSON object.")
    return row.keys(), row


def _parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            present = [column for column in columns if column in names]
            for batch in table.iter_batches(batch_size=PATIENCE, columns=present):
                for row in batch.to_pylist() if present else [{}] * len(batch):
                    yield names, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data={file} cannot be read as parquet ({one_line(error)}); fetch or write it again."
        ) from error


def _saved_rows(cfg: DataConfig, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    import datasets

    files_of(cfg)
    try:
        saved = datasets.load_from_disk(str(Path(str(cfg.path)).expanduser()))
    except Exception as error:  # datasets, pyarrow and fsspec each have their own
        raise DataError(
            f"data={cfg.path} cannot be read as arrow ({one_line(error)}); give all that save_to_disk wrote."
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        if cfg.split not in saved:
            raise DataError(f"data.split={cfg.split} is not in {cfg.path}; it holds {', '.join(saved)}.")
        saved = saved[cfg.split]
    names = saved.column_names
    present = [column for column in columns if column in names]
    for row in saved.select_columns(present).with_format(None) if present else [{}] * len(saved):
        yield names, row


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {"jsonl": _json_rows, "parquet": _parquet_rows}
