"""Starts the tests of `on_device/`, each file in a process that has the simulated device before it imports torch.

By hand: PYTHONPATH=.:tests/cuda python -m simulated_cuda -m pytest tests/cuda/on_device -n 0
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulated_cuda.build import CannotBuild, guard

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def passes(file: str, which: str) -> None:
    try:
        guard()
    except CannotBuild as why:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(why))
    command = [sys.executable, "-m", "simulated_cuda", "-m", "pytest", str(HERE / "on_device" / file)]
    path = os.pathsep.join([str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {"PYTHONPATH": path}
    done = subprocess.run(
        [*command, "-n", "0", "-m", which, "-p", "no:cacheprovider", "--tb=short"],
        env=env, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["test_rules.py"])
def test_quick(file):
    passes(file, "not slow")
