"""Fixtures of the cluster's tests: a real Slurm per session and kind, started when first used."""

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / name) for name in ("cluster", "sweeps", "config")]

from slurm_cluster import SlurmCluster, missing  # noqa: E402


def started(accounting):
    lacking = missing(accounting)
    if lacking:
        why = f"a Slurm of the tests' own needs {', '.join(lacking)} (apt-get install what .ci/run does)"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return SlurmCluster(accounting)


@pytest.fixture(scope="session")
def slurm():
    """A cluster without accounting, as many users have."""
    with started(accounting=False) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def slurm_with_accounting():
    with started(accounting=True) as cluster:
        yield cluster
