"""Run folders as one data frame.

Columns have two levels, so that a config key never meets a metric of the same name:
`run` (RUN_FIELDS), `config` (dotted keys) and `metrics` (flat). Imported records of earlier work are rows too;
their `source` names where the numbers come from.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.reading.record import ABSENT, RUN_FIELDS, Record
from analysis.reading.run_folders import read_or_damaged, runs_at
from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.run_folder import DAMAGED


def records(paths: Iterable[str | Path], sources: bool = False) -> pd.DataFrame:
    """One row per run of the paths, in their order, each run once.

    A path is a run folder, a results.json, a sweep folder (or its manifest.json), or an outputs tree; or imported
    records: a file that `analysis import` wrote, a folder with such files, `reference`. Runs without results appear
    with their state, one with a file that does not read back as DAMAGED. With `sources`, a file of notes, figures or
    SAEBench's results is read as `import` reads it. Raises DataError for a path that is missing or holds no run,
    DamagedFile for a manifest or an import that does not read back, or where no run does.
    """
    from analysis.reading.import_files import imported_records, source_records

    found: dict[Path, Record] = {}
    real = cache(Path.resolve)  # of the few folders that hold the runs
    for path in paths:
        imported = imported_records(path) or (source_records(path) if sources else [])
        listed = [] if imported and not Path(path).is_dir() else list(runs_at(Path(path)))
        if not listed and not imported:
            raise DataError(f"{path} holds no runs; give a run's folder, a sweep's folder or the outputs folder.")
        for folder, title in listed:
            plain = folder.name not in ("", "..") and not folder.is_symlink()
            place = real(folder.parent) / folder.name if plain else folder.resolve()
            if place not in found:
                found[place] = read_or_damaged(folder, title, place.name)
        for record in imported:
            found.setdefault(record.folder.absolute(), record)
    runs = list(found.values())
    if all(run.state == DAMAGED for run in runs):
        raise DamagedFile(runs[0].error)
    return frame_of(runs)


def frame_of(runs: list[Record]) -> pd.DataFrame:
    """The records as a frame; config keys and metrics in the order of their first appearance."""
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
