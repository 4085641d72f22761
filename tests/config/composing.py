"""Compose points as the command does, without starting it."""

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from sae_sweeps.command import CONF, register, rewrite
from sae_sweeps.sweeps.plan import Point, make_plan


def points(*words):
    """Every point of the product that the words describe."""
    register()
    parsed = OverridesParser.create().parse_overrides(rewrite(list(words)))
    (lists,) = BasicSweeper.split_arguments(parsed, None)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return [Point(compose("config", overrides=list(overrides)), list(overrides)) for overrides in lists]


def plan(*words):
    return make_plan(points(*words))


def one(*words):
    """The single planned run of a command on synthetic activations."""
    (planned,) = plan("model=synthetic", *words).runs
    return planned
