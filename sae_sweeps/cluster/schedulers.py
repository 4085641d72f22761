"""The scheduler of a cluster kind: Slurm, or processes on this machine."""

from typing import Any

from sae_sweeps.cluster.jobs import Scheduler
from sae_sweeps.cluster.local import Local
from sae_sweeps.cluster.slurm import Slurm
from sae_sweeps.config.schema import LocalConfig, SlurmConfig


def scheduler_for(cfg: Any) -> Scheduler:
    return Local(cfg) if isinstance(cfg, LocalConfig) else Slurm(cfg)


def scheduler_named(kind: str) -> Scheduler:
    """One to query and cancel jobs; nothing is submitted through it."""
    return scheduler_for(LocalConfig() if kind == "local" else SlurmConfig())
