"""Starts the tests of `on_device/` in a process that has the simulated device before it imports torch.

By hand: PYTHONPATH=.:tests/cuda python -m simulated_cuda -m pytest tests/cuda/on_device -n 0
"""

import pytest
from simulated import HERE, run


def passes(which: str) -> None:
    run("-m", "pytest", str(HERE / "on_device"), "-n", "0", "-m", which, "-p", "no:cacheprovider", "--tb=short")


def test_quick():
    passes("not slow")


@pytest.mark.slow
def test_slow():
    passes("slow")
