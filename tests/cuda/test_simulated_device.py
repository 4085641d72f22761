"""Starts the tests of `on_device/`, each file in a process that has the simulated device before it imports torch.

By hand: PYTHONPATH=.:tests/cuda python -m simulated_cuda -m pytest tests/cuda/on_device -n 0
"""

import pytest
from simulated import HERE, run

FOLDER = HERE / "on_device"


def passes(file: str, which: str) -> None:
    run("-m", "pytest", str(FOLDER / file), "-n", "0", "-m", which, "-p", "no:cacheprovider", "--tb=short")


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_quick(file):
    passes(file, "not slow")


@pytest.mark.slow
def test_every_two_choices():
    passes("test_combinations.py", "slow")
