"""Launching for Hydra's own sweepers, such as Optuna: each batch of their trials is one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sae_sweeps.errors import ConfigError
from sae_sweeps.sweeps.variants import points_of

statuses: list[int] = []
"""Exit statuses of this command's launches; a sweeper returns nothing from its launcher."""
failures: list[Exception] = []
"""Errors that ended a launch within Hydra, which are not mistakes of the command that Hydra reports."""


def launch_trials(
    trials: Sequence[Sequence[str]], config: DictConfig, compose: Callable[[list[str]], DictConfig]
) -> list[float | None]:
    """Launch the trials, lists of overrides, together; the value of `objective` of each.

    Raises ConfigError for a mistake, KeyboardInterrupt where the launch was interrupted, so that no more trials start.
    """
    from sae_sweeps.cli.launch import launch  # imports torch, which --help and --cfg do without

    if config.objective:  # the folder where a sweeper writes its best trial
        Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
    by_trial: list[Any] = [points_of(list(overrides), compose) for overrides in trials]
    if config.objective and any(len(points) > 1 for points in by_trial):
        raise ConfigError("objective: the variants of an experiment are several results for one trial; sweep one.")
    try:
        outcome = launch([point for points in by_trial for point in points])
    except ValueError as error:
        failures.append(error)
        raise
    statuses.append(outcome.status)
    if outcome.status == 130:
        raise KeyboardInterrupt
    values = iter(outcome.values)
    of_trials = [[next(values) for _ in points] for points in by_trial]
    return [found[0] if found else None for found in of_trials]
