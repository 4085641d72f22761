"""Starts the tests of `on_device/` in a process that has the simulated device before it imports torch.

By hand: PYTHONPATH=.:tests/cuda python -m simulated_cuda -m pytest tests/cuda/on_device -n 0
"""

import pytest
from simulated import HERE, run


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((HERE / "on_device").glob("test_*.py")), ids=lambda file: file.stem)
def test_on_the_device(file):
    run("-m", "pytest", str(file), "-n", "0", "-p", "no:cacheprovider", "--tb=short")
