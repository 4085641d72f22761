"""What the evaluation `features` kept of an SAE (`sae_sweeps/evaluation/features.py`), read without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from analysis.reading.run_folders import read_run, runs_at
from sae_sweeps.config.evaluations import FEATURES_FORMAT
from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.arrays import read_npz
from sae_sweeps.storage.files import MissingFile, one_line

FILE = Path("evals") / "features.npz"
PEAKS = 3
"""Tokens that name a feature in lists: those at which it fires most, without repetition."""
MEND = "remove it, and it is made again"
ABOUT = {
    **dict.fromkeys(("format", "layer", "before", "after", "d_sae", "d_in"), int),
    **dict.fromkeys(("run", "model", "hook", "text", "text_digest", "architecture", "logits"), str),
    "special": list, "labels": list, "token_texts": dict,
}  # fmt: skip
"""Keys of `about` that are read here, and what they hold."""
AXES = {
    "tokens": "NL", "n_tokens": "", "n_active": "F", "n_contexts": "F", "total": "F", "histogram": "FB", "end": "F",
    "label_tokens": "G", "label_active": "FG", "top_place": "tF", "top_around": "tFW", "drawn_place": "dF",
    "drawn_around": "dFW", "cosine_nearest": "Fn", "cosine": "Fn", "overlap_nearest": "Fn", "overlap": "Fn",
    "decoder": "FD", "kept_contexts": "C", "kept_count": "K", "kept_feature": "A", "kept_value": "A",
}  # fmt: skip
"""Of each array: one letter is one size."""
LOGITS = {"raised": "Fr", "raised_logits": "Fr", "lowered": "Fr", "lowered_logits": "Fr"}
"""The same of those that not every hook has."""


@dataclass
class Stored:
    """The features of one SAE."""

    folder: Path
    title: str
    run: str
    """The run's id, or the name by which it differs from others beside it."""
    about: dict[str, Any]
    arrays: dict[str, np.ndarray]
    """By the names of the evaluation's docstring, but `about`."""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

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


def all_stored(folders: Mapping[Path, str]) -> list[Stored]:
    """The features of the SAEs in run folders, by their titles, each with a name of its own for links and folders: the
    run's id or, where two have the same id, the shortest ends of their paths that differ."""
    runs = [stored(folder, title) for folder, title in folders.items()]
    parts = [folder.resolve().parts[1:] for folder in folders]
    for n in range(1, max(map(len, parts), default=0) + 1):
        if len({one.run for one in runs}) == len(runs):
            break
        for one, of_path in zip(runs, parts, strict=True):
            one.run = "-".join(of_path[-n:])
    return runs


def stored(folder: Path, title: str) -> Stored:
    """The features of the SAE in a run's folder. Raises MissingFile, DamagedFile, and DataError for a newer format."""
    path = folder / FILE
    if not path.exists():
        raise MissingFile(f"{path} is missing; make it with `sae-sweeps evaluate {folder} eval=features`.")
    arrays = read_npz(path, MEND)
    try:
        about = json.loads(arrays.pop("about", np.zeros(0)).tobytes())
        if isinstance(about, dict) and type(found := about.get("format")) is int and found > FEATURES_FORMAT:
            raise DataError(
                f"{path} has format {found}, and this version reads {FEATURES_FORMAT}; update sae-sweeps, or {MEND}."
            )
        check(about, arrays)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged ({one_line(error)}); {MEND}.") from None
    return Stored(folder, title, about["run"], about, arrays)


def check(about: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where `about` or an array is missing, or is not what the others need."""
    if not isinstance(about, dict):
        raise ValueError("`about` has no keys")
    wrong = [f"`{key}` of `about`" for key, kind in ABOUT.items() if type(about.get(key)) is not kind]
    if wrong:
        raise ValueError(f"{wrong[0]} is missing or of another type")
    if not about["run"].isprintable() or about["run"] in ("", "..") or Path(about["run"]).name != about["run"]:
        raise ValueError(f"its run {about['run']!r} is no folder's name")
    texts = about["token_texts"]
    if not all(isinstance(text, str) for text in (*texts.values(), *about["labels"])):
        raise ValueError("a token or a label is no text")
    if not all(map(str.isdecimal, texts)):
        raise ValueError("a token has no number")
    sizes = {"F": about["d_sae"], "W": about["before"] + 1 + about["after"], "G": len(about["labels"])}
    for name, axes in (AXES | LOGITS if "raised" in arrays else AXES).items():
        if name not in arrays:
            raise ValueError(f"it has no `{name}`")
        shape = arrays[name].shape
        expected = tuple(sizes.setdefault(axis, size) for axis, size in zip(axes, shape, strict=False))
        if len(shape) != len(axes) or shape != expected or arrays[name].dtype.kind not in "iuf":
            raise ValueError(f"`{name}` has the shape {list(shape)} and the type {arrays[name].dtype}")
