"""Hashes of configs and of the content of files."""

import hashlib
import json
from pathlib import Path
from typing import Any

from sae_sweeps.storage.files import read_json, write_json

LARGE_FILE = 64 * 2**20
"""Bytes above which a file's digest is cached."""


def short_hash(obj: Any) -> str:
    """12 hexadecimal digits of the SHA-256 of an object's JSON, keys sorted."""
    return hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()[:12]


def digest_of_files(files: list[Path], cache: Path | None) -> str:
    """SHA-256 over names and contents; the digest of a large file is remembered by size and time of change."""
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode() + b"\0" + _file_digest(file, cache).encode())
    return total.hexdigest()[:16]


def _file_digest(file: Path, cache: Path | None) -> str:
    stat = file.stat()
    note = None
    if cache is not None and stat.st_size > LARGE_FILE:
        key = [str(file.resolve()), stat.st_size, stat.st_mtime_ns]
        note = cache / f"{short_hash(key)}.json"
        if note.exists():
            return read_json(note)["sha256"]
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if note is not None:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, {"file": str(file), "sha256": digest})
    return digest
