"""What the evaluation `features` kept of an SAE (`sae_sweeps/evaluation/features.py`), read without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from analysis.reading.run_folders import read_run, runs_at
from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import MissingFile

FILE = Path("evals") / "features.npz"
PEAKS = 3
"""Tokens that name a feature in lists: those at which it fires most, without repetition."""


@dataclass
class Stored:
    """The features of one SAE."""

    folder: Path
    title: str
    about: dict[str, Any]
    arrays: dict[str, np.ndarray]
    """By the names of the evaluation's docstring, but `about`."""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    @property
    def run(self) -> str:
        return str(self.about["run"])

    @property
    def d_sae(self) -> int:
        return int(self.about["d_sae"])

    @cached_property
    def token_texts(self) -> dict[int, str]:
        return {int(number): text for number, text in self.about["token_texts"].items()}

    @cached_property
    def density(self) -> np.ndarray:
        """Share of the tokens on which each feature fires [F]."""
        return self["n_active"] / max(int(self["n_tokens"]), 1)

    @cached_property
    def largest(self) -> np.ndarray:
        """Each feature's largest activation [F], 0 where it never fires."""
        return self["top_around"][0, :, self.about["before"]]

    @cached_property
    def peaks(self) -> np.ndarray:
        """Tokens at which each feature fires most [F, PEAKS], strongest first, each once; -1 for no more."""
        tokens = self["tokens"].ravel()
        at = np.where(self["top_place"] >= 0, tokens[np.maximum(self["top_place"], 0)], -1)
        found, n_found = np.full((self.d_sae, PEAKS), -1), np.zeros(self.d_sae, int)
        for token in at:  # examples, not features
            new = (token >= 0) & ~(found == token[:, None]).any(1) & (n_found < PEAKS)
            found[new, n_found[new]] = token[new]
            n_found += new
        return found

    @cached_property
    def label_information(self) -> np.ndarray:
        """I(f > 0; label) / H(label) over the labelled tokens [F], from 0 to 1; nan with fewer than two labels."""
        tokens = self["label_tokens"].astype(float)
        if (tokens > 0).sum() < 2:
            return np.full(self.d_sae, np.nan)
        active, p = self["label_active"] / tokens.sum(), tokens / tokens.sum()
        share = active.sum(1, keepdims=True)
        joint = plogp(active).sum(1) + plogp(p - active).sum(1)
        alone = plogp(share)[:, 0] + plogp(1 - share)[:, 0] + plogp(p).sum()
        return np.clip((joint - alone) / -plogp(p).sum(), 0, 1)

    @cached_property
    def best_label(self) -> np.ndarray:
        """Number of the label on whose tokens each feature fires most often [F]; -1 where it fires on none."""
        if not self["label_active"].any():
            return np.full(self.d_sae, -1)
        rate = self["label_active"] / np.maximum(self["label_tokens"], 1)
        return np.where(rate.any(1), rate.argmax(1), -1)


def plogp(p: np.ndarray) -> np.ndarray:
    """p log p, 0 at 0."""
    return p * np.log(np.where(p > 0, p, 1))


def folders_of(paths: Iterable[str | Path]) -> dict[Path, str]:
    """The run folders at the paths, each once, with their titles; a folder that holds `evals/` of another SAE too."""
    found: dict[Path, str] = {}
    for path in map(Path, paths):
        folder = path.parent if path.name == "sae" and not (path / FILE).exists() else path
        inside = [(folder, None)] if (folder / FILE).exists() else list(runs_at(folder))
        for run, title in inside:
            found.setdefault(run.resolve(), title or read_run(run).title or run.name)
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no run is there; give a run's folder, or a sweep's.")
    return found


def collect(folders: Sequence[Path]) -> None:
    """Make the file where it is missing, in a process of its own, which loads torch. Raises DataError if it fails."""
    missing = [str(folder) for folder in folders if not (folder / FILE).exists()]
    if not missing:
        return
    words = ["sae_sweeps", "evaluate", *missing, "eval=features"]
    print(f"collecting the features of {len(missing)} run{'s' * (len(missing) != 1)}: python -m {' '.join(words)}")
    done = subprocess.run([sys.executable, "-m", *words], stdout=sys.stderr)
    left = [folder for folder in missing if not (Path(folder) / FILE).exists()]
    if left:
        raise DataError(
            f"{left[0]} has no {FILE} (exit status {done.returncode}), and the reason is above; a run needs a trained, "
            "finite SAE and a language model."
        )


def stored(folder: Path, title: str) -> Stored:
    """The features of the SAE in a run's folder. Raises MissingFile and DamagedFile."""
    path = folder / FILE
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays.pop("about").tobytes())
        return Stored(folder, title, about, arrays)
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing; make it with `sae-sweeps evaluate {folder} eval=features`.") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedFile(f"{path} is damaged ({error}); remove it, and it is made again.") from None
