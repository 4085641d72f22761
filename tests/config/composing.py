"""Compose points as the command does, without starting it."""

from sae_sweeps.cli.compose import compose_points
from sae_sweeps.sweeps.plan import make_plan


def points(*words):
    """Every point of the product that the words describe."""
    return compose_points(list(words))


def plan(*words):
    return make_plan(points(*words))


def one(*words):
    """The single planned run of a command on synthetic activations."""
    (planned,) = plan("model=synthetic", *words).runs
    return planned
