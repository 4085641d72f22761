"""A sweep is a list: a folder of its own with a manifest and readable links to runs, which live elsewhere."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sae_sweeps.config.schema import ClusterConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.files import naming_full_disk, write_json
from sae_sweeps.storage.lease import this_process
from sae_sweeps.storage.sweep_folder import CONFIGS, MANIFEST, run_path
from sae_sweeps.sweeps.plan import Plan, safe_name


def create_sweep(outputs: Path, plan: Plan, cluster: ClusterConfig | None = None) -> Path:
    """Make `outputs/sweeps/<name>/` with its manifest and links. Names never collide: the folder's creation decides."""
    folder = _new_folder(outputs / "sweeps")
    runs: list[dict[str, Any]] = [
        {"run_id": p.run_id, "title": p.title, "overrides": p.overrides, "equal": p.equals} for p in plan.runs
    ]
    manifest: dict[str, Any] = {
        "name": folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "cwd": os.getcwd(),
        "launcher": this_process(),
        "command": ["launch.py", *sys.argv[1:]],
        "varied": plan.varied,
        "warnings": plan.warnings,
        "cluster": asdict(cluster or ClusterConfig()),
        "runs": runs,
        "groups": [],
        "jobs": [],
    }
    write_json(folder / CONFIGS, {p.run_id: p.run.to_dict() for p in plan.runs})
    write_json(folder / MANIFEST, manifest)
    for number, run in enumerate(runs):
        link = folder / f"{number}-{safe_name(run['title'])}"
        try:
            link.symlink_to(os.path.relpath(run_path(outputs, run["run_id"]), folder))
        except OSError:  # a file system without links; the manifest says the same
            break
    return folder


def _new_folder(sweeps: Path) -> Path:
    with naming_full_disk(sweeps):
        try:
            sweeps.mkdir(parents=True, exist_ok=True)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise ConfigError(
                f"outputs={sweeps.parent}: cannot be written ({error.strerror}); give a folder of yours."
            ) from None
        while True:
            name = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
            try:
                (sweeps / name).mkdir()
                return sweeps / name
            except FileExistsError:
                continue
