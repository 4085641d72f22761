"""Commands in processes that have the simulated device before they import torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulated_cuda.build import CannotBuild, guard

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def start(*command: str, cwd: Path = ROOT) -> subprocess.Popen:
    """python COMMAND on the simulated device; where it cannot be built the test is skipped, with CI=true it fails."""
    try:
        guard()
    except CannotBuild as why:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(why))
    path = os.pathsep.join([str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "simulated_cuda", *command],
        env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(*command: str, cwd: Path = ROOT) -> str:
    """Its output; it must end well."""
    process = start(*command, cwd=cwd)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return printed
