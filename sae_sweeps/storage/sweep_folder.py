"""A sweep's folder: its manifest lists runs, groups and jobs; the runs live elsewhere in the outputs tree."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import MissingFile, check_types, read_json, write_json
from sae_sweeps.storage.lease import mutex

MANIFEST = "manifest.json"
INLINE = {"name": "inline", "group_size": None, "memory_gb": None}
"""The cluster of a manifest that names none."""
RUN_ID = re.compile(r"\w[\w.-]*")
"""Of a run, and so of its folder's name: no path, which could lead elsewhere."""
CONFIGS = "configs.json"
"""Every run's config by its id, so that any process can execute the sweep."""


def run_path(outputs: Path, run_id: str) -> Path:
    return outputs / "runs" / run_id


def outputs_of(sweep: Path) -> Path:
    """The outputs tree of a sweep's folder."""
    return sweep.resolve().parents[1]


def read_manifest(sweep: Path) -> dict[str, Any]:
    """A sweep's manifest. Raises DataError where there is none, DamagedFile where it does not read back."""
    try:
        manifest = read_json(sweep / MANIFEST)
    except (MissingFile, NotADirectoryError):
        raise DataError(f"{sweep} is no sweep (it has no {MANIFEST}); give a folder of outputs/sweeps.") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("runs"), list):
        raise DamagedFile(f"{sweep / MANIFEST} is damaged (it lists no runs); restore it, or launch the sweep again.")
    check_types(manifest, {"groups": list, "jobs": list, "varied": list}, sweep / MANIFEST)
    for run in manifest["runs"]:
        if not (isinstance(run, dict) and isinstance(run.get("run_id"), str) and RUN_ID.fullmatch(run["run_id"])):
            raise DamagedFile(
                f"{sweep / MANIFEST} is damaged (it lists a run without an id); restore it, or give the runs' folders."
            )
        check_types(run, {"title": str, "overrides": list, "equal": list, "digests": dict}, sweep / MANIFEST)
        run["title"], run["overrides"] = run.get("title") or run["run_id"], run.get("overrides") or []
    usual: dict[str, Any] = {"groups": [], "jobs": [], "launcher": None, "cwd": None, "cluster": INLINE, "report": True}
    return usual | {key: value for key, value in manifest.items() if value is not None}


def change_manifest(sweep: Path, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Read, change and write a manifest while no other process does. Returns it as written."""
    with mutex(sweep):
        manifest = read_manifest(sweep)
        change(manifest)
        write_json(sweep / MANIFEST, manifest)
    return manifest
