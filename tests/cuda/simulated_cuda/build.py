"""The compiled guard: made once for a version of torch and a source, and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")
NO_COMPILER = "g++ is not installed: the simulated CUDA device is compiled once (apt-get install g++)"


class CannotBuild(Exception):
    """Why there is no simulated device here, in one sentence."""


def guard() -> Path:
    """The shared library; it must be loaded before torch is. Raises CannotBuild."""
    torch = Path(str(importlib.util.find_spec("torch").origin)).parent  # type: ignore[union-attr]
    of = [importlib.metadata.version("torch"), str(torch), platform.machine(), SOURCE.read_text()]
    path = _cache() / f"guard-{hashlib.sha256(repr(of).encode()).hexdigest()[:16]}.so"
    if not path.exists():
        _compile(torch, path)
    return path


def _compile(torch: Path, path: Path) -> None:
    if sys.platform != "linux":
        raise CannotBuild("the simulated CUDA device needs Linux, as Triton does")
    if shutil.which("g++") is None:
        raise CannotBuild(NO_COMPILER)
    temporary = path.with_suffix(f".{os.getpid()}")  # another process may compile it too
    include, lib = torch / "include", torch / "lib"
    command = ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", str(SOURCE), "-o", str(temporary), f"-I{include}"]
    command += [f"-I{include}/torch/csrc/api/include", f"-L{lib}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{lib}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(f"the simulated CUDA device does not compile:\n{done.stderr[-4000:]}")
    os.replace(temporary, path)


def _cache() -> Path:
    """The user's cache folder, or the temporary one where that cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-sweeps-tests"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir())
    return folder
