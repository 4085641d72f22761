"""What produced a run's numbers: code, packages, machine."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "hydra-core", "numpy", "safetensors")


def provenance(device: str, threads: int) -> dict[str, Any]:
    """git commit of the project (with `+` when files were changed), package versions, device and threads."""
    return {
        "git_commit": _git_commit(),
        "packages": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "device": device,
        "threads": threads,
        "host": platform.node(),
        "platform": platform.platform(),
    }


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git_commit() -> str | None:
    """The commit when this process first looked: what it runs was imported before."""
    project = Path(__file__).parents[2]
    if not (project / ".git").exists():
        return None
    command = ["git", "-C", str(project), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
