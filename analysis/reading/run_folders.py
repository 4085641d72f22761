"""The run folders at a path, each read as a Record."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from analysis.metrics import remember
from analysis.reading.configs import flat_config, flat_metrics
from analysis.reading.record import LOST, Record
from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import read_yaml
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import DAMAGED, RunFolder
from sae_sweeps.storage.sweep_folder import read_manifest


def runs_at(path: Path) -> Iterator[tuple[Path, str | None]]:
    """The run folders at a path, each with its title in the sweep or None."""
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
    listed = [(run["run_id"], run.get("title")) for run in read_manifest(manifest.parent)["runs"]]
    home = manifest.resolve().parents[2] / "runs"
    for run_id, title in listed:
        yield home / run_id, title


Read = TypeVar("Read")


def read_or_damaged(folder: Path, title: str | None = None, run_id: str | None = None) -> Record:
    """As `read_run`; where a file does not read back, a record in the state DAMAGED."""
    try:
        return read_run(folder, title, run_id)
    except (DamagedFile, DataError) as error:
        return Record(run_id or folder.resolve().name, folder, title, DAMAGED, error=str(error))


def or_warned(warnings: list[str], read: Callable[[], Read], otherwise: Read) -> Read:
    """What `read` returns; `otherwise` where a file is damaged, which then is one of the run's warnings."""
    try:
        return read()
    except DamagedFile as damaged:
        if str(damaged) not in warnings:
            warnings.append(str(damaged))
        return otherwise


def read_run(folder: Path, title: str | None = None, run_id: str | None = None) -> Record:
    """The record of a run's folder; without a folder, a queued run. `run_id` is used where no file has one."""
    run = RunFolder(folder)
    record = Record(run_id=run_id or folder.resolve().name, folder=folder, title=title)
    results = run.results()
    status = run.status()
    lost = False
    if status and status["state"] == "running" and Lease.holder(folder) is None:
        status = run.status() or status  # it may have ended since its status was read
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
        record.config = flat_config(results["config"])
        record.provenance = results["provenance"]
        remember(results.get("described") or {})
        if record.state == "completed":
            record.metrics = flat_metrics(results["metrics"])
            record.nulls = [name for name, value in results["metrics"].items() if value is None]
    elif run.config_path.exists():
        record.config = flat_config(read_yaml(run.config_path))
        record.title = title or record.config.get("title")
    record.description = record.config.get("description") or None
    return record
