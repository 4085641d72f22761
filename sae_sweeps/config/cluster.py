"""The cluster group, typed and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig

from sae_sweeps.config.schema import ClusterConfig, LocalConfig, SlurmConfig
from sae_sweeps.config.typed import typed
from sae_sweeps.errors import ConfigError

KINDS: dict[str, type[ClusterConfig]] = {"inline": ClusterConfig, "local": LocalConfig, "slurm": SlurmConfig}


def kind_of(cluster: Mapping[Any, Any]) -> str:
    """inline, local or slurm: by the name, or for a preset of one's own by its keys, whatever it is called."""
    keys = [{f.name for f in fields(cls)} & cluster.keys() for cls in KINDS.values()]
    named = str(cluster.get("name"))
    return named if named in KINDS else max(zip(KINDS, map(len, keys), strict=True), key=lambda kind: kind[1])[0]


def cluster_config(node: DictConfig) -> Any:
    """The chosen cluster's config. Raises ConfigError for an invalid value."""
    cfg = typed(KINDS[kind_of(node)], node, "cluster")
    if isinstance(cfg, SlurmConfig):
        _check_slurm(cfg)
    return cfg


def _check_slurm(cfg: SlurmConfig) -> None:
    minutes_of(cfg.time)
    if cfg.gpus % cfg.tasks:
        raise ConfigError(f"cluster.gpus={cfg.gpus}: cannot be dealt out evenly to cluster.tasks={cfg.tasks} groups.")
    if cfg.signal_s >= minutes_of(cfg.time) * 60:
        raise ConfigError(
            f"cluster.signal_s={cfg.signal_s}: the warning would come before the job; it has {cfg.time} of time."
        )


def minutes_of(time: str) -> int:
    """A time limit in whole minutes, rounded up: `90`, `1:30:00` or `1-12:00:00`."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", time)
    if found:
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        total = (days * 24 + hours) * 60 + minutes + (seconds > 0)
    elif time.isdecimal():
        total = int(time)
    else:
        raise ConfigError(f"cluster.time={time}: give minutes, H:MM:SS or D-HH:MM:SS.")
    if total < 1:
        raise ConfigError(f"cluster.time={time}: must be at least a minute.")
    return total
