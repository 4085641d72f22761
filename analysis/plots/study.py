"""The runs that figures draw, grouped into variants (equal configs, other seeds). Files are read on demand."""

import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.columns import differing
from analysis.metrics import badness
from analysis.output.view import labels
from analysis.reading.records import records
from analysis.text import cell, clean
from sae_sweeps.errors import DamagedFile
from sae_sweeps.storage.rows import RowFile
from sae_sweeps.storage.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

LONGEST_KEYS = 44
"""The longest label of differing keys, in characters; with longer ones titles are used, even where some are equal."""
PHASES = (25, 50, 75, 100)
"""Percent of the training."""
POINTS = 240
"""The most points of a curve; a panel has fewer distinct pixels."""

FOLLOWED = 150
"""The most variants whose files are read for curves; no figure shows more lines."""

SEED = ("config", "seed")


class Missing(Exception):
    """A figure has nothing to draw; the message names the missing data."""


@dataclass
class Variant:
    """Runs that differ in the seed alone, or one run."""

    label: str
    rows: list[int]
    """Row numbers in the study's frame."""
    begun: int = 1
    """The number of runs that have begun."""


@dataclass
class Study:
    """The runs of a figure."""

    full: "pd.DataFrame"
    """The frame of `records`."""
    variants: list[Variant] = field(init=False)
    _curves: dict[int, dict[str, np.ndarray]] = field(default_factory=dict, init=False)
    _monitors: dict[int, list[dict[str, Any]]] = field(default_factory=dict, init=False)
    _columns: dict[str, list[float]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.variants = variants_of(self.full)

    @classmethod
    def of(cls, paths: Iterable[str | Path]) -> "Study":
        return cls(records(paths))

    @cached_property
    def followed(self) -> list[Variant]:
        """The variants whose files are read: all, or an even choice from the lowest to the highest fvu."""
        return self.variants if len(self.variants) <= FOLLOWED else evenly(self.ranked(self.variants), FOLLOWED)

    def folder(self, row: int) -> RunFolder:
        return RunFolder(self.full["run", "folder"].iloc[row])

    def curves(self, row: int) -> dict[str, np.ndarray]:
        """The numbers of metrics.jsonl as name -> array [n], nan where a row lacks it, with `step` and `tokens`."""
        if row not in self._curves:
            self._curves[row] = columns_of(thinned_rows(self.folder(row).metrics, POINTS))
        return self._curves[row]

    def curve_names(self) -> list[str]:
        """Names of all numbers logged in any run, in the order of their first appearance."""
        return list(
            dict.fromkeys(name for variant in self.followed for row in variant.rows for name in self.curves(row))
        )

    def curve(self, variant: Variant, name: str, x: str = "step") -> tuple[np.ndarray, np.ndarray] | None:
        """x [n] and values [seeds, n] of a variant, where all of its runs have values; None where no run has any."""
        found = []
        for row in variant.rows:
            curves = self.curves(row)
            if name in curves and x in curves:
                there = np.isfinite(curves[name])
                if there.any():
                    found.append((curves[x][there], curves[name][there]))
        if not found:
            return None
        common = found[0][0]
        for places, _ in found[1:]:
            common = np.intersect1d(common, places)
        if not len(common):  # nothing in common: the first run alone
            return found[0][0], found[0][1][None]
        return common, np.stack([values[np.searchsorted(places, common)] for places, values in found])

    def monitors(self, row: int, name: str) -> list[dict[str, Any]]:
        """The records of one monitor in monitors.jsonl, oldest first."""
        if row not in self._monitors:
            self._monitors[row] = self.folder(row).monitors.rows()
        return [record for record in self._monitors[row] if record.get("monitor") == name]

    def phases(self, row: int) -> list[int]:
        """Percents of the training at which similarities were kept."""
        folder = self.folder(row).path / "monitors"
        return [percent for percent in PHASES if (folder / f"similarity_{percent}.npz").exists()]

    def snapshot(self, row: int, percent: int, *names: str) -> list[np.ndarray]:
        """Arrays of monitors/similarity_25.npz and so on. Raises DamagedFile where they cannot be read."""
        path = self.folder(row).path / "monitors" / f"similarity_{percent}.npz"
        try:
            with np.load(path, allow_pickle=False) as kept:
                return [kept[name] for name in names]
        except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, zlib.error, zipfile.BadZipFile):
            mend = "restore it, or remove it, and figures leave that phase out"
            raise DamagedFile(f"{path} is damaged; {mend}.") from None

    def column(self, name: str) -> list[float]:
        """A metric of all runs, nan where a run lacks it."""
        if name not in self._columns:
            there = ("metrics", name) in self.full.columns
            values = self.full["metrics", name].tolist() if there else [float("nan")] * len(self.full)
            if name == "steps":  # of diverged runs and imported records: the step at which they ended
                ends = zip(values, self.full["run", "step"], self.full["run", "state"], strict=True)
                ended = ("completed", "diverged", "untrained")
                values = [
                    float(b) if a != a and state in ended and b == b and b is not None else a for a, b, state in ends
                ]
            self._columns[name] = values
        return self._columns[name]

    def values(self, variant: Variant, name: str) -> list[float]:
        """A metric's values in the variant's runs that have it."""
        column = self.column(name)
        return [value for row in variant.rows if (value := column[row]) == value]

    def mean(self, variant: Variant, name: str) -> float:
        values = self.values(variant, name)
        return sum(values) / len(values) if values else float("nan")

    def metric_names(self) -> list[str]:
        """Metrics that any run has."""
        return [name for kind, name in self.full.columns if kind == "metrics" and self.full[kind, name].notna().any()]

    def ranked(self, variants: list[Variant]) -> list[Variant]:
        """Lowest fvu first; those without one last, in their order."""

        def key(variant: Variant) -> float:
            value = self.mean(variant, "fvu")
            return badness("fvu", value) if value == value else float("inf")

        return sorted(variants, key=key)

    def units(self) -> str:
        """The unit of the reconstruction loss."""
        column = ("config", "train.recon")
        forms = set(self.full[column].dropna()) if column in self.full.columns else set()
        return {frozenset({"norm"}): "activation units", frozenset({"squared"}): "activation units²"}.get(
            frozenset(forms), "activation units (or units²)" if forms else "activation units²"
        )


def thinned_rows(file: RowFile, points: int) -> list[dict[str, Any]]:
    """About `points` rows of metrics.jsonl at even distances, with the last; half of them with monitored numbers.

    Rows of monitored steps have more keys, and even sampling alone would lose most of them. Lines that are left out
    are not parsed. Raises DamagedFile as `RowFile.rows` does, for the lines that are read.
    """
    try:
        content = file.path.read_bytes()
    except FileNotFoundError:
        return []
    lines = content[: content.rfind(b"\n") + 1].splitlines()  # a last line without an end was torn by a kill
    if len(lines) > points:
        monitored = {n for n, line in enumerate(lines) if b'"grad_norm/recon"' in line or b'"held_out_fvu"' in line}
        kept = {*evenly(sorted(monitored), points // 2), *evenly(range(len(lines)), points - points // 2)}
        lines = [lines[n] for n in sorted(kept)]
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        return file.rows()  # its error names the damaged line


def evenly(items: Sequence[Any], n: int) -> list[Any]:
    """At most n of the items at even distances, with the first and the last."""
    if len(items) <= n:
        return list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, n).round().astype(int))]


def columns_of(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Rows as one array [n] for each name, nan where a row lacks it; values that are not numbers are left out."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, int | float))
    nan = float("nan")
    found = {}
    for name in names:
        values = (row.get(name) for row in rows)
        found[name] = np.array([v if isinstance(v, int | float) else nan for v in values], dtype=float)
    return found


# Variants -----------------------------------------------------------------------------------------------------------


def variants_of(full: "pd.DataFrame") -> list[Variant]:
    """The variants among the runs (equal configs, different seeds), each with a label of its own."""
    keys = [column for column in differing(full) if column != SEED]
    seeds = list(full[SEED]) if SEED in full.columns else [None] * len(full)
    configs = [column for column in full.columns if column[0] == "config"]
    known = full[configs].notna().any(axis=1) if configs else [False] * len(full)
    groups: dict[Any, list[int]] = {}
    content = {column: [repr(value) for value in full[column]] for column in keys}
    for row, has_config in enumerate(known):
        seed = seeds[row]
        group = tuple(content[column][row] for column in keys)
        same = groups.get(group, [])
        if not has_config or seed is None or seed != seed or seed in {seeds[other] for other in same}:
            groups[group, row] = [row]  # no replicate of another run
        else:
            groups.setdefault(group, []).append(row)
    states = list(full["run", "state"])
    variants = [Variant("", rows, sum(states[row] != "queued" for row in rows)) for rows in groups.values()]
    for variant, label in zip(variants, labels_of(full, variants, keys), strict=True):
        variant.label = label
    return variants


def labels_of(full: "pd.DataFrame", variants: list[Variant], keys: list[tuple[str, str]]) -> list[str]:
    """A unique label for each variant: its title where titles differ, else its differing keys; then the run id."""
    firsts = [variant.rows[0] for variant in variants]
    titles = [full["run", "title"].iloc[row] for row in firsts]
    given = [
        without_seed(clean(title, 80)) if len(variant.rows) > 1 else clean(title, 80)
        for variant, title in zip(variants, titles, strict=True)
        if isinstance(title, str) and title.strip()
    ]
    if len(given) < len(variants) or len(set(given)) < len(given):
        names, by_keys = labels(keys), []
        for row in firsts:
            known = [(names[column], value) for column in keys if (value := full[column].iloc[row]) == value]
            by_keys.append(", ".join(f"{name}={cell(value, 'config')}" for name, value in known))
        if len(given) < len(variants) or max(map(len, by_keys)) <= LONGEST_KEYS:
            given = by_keys
    counts = {label: given.count(label) for label in given} if len(given) <= 200 else {}
    out = []
    for label, row in zip(given, firsts, strict=True):
        run_id = clean(full["run", "run_id"].iloc[row], 30)
        out.append(clean(label, 80) if label and counts.get(label, 1) == 1 else " ".join(filter(None, [label, run_id])))
    return out


def without_seed(title: str) -> str:
    """The title without its word for the seed."""
    return " ".join(re.sub(r"(^|\s),?\s*seed=[^\s,]+", " ", title).split()) or title
