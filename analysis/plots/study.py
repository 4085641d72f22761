"""The runs that figures draw, grouped into variants (equal configs, other seeds). Files are read on demand."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import differing
from analysis.metrics import badness
from analysis.output.view import labels
from analysis.reading.records import records
from analysis.reading.run_folders import or_warned
from analysis.text import cell, clean
from sae_sweeps.errors import DamagedFile
from sae_sweeps.storage.arrays import read_npz
from sae_sweeps.storage.rows import RowFile
from sae_sweeps.storage.run_folder import RunFolder

LABEL = 48
"""The most characters of a label."""
NEVER_CUT = ("penalty", "architecture")
"""Keys that stay in a label however long it is; of the others the groups' choices go last."""
PHASES = (25, 50, 75, 100)
"""Percent of the training."""
POINTS = 240
"""The most points of a curve; a panel has fewer distinct pixels."""

FOLLOWED = 150
"""The most variants whose files are read for curves; no figure shows more lines."""

WEIGHTED, SHARE = "weighted_penalty", "penalty_share"
"""Curves that are computed: the penalty's loss times its weight, and its share of the whole loss."""

SEED = ("config", "seed")
UNDER_WAY = ("completed", "queued", "running")
"""States that a label does not mention: all others are ends without a result, or with a doubtful one."""


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
    ended: str = ""
    """How runs ended that did not complete: `diverged`, `1 of 3 diverged`."""


@dataclass
class Study:
    """The runs of a figure."""

    full: pd.DataFrame
    """The frame of `records`."""
    variants: list[Variant] = field(init=False)
    damaged: list[str] = field(default_factory=list, init=False)
    """A sentence on each file that was left out because it does not read back; a warning of its run too."""
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

    def having(self, test: Callable[[int], Any], missing: str) -> list[Variant]:
        """The variants that are followed whose first run passes the test. Raises Missing with the sentence for none."""
        found = [variant for variant in self.followed if test(variant.rows[0])]
        if not found:
            raise Missing(missing)
        return found

    def folder(self, row: int) -> RunFolder:
        return RunFolder(self.full["run", "folder"].iloc[row])

    def _or_damaged(self, row: int, read: Callable[[], Any], otherwise: Any) -> Any:
        """As `or_warned`, of a run's file; the sentence is in `damaged` too."""
        warnings = self.full["run", "warnings"].iloc[row]
        known = len(warnings)
        found = or_warned(warnings, read, otherwise)
        self.damaged += warnings[known:]
        return found

    def state(self, row: int) -> str:
        return self.full["run", "state"].iloc[row]

    def curves(self, row: int) -> dict[str, np.ndarray]:
        """The numbers of metrics.jsonl as name -> array [n], nan where a row lacks it; with WEIGHTED and SHARE."""
        if row not in self._curves:
            folder = self.folder(row)
            read = self._or_damaged(row, lambda: thinned_rows(folder.unchanged(folder.metrics), POINTS), [])
            curves = self._curves[row] = columns_of(read)
            if {"penalty_loss", "penalty_weight", "loss"} <= set(curves):
                curves[WEIGHTED] = curves["penalty_loss"] * curves["penalty_weight"]
                curves[SHARE] = curves[WEIGHTED] / np.where(curves["loss"] != 0, curves["loss"], np.nan)
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
                finite = np.isfinite(curves[name])
                if finite.any():
                    found.append((curves[x][finite], curves[name][finite]))
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
            folder = self.folder(row)
            self._monitors[row] = self._or_damaged(row, lambda: folder.unchanged(folder.monitors).rows(), [])
        return [record for record in self._monitors[row] if record.get("monitor") == name]

    def monitored(self, variant: Variant, monitor: str, key: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Steps [n] and values [seeds, n] of a monitor's number, at the steps that all runs of the variant share."""
        found = [
            {r["step"]: r[key] for r in self.monitors(row, monitor) if isinstance(r.get(key), int | float)}
            for row in variant.rows
        ]
        return shared_steps(found)

    def phases(self, row: int) -> list[int]:
        """Percents of the training at which similarities were kept."""
        folder = self.folder(row).path / "monitors"
        return [percent for percent in PHASES if (folder / f"similarity_{percent}.npz").exists()]

    def snapshot_or_none(self, row: int, percent: int, *names: str) -> list[np.ndarray] | None:
        """As `snapshot`, None where there is none that reads back."""
        read = partial(self.snapshot, row, percent, *names)
        return self._or_damaged(row, read, None) if percent in self.phases(row) else None

    def snapshot(self, row: int, percent: int, *names: str) -> list[np.ndarray]:
        """Arrays of monitors/similarity_25.npz and so on. Raises DamagedFile where they cannot be read."""
        path = self.folder(row).path / "monitors" / f"similarity_{percent}.npz"
        try:
            kept = read_npz(path)
            return [kept[name] for name in names]
        except (DamagedFile, KeyError):
            mend = "restore it, or remove it, and figures leave that phase out"
            raise DamagedFile(f"{path} is damaged; {mend}.") from None

    def column(self, name: str) -> list[float]:
        """A metric of all runs, nan where a run lacks it."""
        if name not in self._columns:
            recorded = ("metrics", name) in self.full.columns
            values = self.full["metrics", name].tolist() if recorded else [float("nan")] * len(self.full)
            if name == "steps":  # of diverged runs and imported records: the step at which they ended
                ends = zip(values, self.full["run", "step"], self.full["run", "state"], strict=True)
                open_ends = ("queued", "running")
                values = [
                    float(b) if a != a and state not in open_ends and b is not None and b == b else a
                    for a, b, state in ends
                ]
            self._columns[name] = values
        return self._columns[name]

    def values(self, variant: Variant, name: str) -> list[float]:
        """A metric's values in the variant's runs that have it."""
        column = self.column(name)
        return [value for row in variant.rows if (value := column[row]) == value]

    def final_values(self, variant: Variant, name: str) -> list[float]:
        """The last logged value of a number in each of the variant's completed runs that logged it."""
        logged = [self.curves(row).get(name) for row in variant.rows if self.state(row) == "completed"]
        return [float(curve[-1]) for curve in logged if curve is not None and np.isfinite(curve[-1])]

    def absence(self, variant: Variant, name: str) -> str:
        """Why a variant has no value of a metric: NaN, diverged, None (recorded without a number), not measured, ..."""
        recorded = {
            kind: any(name in (self.full["run", kind].iloc[row] or ()) for row in variant.rows)
            for kind in ("not_finite", "nulls")
        }
        if recorded["not_finite"]:
            return "NaN"
        if recorded["nulls"] and "diverged" not in variant.ended:
            return "None"
        imported = self.full["run", "source"].iloc[variant.rows[0]] != "run"
        if imported and not recorded["nulls"]:
            return "not recorded"
        return variant.ended or "not measured"

    def under_way(self, variant: Variant) -> bool:
        return all(self.state(row) in ("queued", "running") for row in variant.rows)

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

    def sample(self, variants: list[Variant], n: int) -> tuple[list[Variant], str]:
        """At most n variants, one without a penalty among them, and a sentence where some are left out."""
        if len(variants) <= n:
            return variants, ""
        penalties = self.full["config", "penalty"] if ("config", "penalty") in self.full.columns else None
        plain = [v for v in variants if penalties is not None and penalties.iloc[v.rows[0]] == "none"][:1]
        others = evenly(self.ranked([variant for variant in variants if variant not in plain]), n - len(plain))
        baseline = " beside one without a penalty" * len(plain)
        return [*plain, *others], f"{n} of {len(variants)} runs, from the lowest to the highest fvu{baseline}."

    def units(self) -> str:
        """The unit of the reconstruction loss."""
        column = ("config", "train.recon")
        forms = set(self.full[column].dropna()) if column in self.full.columns else set()
        return {frozenset({"norm"}): "activation units", frozenset({"squared"}): "activation units²"}.get(
            frozenset(forms), "activation units (or units²)" if forms else "activation units²"
        )


def shared_steps(runs: list[dict[int, float]]) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps [n] and values [runs, n] of runs' numbers by step, at the steps that all that have any share."""
    found = [numbers for numbers in runs if numbers]
    if not found:
        return None
    steps = sorted(set.intersection(*map(set, found)))
    if not steps:
        found, steps = found[:1], sorted(found[0])
    return np.array(steps), np.array([[numbers[step] for step in steps] for numbers in found])


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
    rows = [row for line in lines if (row := file.row(line)) is not None]
    return rows if len(rows) == len(lines) else file.rows()  # its error names the damaged line


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


def variants_of(full: pd.DataFrame) -> list[Variant]:
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
    variants = [
        Variant("", rows, sum(states[row] != "queued" for row in rows), ended_of([states[row] for row in rows]))
        for rows in groups.values()
    ]
    for variant, label in zip(variants, labels_of(full, variants, keys), strict=True):
        variant.label = label
    return variants


def ended_of(states: list[str]) -> str:
    """How runs in these states ended, where not all completed or are under way."""
    ends = [state for state in dict.fromkeys(states) if state not in UNDER_WAY]
    return ", ".join(end if len(states) == 1 else f"{states.count(end)} of {len(states)} {end}" for end in ends)


def labels_of(full: pd.DataFrame, variants: list[Variant], keys: list[tuple[str, str]]) -> list[str]:
    """A label for each variant, of LABEL characters at most and no two alike: its title where titles differ, else the
    keys by which the variants differ; with the run id where these are equal."""
    firsts = [variant.rows[0] for variant in variants]
    titles = [clean(title, 80) if isinstance(title, str) else "" for title in full["run", "title"].iloc[firsts]]
    given = [without_seed(title) if len(v.rows) > 1 else title for v, title in zip(variants, titles, strict=True)]
    # of imported runs only a part of the config is known
    own = [n for n, row in enumerate(firsts) if full["run", "source"].iloc[row] == "run"]
    if not all(given) or len(set(given)) < len(given):
        by_keys = labels_by_keys(full, [firsts[n] for n in own], keys)
        if not all(given[n] for n in own) or max(map(len, by_keys), default=0) <= LABEL:
            for n, label in zip(own, by_keys, strict=True):
                given[n] = label or given[n]
    counts = Counter(clean(label, LABEL) for label in given)
    out = []
    for label, row in zip(given, firsts, strict=True):
        run_id = clean(full["run", "run_id"].iloc[row], 30)
        alone = label and counts[clean(label, LABEL)] == 1
        beside = f"{clean(label, max(0, LABEL - 1 - len(run_id)))} " if label else ""
        out.append(clean(label, LABEL) if alone else beside + run_id)
    return out


def labels_by_keys(full: pd.DataFrame, rows: list[int], keys: list[tuple[str, str]]) -> list[str]:
    """The keys' values of each row; where that is long, without keys that are not needed to distinguish rows."""

    content = {key: full[key].iloc[rows].tolist() for key in keys}
    keys = [key for key in keys if len(set(map(repr, content[key]))) > 1]

    def given(keys: list[tuple[str, str]]) -> list[str]:
        names = labels(keys)
        known = [[(names[key], value) for key in keys if (value := content[key][n]) == value] for n in range(len(rows))]
        return [", ".join(f"{name}={cell(value, 'config')}" for name, value in pairs) for pairs in known]

    found = given(keys)
    different = len(set(found))
    for key in sorted((key for key in keys if key[1] not in NEVER_CUT), key=lambda key: -key[1].count(".")):
        fewer = [other for other in keys if other != key]
        if max(map(len, found), default=0) > LABEL and len(set(shorter := given(fewer))) == different:
            keys, found = fewer, shorter
    return found


def without_seed(title: str) -> str:
    """The title without its word for the seed."""
    return " ".join(re.sub(r"(^|\s),?\s*seed=[^\s,]+", " ", title).split()) or title
