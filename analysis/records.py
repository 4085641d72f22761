"""Run folders as one data frame.

Columns have two levels, so that a config key never meets a metric of the same name:
`run` (RUN_FIELDS), `config` (dotted keys) and `metrics` (flat). Imported records of earlier work stand beside runs;
their `source` says whose word they are.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import MissingFile, read_json
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

ABSENT = float("nan")
"""In a column of a run that has no such key or metric; a key that is null is None."""

RUN_FIELDS = (
    "run_id", "title", "state", "step", "total_steps", "error", "warnings", "folder", "source", "provenance",
    "description", "nulls",
)  # fmt: skip

NESTED = {dict, list}

LOST = "lost?"
"""The state of a run that claims to be running while nobody alive has its lease."""


@dataclass
class Record:
    """One run as its folder tells it."""

    run_id: str
    folder: Path
    title: str | None = None
    state: str = "queued"
    step: int | None = None
    total_steps: int | None = None
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Empty unless the run is completed: an unfinished or diverged run has no result. What was imported is kept."""
    source: str = "run"
    """`run` for a folder of this project's; for what was imported whose word it is (`as reported in notes.txt`)."""
    provenance: dict[str, Any] = field(default_factory=dict)
    description: str | None = None
    """What an imported record says of itself in prose."""
    nulls: list[str] = field(default_factory=list)
    """Metrics that are recorded without a number: not measured, or not finite."""


def records(paths: Iterable[str | Path]) -> "pd.DataFrame":
    """One row per run of the paths, in their order, each run once.

    A path is a run folder, a results.json, a sweep folder (or its manifest.json), or an outputs tree; or imported
    records: a file that `analysis import` wrote, a folder with such files, `reference`. Runs without results appear
    with their state. Raises DataError for a path that is missing or holds no run, DamagedFile for a file that does not
    read back.
    """
    from analysis.importing import imported_records

    found: dict[Path, Record] = {}
    real = cache(Path.resolve)  # of the few folders that hold the runs
    for path in paths:
        imported = imported_records(path)
        listed = [] if imported and not Path(path).is_dir() else list(runs_at(Path(path)))
        if not listed and not imported:
            raise DataError(f"{path} holds no runs; give a run's folder, a sweep's folder or the outputs folder.")
        for folder, title in listed:
            plain = folder.name not in ("", "..") and not folder.is_symlink()
            place = real(folder.parent) / folder.name if plain else folder.resolve()
            if place not in found:
                found[place] = read_run(folder, title, place.name)
        for record in imported:
            found.setdefault(record.folder.absolute(), record)
    return frame_of(list(found.values()))


def runs_at(path: Path) -> Iterator[tuple[Path, str | None]]:
    """The run folders that a path stands for, each with the title that a sweep gives it."""
    if not path.exists():
        raise DataError(f"{path} does not exist; give a run's folder, a sweep's folder or the outputs folder.")
    if path.is_file():
        if path.name == "manifest.json":
            yield from runs_of_sweep(path)
        elif path.name == "results.json":
            yield path.parent, None
        else:
            raise DataError(f"{path} is neither a results.json nor a manifest.json; give one of these or a folder.")
    elif (path / "manifest.json").exists():
        yield from runs_of_sweep(path / "manifest.json")
    elif is_run(path):
        yield path, None
    else:
        inside = path / "runs" if (path / "runs").is_dir() else path
        for name in sorted(os.listdir(inside)):
            folder = inside / name
            if is_run(folder):
                yield folder, None
            elif (folder / "manifest.json").exists():
                yield from runs_of_sweep(folder / "manifest.json")


def is_run(folder: Path) -> bool:
    return any(os.path.exists(f"{folder}/{name}") for name in ("status.json", "results.json", "config.yaml"))


def runs_of_sweep(manifest: Path) -> Iterator[tuple[Path, str | None]]:
    """outputs/sweeps/NAME/manifest.json lists runs that live in outputs/runs."""
    listed = [(str(run["run_id"]), run.get("title")) for run in read_manifest(manifest)["runs"]]
    home = manifest.resolve().parents[2] / "runs"
    for run_id, title in listed:
        yield home / run_id, title


def read_manifest(manifest: Path) -> dict[str, Any]:
    """A sweep's manifest. Raises DamagedFile where it does not list runs."""
    content = read_json(manifest)
    listed = content.get("runs") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(run, dict) and "run_id" in run for run in listed):
        raise DamagedFile(f"{manifest} is damaged (it lists no runs); restore it, or give the runs' folders.")
    return content


def read_run(folder: Path, title: str | None = None, run_id: str | None = None) -> Record:
    """What a run's folder holds; a folder that is not there yet is a queued run. `run_id` where no file names it."""
    run = RunFolder(folder)
    record = Record(run_id=run_id or folder.resolve().name, folder=folder, title=title)
    try:
        results = read_json(run.results_path)
    except MissingFile:
        results = None
    if results is not None and not (isinstance(results, dict) and isinstance(results.get("metrics"), dict)):
        raise DamagedFile(f"{run.results_path} is damaged (it has no metrics); restore it, or run the run again.")
    status = run.status()
    lost = False
    if status and status["state"] == "running" and Lease.holder(folder) is None:
        status = run.status() or status  # it may have ended between the two looks
        lost = status["state"] == "running"
    if status:
        record.state, record.step, record.total_steps = status["state"], status["step"], status["total_steps"]
        record.error = status["error"]
        if lost:
            record.state = LOST
    elif results:
        record.state = "completed"
    if results:
        record.run_id = str(results.get("run_id") or record.run_id)
        record.title = title or results.get("title")
        record.warnings = [str(warning) for warning in results.get("warnings") or []]
        record.config = flat_config(results.get("config") or {})
        record.provenance = results.get("provenance") or {}
        if record.state == "completed":
            record.metrics = flat_metrics(results["metrics"])
            record.nulls = [name for name, value in results["metrics"].items() if value is None]
    elif run.config_path.exists():
        record.config = flat_config(read_yaml(run.config_path))
        record.title = title or record.config.get("title")
    return record


def flat_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; a group stands for its `name` (`penalty` = ortho beside `penalty.tau`), a list becomes JSON."""
    flat: dict[str, Any] = {}

    def add(config: dict[str, Any], prefix: str) -> None:
        names, values = dotted(prefix, tuple(config)), config.values()
        if NESTED.isdisjoint(map(type, values)):
            flat.update(zip(names, values, strict=True))
            return
        for name, value in zip(names, values, strict=True):
            if isinstance(value, dict):
                add(value, name)
            else:
                flat[name] = json.dumps(value) if isinstance(value, list) else value

    add(config, prefix)
    return flat


@lru_cache(maxsize=4096)  # runs of a sweep have the same groups
def dotted(prefix: str, keys: tuple[Any, ...]) -> list[str]:
    """The names of a group's keys."""
    return [prefix if prefix and key == "name" else f"{prefix}.{key}" if prefix else str(key) for key in keys]


def flat_metrics(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Finite numbers only, nested ones under dotted names."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            flat |= flat_metrics(value, f"{prefix}{key}.")
        elif type(value) in (float, int) and math.isfinite(value):
            flat[prefix + key] = value
    return flat


def read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise DamagedFile(f"{path} is damaged (it is not a YAML mapping); restore it, or run the run again.")
    return content


def frame_of(runs: list[Record]) -> "pd.DataFrame":
    """The records as a frame; config keys and metrics in the order of their first appearance."""
    import numpy as np
    import pandas as pd

    parts = {name: pd.Series([getattr(run, name) for run in runs], dtype="object") for name in RUN_FIELDS}
    frames = [pd.DataFrame(parts)]
    columns = [("run", name) for name in RUN_FIELDS]
    for kind, dtype in (("config", "object"), ("metrics", "float64")):
        contents: list[dict[str, Any]] = [getattr(run, kind) for run in runs]
        absent = dict.fromkeys((key for keys in dict.fromkeys(map(tuple, contents)) for key in keys), ABSENT)
        keys = list(absent)
        cells = np.empty((len(runs), len(keys)), dtype=dtype)
        for row, content in enumerate(contents):
            cells[row] = list((absent | content).values())
        frames.append(pd.DataFrame(cells))
        columns += [(kind, key) for key in keys]
    frame = pd.concat(frames, axis=1)
    frame.columns = pd.MultiIndex.from_tuples(columns)
    return frame
