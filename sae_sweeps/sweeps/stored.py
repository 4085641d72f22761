"""A sweep's plan read back from its folder, so that any process can carry out a part of it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sae_sweeps.config.identity import run_id
from sae_sweeps.config.run import RunConfig, run_config
from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import read_json
from sae_sweeps.storage.sweep_folder import CONFIGS, outputs_of, read_manifest
from sae_sweeps.sweeps.plan import Plan, PlannedRun


def stored_plan(sweep: Path, only: Collection[str] | None = None) -> Plan:
    """The runs of a sweep, or those of them with the ids `only`, as they were planned.

    Raises DataError when the model or the text has changed since: a run's id stands for their content; DamagedFile
    when the configs do not read back.
    """
    manifest, configs = read_manifest(sweep), read_json(sweep / CONFIGS)
    outputs = outputs_of(sweep)
    runs = []
    for listed in manifest["runs"]:
        identity = listed["run_id"]
        if only is not None and identity not in only:
            continue
        if not isinstance(configs, dict) or not isinstance(configs.get(identity), dict):
            raise DamagedFile(f"{sweep / CONFIGS} is damaged (it has no {identity}); launch the command again.")
        run = restored(configs[identity], outputs)
        if run_id(run, outputs / "activations" / "digests") != identity:
            raise DataError(
                f"{identity} ({listed['title']}): its model, its text or the code has changed since the sweep was "
                "launched; launch the command again."
            )
        runs.append(PlannedRun(run, identity, listed["title"], listed["overrides"], listed.get("equal", [])))
    return Plan(runs, manifest["warnings"], manifest["varied"])


def restored(config: dict[str, Any], outputs: Path) -> RunConfig:
    """A run from what `RunConfig.to_dict` gave, checked as it was the first time."""
    with_schedule = {"schedule": {"name": "constant"}} | config  # a combination has none of its own
    return run_config(OmegaConf.create(with_schedule | {"outputs": str(outputs)}))
