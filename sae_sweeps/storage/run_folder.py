"""A run's folder, the authoritative record of the run: readable after a kill at any moment."""

import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import MissingFile, check_types, digest_of, object_in, read_json, write_json
from sae_sweeps.storage.rows import RowFile

STATES = ("queued", "running", "completed", "diverged", "failed", "interrupted", "preempted", "cancelled", "lost")
"""`completed` and `diverged` are final; the others are taken up again by the next launch."""

ENDED = STATES[2:]
"""States in which no process works on the run."""

DAMAGED = "damaged"
"""Shown in the place of a state where a file of the run does not read back; never written to status.json."""

SUMMARY = ".summary.json"
"""Beside SAEBench's `evals/core.json`: `evals/core.summary.json`."""

TRAINED = "trained.json"
"""Marks a run whose training is done; holds its provenance, its warnings, and the digests of LOGS and SAE_FILES."""
LOGS = ("metrics.jsonl", "monitors.jsonl")
SAE_FILES = ("sae/cfg.json", "sae/sae_weights.safetensors")

FORMAT = 1
"""Version of the layout of a run's folder and of its files, in status.json and results.json; those without one are of
version 1. It is raised whenever this version's readers could not read what the next one writes."""

EMPTY_STATUS: dict[str, Any] = {
    "format_version": FORMAT,
    "state": "queued",
    "step": 0,
    "total_steps": None,
    "created": None,
    "started": None,
    "updated": None,
    "ended": None,
    "host": None,
    "pid": None,
    "slurm_job_id": None,
    "restarts": 0,
    "error": None,
}
"""The fields of status.json. Times are ISO 8601 in UTC; `started` is the latest start, `restarts` counts how often the
run was taken up again before its end, `error` is one line."""


def _read(path: Path) -> Any:
    """The JSON of a run's file, None where there is none. Raises DataError for a format of a later version."""
    try:
        content = read_json(path)
    except MissingFile:
        return None
    version = content.get("format_version", FORMAT) if isinstance(content, dict) else FORMAT
    if type(version) is not int or not 1 <= version <= FORMAT:  # true is an int
        raise DataError(
            f"{path} has the format_version {version}, and this version of sae-sweeps reads up to {FORMAT}; update "
            "sae-sweeps to read it, or restore it."
        )
    return content


class RunFolder(os.PathLike):
    """The files of one run. Making the object touches nothing on disk; the folder appears with the first write."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    # Paths ----------------------------------------------------------------------------------------------------------

    @cached_property
    def metrics(self) -> RowFile:
        """metrics.jsonl: one object per logged step."""
        return RowFile(self.path / "metrics.jsonl")

    @cached_property
    def monitors(self) -> RowFile:
        """monitors.jsonl: the monitors of pairs, penalties and groups, one object per monitor and monitored step."""
        return RowFile(self.path / "monitors.jsonl")

    @property
    def config_path(self) -> Path:
        """config.yaml: the fully resolved config."""
        return self.path / "config.yaml"

    @property
    def status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def checkpoint(self) -> Path:
        """Folder: everything needed to resume exactly."""
        return self.path / "checkpoint"

    @property
    def sae(self) -> Path:
        """Folder: cfg.json and sae_weights.safetensors."""
        return self.path / "sae"

    @property
    def evals(self) -> Path:
        """Folder: one JSON file per evaluation."""
        return self.path / "evals"

    @property
    def results_path(self) -> Path:
        """results.json: run_id, title, config, metrics, provenance, warnings."""
        return self.path / "results.json"

    # Status ----------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any] | None:
        """All fields of status.json, or None when there is none yet.

        Raises DamagedFile when it does not read back, DataError when a later version wrote it.
        """
        status = _read(self.status_path)
        if status is None:
            return None
        if not isinstance(status, dict) or status.get("state") not in STATES:
            raise DamagedFile(f"{self.status_path} is damaged (no known state); restore it, or remove it.")
        check_types(status, {"step": int, "total_steps": int, "restarts": int, "error": str}, self.status_path)
        return EMPTY_STATUS | status

    def set_status(self, **changes: Any) -> dict[str, Any]:
        """Write status.json with these fields changed, and return it.

        `updated` is always set; entering `running` sets started, host, pid, Slurm job id, counts a restart, clears
        ended and error; entering an ended state sets ended. A change given explicitly wins. Raises DamagedFile as
        `status` does.
        """
        if unknown := changes.keys() - EMPTY_STATUS.keys():
            raise TypeError(f"status.json has no field {', '.join(sorted(unknown))}")
        if changes.get("state", "queued") not in STATES:
            raise ValueError(f"{changes['state']!r} is not a state of a run")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        new = self.status() or EMPTY_STATUS | {"created": now}
        here = {"host": socket.gethostname(), "pid": os.getpid(), "slurm_job_id": slurm_job_id()}
        if changes.get("state") == "running" and not (new["state"] == "running" and new | here == new):
            again = new["started"] is not None and new["state"] != "completed"
            new |= here | {"started": now, "ended": None, "error": None, "restarts": new["restarts"] + again}
        if changes.get("state") in ENDED:
            new["ended"] = now
        new.update(updated=now, **{key: value for key, value in changes.items() if key != "updated"})
        write_json(self.status_path, new)
        return new

    def results(self) -> dict[str, Any] | None:
        """results.json, or None where there is none.

        Raises DamagedFile where it lacks config or metrics, DataError when a later version wrote it.
        """
        results = _read(self.results_path)
        if results is None:
            return None
        if not isinstance(results, dict) or not isinstance(results.get("metrics"), dict):
            raise DamagedFile(f"{self.results_path} is damaged (it has no metrics); restore it, or run the run again.")
        for key in ("config", "provenance"):  # records of other tools have neither
            results[key] = object_in(results, key, self.results_path)
        check_types(results, {"title": str, "warnings": list, "described": dict}, self.results_path)
        return results

    def read_trained(self, names: Sequence[str]) -> dict[str, Any]:
        """trained.json. Raises DamagedFile where it, or one of these files of the run, is not what training wrote."""
        path = self.path / TRAINED
        mend = f"restore it, or delete the folder {self.path} to train the run again."
        trained = read_json(path)
        if not isinstance(trained, dict) or not {"warnings", "provenance"} <= trained.keys():
            raise DamagedFile(f"{path} is damaged (it has no provenance); {mend}")
        for name, digest in object_in(trained, "digests", path).items():  # none in runs of earlier versions
            if name in names and digest_of(self.path / name) != digest:
                raise DamagedFile(f"{self.path / name} is not what training wrote; {mend}")
        return trained

    # Rows ------------------------------------------------------------------------------------------------------------

    def unchanged(self, log: RowFile) -> RowFile:
        """The log itself. Raises DamagedFile where it was changed after the training."""
        if (self.path / TRAINED).exists():
            self.read_trained([log.path.name])
        return log

    def truncate(self, step: int) -> None:
        """Drop, atomically, the rows of metrics.jsonl and monitors.jsonl after `step`, and torn last lines."""
        self.metrics.truncate(step)
        self.monitors.truncate(step)

    def log_digests(self) -> dict[str, str]:
        """The digest of each of the two files as it is."""
        return {file.path.name: file.digest() for file in (self.metrics, self.monitors)}

    def close(self) -> None:
        """Close both; a later `append` opens them again."""
        self.metrics.close()
        self.monitors.close()


def slurm_job_id() -> str | None:
    """This process's Slurm job, as squeue prints it (`123` or `123_4` in an array), or None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of an evaluation. Raises DamagedFile for any other content."""
    content = read_json(path)
    types = {"settings": dict, "metrics": dict, "warnings": list}
    if not isinstance(content, dict) or any(not isinstance(content.get(key), kind) for key, kind in types.items()):
        raise DamagedFile(f"{path} is damaged (it has no metrics); remove it, and the evaluation is done again.")
    return content


def read_summaries(folder: Path) -> dict[str, dict[str, Any]]:
    """The summary of every evaluation in a run's or SAE's folder, by the evaluation's name. Raises DamagedFile."""
    paths = sorted((folder / "evals").glob(f"*{SUMMARY}"))
    return {path.name.removesuffix(SUMMARY): read_summary(path) for path in paths}
