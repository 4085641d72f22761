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
    def is_run(self) -> bool:
        """Whether the folder is a run's; an SAE from elsewhere has its own cfg.json in it."""
        return self.folder is None or not os.path.exists(f"{self.folder}/cfg.json")

    @cached_property
    def judged(self) -> dict[str, dict[str, str]]:
        """Evaluation name -> `model`, `hook` and `eval_id` of its file, `sae_model` and `sae_hook` of the SAE's config.

        SAEBench writes the config after the details of each feature, and this project what it measured on after it, so
        only the two ends of a file are read.
        """
        assert self.folder is not None or not self.evaluations
        found = {}
        for name in self.evaluations:
            head, tail = ends_of(Path(self.folder or "") / "evals" / f"{name}.json")
            how, _, _ = head.partition(b'"eval_result_metrics"')
            _, marker, cfg = tail.rpartition(b'"sae_cfg_dict"')
            own = dict(texts_in(how, model="model_name", eval_id="eval_id"))
            if name == "core":
                own.pop("model", None)  # in older files that of the SAE's config
            own |= dict(texts_in(cfg, sae_model="model_name", sae_hook="hook_name")) if marker else {}
            _, marker, place = cfg.rpartition(b'"measured_on"')
            found[name] = own | (dict(texts_in(place, model="model_name", hook="hook_name")) if marker else {})
        return found


def ends_of(path: Path) -> tuple[bytes, bytes]:
    """The first and the last PART of a file, which overlap where it is short."""
    try:
        with open(path, "rb") as file:
            head = file.read(PART)
            file.seek(max(0, os.fstat(file.fileno()).st_size - PART))
            return head, file.read()
    except OSError:
        return b"", b""


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


def texts_in(text: bytes, **keys: str) -> Iterator[tuple[str, Any]]:
    """Each name with the first string under its key in the text, where there is one."""
    for name, key in keys.items():
        if found := re.search(re.escape(f'"{key}"'.encode()) + rb': ?"([^"\\]*)"', text):
            yield name, found[1].decode("utf-8", "replace")
