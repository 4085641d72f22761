"""The points of a command composed without launching it."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from sae_sweeps.cli.command import register
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.words import rewrite
from sae_sweeps.sweeps.plan import Point
from sae_sweeps.sweeps.variants import points_of


def compose_points(words: list[str]) -> list[Point]:
    """Every point that `python launch.py WORDS` would run. Raises what launch.py would."""
    register()
    overrides = [word for word in rewrite(words) if word not in ("-m", "--multirun")]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):

        def composed(words: list[str]) -> DictConfig:
            return compose("config", overrides=words)

        swept = [override.key_or_group for override in OverridesParser.create().parse_overrides(overrides)]
        params = compose("config", overrides=_first(overrides), return_hydra_config=True).hydra.sweeper.params or {}
        grid = [f"{key}={value}" for key, value in params.items() if key not in swept]
        parsed = OverridesParser.create().parse_overrides([*grid, *overrides])
        (lists,) = BasicSweeper.split_arguments(parsed, None)
        return [point for chosen in lists for point in points_of(list(chosen), composed)]


def _first(overrides: list[str]) -> list[str]:
    """The overrides of the first point of their product."""
    (lists,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
    return list(lists[0])
