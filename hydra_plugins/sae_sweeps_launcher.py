"""Hydra's way to this project's launcher: all points of a sweep are composed first, then handed over together.

This folder is a namespace package (no `__init__.py`), or it would hide other plugins. Hydra executes every module
here at each start, so nothing heavy is imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
        from sae_sweeps.cli.hydra_sweeper import launch_trials

        def compose(overrides: list[str]) -> DictConfig:
            return self.hydra_context.config_loader.load_sweep_config(self.config, overrides)

        return [_completed(value) for value in launch_trials(job_overrides, self.config, compose)]


def _completed(value: float | None) -> JobReturn:
    """The launch has printed and recorded every run's end itself; a run that failed must not stop Hydra's sweeper."""
    done: Any = JobReturn()
    done.status, done.return_value = JobStatus.COMPLETED, value
    return done
