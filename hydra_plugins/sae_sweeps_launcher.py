"""Hydra's way to this project's launcher: all points of a sweep are composed first, then handed over together.

This folder is a namespace package (no `__init__.py`), or it would hide other plugins. Hydra executes every module
here at each start, so nothing heavy is imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class SaeSweepsLauncherConf:
    _target_: str = "hydra_plugins.sae_sweeps_launcher.SaeSweepsLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="sae_sweeps", node=SaeSweepsLauncherConf, provider="sae_sweeps"
)


class SaeSweepsLauncher(Launcher):
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from sae_sweeps.cli import outcome
        from sae_sweeps.cli.launch import launch
        from sae_sweeps.errors import ConfigError
        from sae_sweeps.sweeps.variants import points_of

        def compose(overrides: list[str]) -> DictConfig:
            return self.hydra_context.config_loader.load_sweep_config(self.config, overrides)

        if self.config.objective:  # where a sweeper leaves its note of the best point
            Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        by_job: list[Any] = [points_of(list(overrides), compose) for overrides in job_overrides]
        values = iter(launch([point for points in by_job for point in points]))
        of_jobs = [[next(values) for _ in points] for points in by_job]
        if any(len(of_job) > 1 for of_job in of_jobs) and self.config.objective:
            raise ConfigError("objective: an experiment's arms are several results for one trial; sweep one arm.")
        if outcome.status == 130:  # a sweeper must not go on with its next trials
            raise KeyboardInterrupt
        return [_done(of_job[0] if of_job else None) for of_job in of_jobs]


def _done(value: float | None) -> JobReturn:
    """The sweep has told and recorded every run's end itself; a run that failed must not stop Hydra's sweeper."""
    done: Any = JobReturn()
    done.status, done.return_value = JobStatus.COMPLETED, value
    return done
