"""Facts from a run's folder that its record lacks. Files are read when a rule needs them, long ones in part."""

import os
import re
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

PART = 64 * 1024
"""Bytes read at once from the beginning, the middle and the end of a file."""

NUMBER = rb"(-?[0-9][-+.0-9eE]*|null)"


class Evidence:
    """The files of one run's folder, each read at its first use. Missing files give empty values or None."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    @cached_property
    def parts(self) -> list[bytes]:
        """metrics.jsonl: all of it where it is short, else its beginning, middle and end, cut at whole lines."""
        return [] if self.folder is None else parts_of(f"{self.folder}/metrics.jsonl")

    @cached_property
    def log(self) -> bytes:
        """All of metrics.jsonl."""
        if len(self.parts) < 2:
            return b"".join(self.parts)
        assert self.folder is not None
        return (self.folder / "metrics.jsonl").read_bytes()

    def sampled(self, key: str) -> list[float]:
        """The logged values of a key, oldest first, in the parts that are read of a long log."""
        found = (text for part in self.parts for text in pattern_of(key).findall(part))
        return [float("nan" if text == b"null" else text) for text in found]

    def last(self, key: str) -> float | None:
        """The last logged value of a key; None where it was never logged."""
        lines = (line for part in reversed(self.parts) for line in reversed(part.splitlines()))
        return next((values[-1] for line in lines if (values := list(values_in(line, key)))), None)

    def ever(self, key: str) -> bool | None:
        """Whether the key was ever logged with a value other than 0; None where it was never logged."""
        if any(value for part in self.parts for value in values_in(part, key)):
            return True
        if f'"{key}"'.encode() not in self.log:
            return None
        return any(values_in(self.log, key))

    @cached_property
    def evaluations(self) -> dict[str, os.stat_result]:
        """Every evals/NAME.json with its times."""
        if self.folder is None:
            return {}
        try:
            found = sorted(os.scandir(f"{self.folder}/evals"), key=lambda entry: entry.name)
        except OSError:
            return {}
        return {
            entry.name.removesuffix(".json"): entry.stat()
            for entry in found
            if entry.name.endswith(".json") and not entry.name.endswith(".summary.json")
        }

    @cached_property
    def weights(self) -> os.stat_result | None:
        """sae/sae_weights.safetensors with its times."""
        try:
            return None if self.folder is None else os.stat(f"{self.folder}/sae/sae_weights.safetensors")
        except OSError:
            return None

    @cached_property
    def judged(self) -> dict[str, dict[str, str]]:
        """Evaluation name -> hook_name and model_name of the SAE that it judged, as its file records them.

        SAEBench writes them after the details of each feature, so only the end of the file is read.
        """
        assert self.folder is not None or not self.evaluations
        found = {}
        for name in self.evaluations:
            _, marker, cfg = end_of(Path(self.folder or "") / "evals" / f"{name}.json").rpartition(b'"sae_cfg_dict"')
            found[name] = dict(texts_in(cfg, "hook_name", "model_name")) if marker else {}
        return found


def end_of(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - PART))
            return file.read()
    except OSError:
        return b""


def parts_of(path: str) -> list[bytes]:
    """A file of lines, whole where it is short, else its beginning, middle and end."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= 3 * PART:
                return [file.read()]
            found = []
            for start in (0, (size - PART) // 2, size - PART):
                file.seek(start)
                part = file.read(PART)
                found.append(part[part.find(b"\n") + 1 if start else 0 : part.rfind(b"\n") + 1])
            return found
    except OSError:
        return []


def values_in(text: bytes, key: str) -> Iterator[float]:
    """The numbers under a key of JSON lines; null, which is written for non-finite numbers, as nan."""
    return (float("nan" if found[1] == b"null" else found[1]) for found in pattern_of(key).finditer(text))


@cache
def pattern_of(key: str) -> re.Pattern[bytes]:
    return re.compile(re.escape(f'"{key}"'.encode()) + rb": ?" + NUMBER)


def texts_in(text: bytes, *keys: str) -> Iterator[tuple[str, Any]]:
    for key in keys:
        if found := re.search(re.escape(f'"{key}"'.encode()) + rb': ?"([^"\\]*)"', text):
            yield key, found[1].decode("utf-8", "replace")
