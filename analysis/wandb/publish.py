"""Replay runs that have ended into W&B: the rows of metrics.jsonl, the results, the notes, and a table per sweep.

A run keeps its id at W&B, so publishing it again, or after it was logged while it trained, updates one W&B run: W&B
ignores steps that it has; the summary and the notes are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.reading.record import Record
from analysis.reading.run_folders import read_or_damaged, runs_at
from analysis.text import cell
from sae_sweeps.config.schema import LoggerConfig
from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import read_json, read_yaml
from sae_sweeps.storage.run_folder import DAMAGED, ENDED, RunFolder
from sae_sweeps.tracking.wandb_sink import WandbSink

TABLE_COLUMNS = ("run", "title", "state", "varied", "results", "description", "warnings")


@dataclass
class Listed:
    """A run of the paths, and the sweep through which it was found."""

    record: Record
    sweep: str | None


def publish(paths: Iterable[str | Path], logger: LoggerConfig, print_line: Callable[[str], None]) -> int:
    """Publish every ended run of the paths, then a table for each sweep. Returns 1 where a copy is incomplete, else 0.

    Raises DataError and DamagedFile as `analysis.reading.records.records` does.
    """
    found: dict[Path, Listed] = {}
    sweeps: dict[Path, list[Path]] = {}
    for path in map(Path, paths):
        listed = [(folder, title) for folder, title in runs_at(path)]
        if not listed:
            raise DataError(f"{path} holds no runs; give a run's folder, a sweep's folder or the outputs folder.")
        sweep = path if (path / "manifest.json").exists() else None
        for folder, title in listed:
            name = sweep.resolve().name if sweep else None
            found.setdefault(folder.resolve(), Listed(read_or_damaged(folder, title), name))
        if sweep is not None:
            sweeps[sweep] = [folder.resolve() for folder, _ in listed]
    keys = varied_keys([listed.record for listed in found.values()])
    problems = [publish_run(listed, logger, keys, print_line) for listed in found.values()]
    problems += [
        publish_sweep(sweep, [found[place].record for place in places], logger, keys, print_line)
        for sweep, places in sweeps.items()
    ]
    return int(any(problems))


def publish_notes(sweep: Path, logger: LoggerConfig, print_line: Callable[[str], None]) -> None:
    """Publish the table of a sweep whose runs were logged as they trained; prints a line only where that failed."""
    records = [read_or_damaged(folder, title) for folder, title in runs_at(sweep)]
    lines: list[str] = []
    if publish_sweep(sweep, records, logger, varied_keys(records), lines.append):
        print_line(lines[-1])


def publish_run(listed: Listed, logger: LoggerConfig, keys: list[str], print_line: Callable[[str], None]) -> bool:
    """Publish one run. Returns whether its copy at W&B is incomplete."""
    record = listed.record
    if record.state == DAMAGED:
        print_line(f"{record.run_id}: not published: {record.error}")
        return True
    if record.state not in ENDED:
        print_line(f"{record.run_id}: {record.state}; published once it has ended")
        return False
    folder = RunFolder(record.folder)
    try:
        config, tags = configured(folder)
        rows, monitors = (folder.unchanged(log).rows() for log in (folder.metrics, folder.monitors))
    except DamagedFile as damaged:
        print_line(f"{record.run_id}: not published: {damaged}")
        return True
    sink = WandbSink(
        logger,
        run_id=record.run_id,
        group=listed.sweep,
        tags=[*logger.tags, *tags],
        config=config,
        folder=record.folder,
        title=record.title,
    )
    for monitored in monitors:
        sink.monitor(monitored)
    sink.replay(rows)
    warning = sink.finish(0 if record.state == "completed" else 1, record.metrics, notes=notes_of(record, keys))
    print_line(f"{record.run_id}: " + (f"warning: {warning}" if warning else f"{len(rows)} rows, {record.state}"))
    return warning is not None


def publish_sweep(
    sweep: Path, runs: list[Record], logger: LoggerConfig, keys: list[str], print_line: Callable[[str], None]
) -> bool:
    """Publish the notes of a sweep's runs as a table in a W&B run. Returns whether that copy is incomplete."""
    manifest = read_json(sweep / "manifest.json")
    name = sweep.resolve().name
    sink = WandbSink(
        logger,
        run_id=f"sweep-{re.sub(r'[^A-Za-z0-9_-]', '-', name)}",
        group=name,
        tags=[*logger.tags, "sweep"],
        config={"command": manifest.get("command"), "varied": manifest.get("varied"), "runs": len(runs)},
        folder=sweep,
        title=f"sweep {name}",
        job_type="sweep",
    )
    sink.table("run_notes", list(TABLE_COLUMNS), [table_row(record, keys) for record in runs])
    states = {record.state for record in runs}
    notes = " ".join(map(str, manifest.get("command") or []))
    warning = sink.finish(0 if states == {"completed"} else 1, {}, notes=notes)
    print_line(f"{name}: " + (f"warning: {warning}" if warning else f"table of {len(runs)} runs"))
    return warning is not None


def table_row(record: Record, keys: list[str]) -> list[str]:
    """TABLE_COLUMNS of one run, as text."""
    results = ", ".join(f"{name} {cell(value)}" for name, value in record.metrics.items())
    notes, warnings = notes_of(record, keys), "; ".join(record.warnings)
    return [record.run_id, record.title or "", record.state, values_of(record, keys), results, notes, warnings]


def values_of(record: Record, keys: Iterable[str]) -> str:
    """The run's values of config keys, as text."""
    return ", ".join(f"{key}={cell(record.config[key], 'config')}" for key in keys if key in record.config)


def notes_of(record: Record, keys: Iterable[str] = ()) -> str:
    """What W&B shows as a run's notes: what was varied, the description of its run notes, error and warnings."""
    from analysis.auditing.run import run_of
    from analysis.output.notes import described

    varied = values_of(record, keys)
    lines = [f"Varied: {varied}" if varied else "", described(run_of(vars(record), record.config, record.metrics))]
    lines += [f"{record.state}: {record.error}" if record.error else ""]
    return "\n".join([*filter(None, lines), *(f"Warning: {warning}" for warning in record.warnings)])


def varied_keys(records: list[Record]) -> list[str]:
    """The config keys that take more than one value among the runs that are published together."""
    from analysis.columns import differing
    from analysis.reading.records import frame_of

    return [name for _, name in differing(frame_of(records))]


def configured(folder: RunFolder) -> tuple[dict[str, Any], list[str]]:
    """The run's config, nested as in results.json, and its tags."""
    results = folder.results()
    if results is not None:
        config = results["config"]
    else:
        config = read_yaml(folder.config_path) if folder.config_path.exists() else {}
    return config, list(config.get("tags") or [])
