"""What a run's folder says beyond its record, read only when a rule asks, and no more of a file than it takes."""

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

PART = 64 * 1024
"""Bytes read at once from the beginning, the middle and the end of a file."""

NUMBER = rb"(-?[0-9][-+.0-9eE]*|null)"


class Evidence:
    """The files of one run's folder. Nothing is read before it is asked for; what is not there says nothing."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    @cached_property
    def parts(self) -> list[bytes]:
        """metrics.jsonl: all of it where it is short, else its beginning, middle and end, cut at whole lines."""
        return [] if self.folder is None else parts_of(self.folder / "metrics.jsonl")

    @cached_property
    def log(self) -> bytes:
        """All of metrics.jsonl."""
        if len(self.parts) < 2:
            return b"".join(self.parts)
        assert self.folder is not None
        return (self.folder / "metrics.jsonl").read_bytes()

    def sampled(self, key: str) -> list[float]:
        """The logged values of a key, oldest first, in the parts that are read of a long log."""
        return [value for part in self.parts for value in values_in(part, key)]

    def logged(self, key: str) -> list[float]:
        """All logged values of a key, oldest first."""
        return list(values_in(self.log, key))

    def ever(self, key: str) -> bool | None:
        """Whether the key was ever logged with a value other than 0; None where it was never logged."""
        if any(self.sampled(key)):
            return True
        everything = self.logged(key)
        return any(everything) if everything else None

    @cached_property
    def evaluations(self) -> dict[str, os.stat_result]:
        """Every evals/NAME.json with its times."""
        if self.folder is None:
            return {}
        try:
            found = sorted(os.scandir(self.folder / "evals"), key=lambda entry: entry.name)
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
            return None if self.folder is None else os.stat(self.folder / "sae" / "sae_weights.safetensors")
        except OSError:
            return None

    def cfg_of(self, name: str) -> dict[str, str]:
        """Names that an evaluation's file gives for the SAE that it judged: hook_name and model_name.

        SAEBench writes them after the details of each feature, so they are looked for at the end of the file.
        """
        assert self.folder is not None
        parts = parts_of(self.folder / "evals" / f"{name}.json", whole_lines=False)
        _, marker, cfg = (parts[-1] if parts else b"").rpartition(b'"sae_cfg_dict"')
        return dict(texts_in(cfg, "hook_name", "model_name")) if marker else {}


def parts_of(path: Path, whole_lines: bool = True) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= 3 * PART:
                return [file.read()]
            found = []
            for start in (0, (size - PART) // 2, size - PART):
                file.seek(start)
                part = file.read(PART)
                if whole_lines:
                    part = part[part.find(b"\n") + 1 if start else 0 : part.rfind(b"\n") + 1]
                found.append(part)
            return found
    except OSError:
        return []


def values_in(text: bytes, key: str) -> Iterator[float]:
    """Numbers under a key of JSON lines; null, which stands for what is not finite, as nan."""
    pattern = re.escape(f'"{key}"'.encode()) + rb": ?" + NUMBER
    return (float("nan" if number == b"null" else number) for number in re.findall(pattern, text))


def texts_in(text: bytes, *keys: str) -> Iterator[tuple[str, Any]]:
    for key in keys:
        if found := re.search(re.escape(f'"{key}"'.encode()) + rb': ?"([^"\\]*)"', text):
            yield key, found[1].decode("utf-8", "replace")
