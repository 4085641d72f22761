"""An append-only file of JSON objects, one per line: readable after a kill at any moment."""

import json
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import digest_of, naming_full_disk, without_nonfinite, write_bytes


class RowFile:
    """Every row has the key `by`, of type `kind`: by default a `step`.

    Making the object touches nothing on disk; the file appears with the first row.
    """

    def __init__(self, path: Path, by: str = "step", kind: type = int):
        self.path, self.by, self.kind = path, by, kind
        self._file: FileIO | None = None

    def append(self, row: dict[str, Any]) -> None:
        """Add one line. A non-finite number becomes null, and its key is named in `nonfinite`.

        Values are plain scalars, tensors and arrays of one element, and lists and dicts of plain scalars. Raises
        DiskFull, with no partial line left.
        """
        row = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
        clean = without_nonfinite(row)
        if nonfinite := [key for key, value in row.items() if clean[key] != value]:
            clean["nonfinite"] = nonfinite
        line = json.dumps(clean, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with naming_full_disk(self.path):
            if self._file is None:
                self._file = self._open()
            start = self._file.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(line):
                    written += self._file.write(line[written:]) or 0
            except OSError:
                self._file.truncate(start)
                raise

    def rows(self) -> list[dict[str, Any]]:
        """The rows, oldest first; a torn last line is left out. Raises DamagedFile for any other."""
        return [row for _, row in self._lines()]

    def row(self, line: bytes) -> dict[str, Any] | None:
        """The row in a line, or None where it holds none."""
        try:
            row = json.loads(line)
            return row if isinstance(row[self.by], self.kind) else None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def truncate(self, step: int) -> None:
        """Drop, atomically, the rows after `step` and a torn last line."""
        if not self.path.exists():
            return
        kept = b"".join(line for line, row in self._lines() if row["step"] <= step)
        self.close()
        if kept != self.path.read_bytes():
            write_bytes(self.path, kept)

    def digest(self) -> str:
        """SHA-256 of the file, which is on the disk then; empty where it has no rows.

        Raises DataError where the file that rows were written to was removed.
        """
        if self._file is not None:
            with naming_full_disk(self.path):
                os.fsync(self._file.fileno())
            if not self.path.exists():
                raise DataError(f"{self.path} was removed while it was written; launch the command again.")
        return digest_of(self.path)

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Each whole line and its row."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return  # torn by a kill
                row = self.row(line)
                if row is None:
                    raise DamagedFile(
                        f"{self.path} is damaged at line {number}; restore it, or remove that line to go on."
                    )
                yield line, row

    def _open(self) -> FileIO:
        """The file, unbuffered, to append to, after cutting off a torn last line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(self.path, "a+")
        file.seek(0)
        content = file.readall()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
        return file
