"""Facts from a run's folder that its record lacks. Files are read when a rule needs them."""

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

PART = 64 * 1024
"""Bytes read of each end of an evaluation's file."""


class Evidence:
    """The files of one run's folder, each read at its first use. Missing files give empty values or None."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    @cached_property
    def log(self) -> bytes:
        """metrics.jsonl as it is."""
        try:
            return b"" if self.folder is None else Path(f"{self.folder}/metrics.jsonl").read_bytes()
        except OSError:
            return b""

    def logged(self, key: str) -> list[float]:
        """The logged values of a key, oldest first; null, which is written for non-finite numbers, as nan.

        The log is searched, not parsed: a thousand runs are read for a few of its keys.
        """
        found = re.findall(rb'"%b": ?(-?[0-9][-+.0-9eE]*|null)' % re.escape(key.encode()), self.log)
        return [float("nan" if text == b"null" else text) for text in found]

    def last(self, key: str) -> float | None:
        """The last logged value of a key; None where it was never logged."""
        return next(reversed(self.logged(key)), None)

    def ever(self, key: str) -> bool | None:
        """Whether the key was ever logged with a value other than 0; None where it was never logged."""
        return any(found) if (found := self.logged(key)) else None

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


def texts_in(text: bytes, **keys: str) -> Iterator[tuple[str, Any]]:
    """Each name with the first string under its key in the text, where there is one."""
    for name, key in keys.items():
        if found := re.search(re.escape(f'"{key}"'.encode()) + rb': ?"([^"\\]*)"', text):
            yield name, found[1].decode("utf-8", "replace")
