"""A run's folder: the truth about the run, written so that a kill at any moment leaves it readable."""

import json
import math
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from sae_sweeps.errors import DamagedFile
from sae_sweeps.files import MissingFile, naming_full_disk, read_json, write_bytes, write_json

STATES = ("queued", "running", "completed", "diverged", "failed", "interrupted", "preempted", "cancelled", "lost")
"""`completed` and `diverged` are final; the others are taken up again by the next launch."""

ENDED = STATES[2:]
"""States in which no process works on the run."""

EMPTY_STATUS: dict[str, Any] = {
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
    "error": None,
}
"""The fields of status.json. Times are ISO 8601 in UTC; `started` is the latest start, `error` one line."""


class RunFolder(os.PathLike):
    """The files of one run. Making the object touches nothing on disk; the folder appears with the first write."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._metrics: FileIO | None = None

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    # Places ----------------------------------------------------------------------------------------------------------

    @property
    def config_path(self) -> Path:
        """config.yaml: the fully resolved config."""
        return self.path / "config.yaml"

    @property
    def status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def metrics_path(self) -> Path:
        """metrics.jsonl: one object per logged step."""
        return self.path / "metrics.jsonl"

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
        """All fields of status.json, or None when there is none yet. Raises DamagedFile when it does not read back."""
        try:
            status = read_json(self.status_path)
        except MissingFile:
            return None
        if not isinstance(status, dict) or status.get("state") not in STATES:
            raise DamagedFile(f"{self.status_path} is damaged (no known state); restore it, or remove it.")
        return EMPTY_STATUS | status

    def set_status(self, **changes: Any) -> dict[str, Any]:
        """Write status.json with these fields changed, and return it.

        `updated` is always set; entering `running` sets started, host, pid, Slurm job id and clears ended and error;
        entering an ended state sets ended. A change given explicitly wins. Raises DamagedFile as `status` does.
        """
        if unknown := changes.keys() - EMPTY_STATUS.keys():
            raise TypeError(f"status.json has no field {', '.join(sorted(unknown))}")
        if changes.get("state", "queued") not in STATES:
            raise ValueError(f"{changes['state']!r} is not a state of a run")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        new = self.status() or EMPTY_STATUS | {"created": now}
        here = {"host": socket.gethostname(), "pid": os.getpid(), "slurm_job_id": slurm_job_id()}
        if changes.get("state") == "running" and not (new["state"] == "running" and new | here == new):
            new |= here | {"started": now, "ended": None, "error": None}
        if changes.get("state") in ENDED:
            new["ended"] = now
        new.update(updated=now, **{key: value for key, value in changes.items() if key != "updated"})
        write_json(self.status_path, new)
        return new

    # Metrics ---------------------------------------------------------------------------------------------------------

    def append(self, row: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl. A non-finite number becomes null and its key is named in `nonfinite`.

        Values are plain scalars, or tensors and arrays of one element. Raises DiskFull, with no partial line left.
        """
        row = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
        nonfinite = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        if nonfinite:
            row |= dict.fromkeys(nonfinite) | {"nonfinite": nonfinite}
        line = json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with naming_full_disk(self.metrics_path):
            if self._metrics is None:
                self._metrics = self._open_metrics()
            start = self._metrics.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(line):
                    written += self._metrics.write(line[written:]) or 0
            except OSError:
                self._metrics.truncate(start)
                raise

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, oldest first; a torn last line is left out. Raises DamagedFile for any other."""
        return [row for _, row in self._lines()]

    def truncate(self, step: int) -> None:
        """Drop, atomically, the rows after `step` and a torn last line."""
        if not self.metrics_path.exists():
            return
        kept = b"".join(line for line, row in self._lines() if row["step"] <= step)
        self.close()
        if kept != self.metrics_path.read_bytes():
            write_bytes(self.metrics_path, kept)

    def close(self) -> None:
        """Close metrics.jsonl; a later `append` opens it again."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Each whole line of metrics.jsonl and its row."""
        if not self.metrics_path.exists():
            return
        with open(self.metrics_path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return  # torn by a kill
                try:
                    row = json.loads(line)
                    if not isinstance(row["step"], int):
                        raise ValueError
                except (ValueError, TypeError, KeyError):
                    raise DamagedFile(
                        f"{self.metrics_path} is damaged at line {number}; restore it, or remove that line to go on."
                    ) from None
                yield line, row

    def _open_metrics(self) -> FileIO:
        """metrics.jsonl, unbuffered, to append to, after cutting off a torn last line."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = FileIO(self.metrics_path, "a+")
        file.seek(0)
        content = file.readall()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
        return file


def slurm_job_id() -> str | None:
    """This process's Slurm job, as squeue prints it (`123` or `123_4` in an array), or None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
