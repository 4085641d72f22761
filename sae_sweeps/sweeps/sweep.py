"""A plan written as a sweep's folder (manifest, configs, readable links to the runs), and read back from it."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Collection
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sae_sweeps.config.identity import canonical, changed, digests_of
from sae_sweeps.config.plugins import FILE
from sae_sweeps.config.run import RunConfig, run_config
from sae_sweeps.config.schema import ClusterConfig
from sae_sweeps.errors import ConfigError, DamagedFile, DataError
from sae_sweeps.storage.digests import short_hash
from sae_sweeps.storage.files import FULL, naming_full_disk, read_json, read_yaml, write_json
from sae_sweeps.storage.lease import this_process
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.storage.sweep_folder import CONFIGS, MANIFEST, outputs_of, read_manifest, run_path
from sae_sweeps.sweeps.plan import Plan, PlannedRun, safe_name


def create_sweep(outputs: Path, plan: Plan, cluster: ClusterConfig | None = None, report: bool = True) -> Path:
    """Make `outputs/sweeps/<name>/` with its manifest and links. Names never collide: mkdir is atomic.

    `report`: whether a report is to be written at its end.
    """
    folder = _new_folder(outputs / "sweeps")
    runs: list[dict[str, Any]] = [
        {"run_id": p.run_id, "title": p.title, "overrides": p.overrides, "equal": p.equals, "digests": p.digests}
        for p in plan.runs
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
        "report": report,
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
        except OSError:  # a file system without links; the manifest names the same runs
            break
    return folder


def _new_folder(sweeps: Path) -> Path:
    with naming_full_disk(sweeps):
        try:
            sweeps.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in FULL:
                raise
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


def stored_plan(sweep: Path, only: Collection[str] | None = None) -> Plan:
    """The runs of a sweep, or those of them with the ids `only`, as they were planned.

    Raises DataError when the model or the text has changed since, for their content is part of a run's id; DamagedFile
    when the configs do not read back.
    """
    manifest, configs = read_manifest(sweep), read_json(sweep / CONFIGS)
    outputs = outputs_of(sweep)
    runs = []
    read: dict[str, str] = {}
    for listed in manifest["runs"]:
        identity = listed["run_id"]
        if only is not None and identity not in only:
            continue
        if not isinstance(configs, dict) or not isinstance(configs.get(identity), dict):
            raise DamagedFile(f"{sweep / CONFIGS} is damaged (it has no {identity}); launch the command again.")
        run = restored(configs[identity], outputs)
        content = canonical(run, outputs / "activations" / "digests", read)
        digests = digests_of(content)
        if short_hash(content) != identity:
            why = changed(run, listed.get("digests", {}), digests) or (
                "its model, its text or the code has changed since the sweep was launched, or an earlier version "
                "recorded no commit of the hub; launch the command again."
            )
            raise DataError(f"{identity} ({listed['title']}): {why}")
        again = listed.get("equal", [])
        runs.append(PlannedRun(run, identity, listed["title"], listed["overrides"], again, digests=digests))
    return Plan(runs, manifest["warnings"], manifest["varied"])


def restored(config: dict[str, Any], outputs: Path) -> RunConfig:
    """A run from the dict of `RunConfig.to_dict`, checked like a new one."""
    with_schedule = {"schedule": {"name": "constant"}} | config  # a combination has none of its own
    _refuse_interpolations(with_schedule, f"the config of a run in {outputs}")
    return run_config(OmegaConf.create(with_schedule | {"outputs": str(outputs)}))


def recorded_config(folder: Path) -> dict[str, Any]:
    """The config.yaml of a run's folder. Raises DataError where it is missing, DamagedFile where it is damaged."""
    run = RunFolder(folder)
    run.status()  # refuses a format of later versions
    saved = read_yaml(run.config_path)
    if not isinstance(saved.get("model"), dict):
        raise DamagedFile(f"{run.config_path} is damaged (it holds no config of a run); restore it.")
    _refuse_no_path(saved, run.config_path)
    return saved


def _refuse_no_path(node: dict[str, Any], path: Path) -> None:
    """Raise DamagedFile where a recorded config names, as the file of code, what is no path."""
    for key, value in node.items():
        if key == FILE and not isinstance(value, str | None):
            raise DamagedFile(f"{path} is damaged ({FILE}={value} is no path of a file); restore it.")
        if isinstance(value, dict):
            _refuse_no_path(value, path)


def run_of(saved: dict[str, Any], folder: Path, cfg: DictConfig, of_command: Collection[str]) -> RunConfig:
    """The run in a folder by what it recorded, with the keys `of_command` of a command's config `cfg`.

    Raises DamagedFile for `${...}` in what it recorded, ConfigError for code that came with the run.
    """
    _refuse_interpolations(saved, f"{folder / 'config.yaml'}")
    _refuse_code_beside(saved, folder)
    node: Any = OmegaConf.merge(cfg)
    OmegaConf.set_struct(node, False)
    for key in saved.keys() - of_command:
        node[key] = saved[key]
    node.dry_run, node.variants, node.arms = False, {}, {}
    return run_config(node)


def _refuse_interpolations(node: Any, where: str) -> None:
    """Raise DamagedFile for `${...}`, which a recorded config has none of: it could read this user's environment."""
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        if isinstance(value, str) and "${" in value:
            raise DamagedFile(f"{where} holds the interpolation {value}, which no launch records; restore it.")
        _refuse_interpolations(value, where)


def _refuse_code_beside(node: Any, folder: Path) -> None:
    """Raise ConfigError for code that lies in the run's own folder or among the runs around it."""
    tree = folder.resolve().parents[1]
    around = [folder.resolve(), *(tree / part for part in ("runs", "sweeps") if folder.resolve().parent.name == "runs")]
    for value in node.values() if isinstance(node, dict) else ():
        _refuse_code_beside(value, folder)
    file = node.get(FILE) if isinstance(node, dict) else None
    if file and any(Path(file).resolve().is_relative_to(place) for place in around):
        raise ConfigError(
            f"{folder}: its config names the code {file}, which lies among runs; code is not run from there."
        )
