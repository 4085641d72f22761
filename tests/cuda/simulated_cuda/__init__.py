"""Two CUDA devices for a CPU build of torch: real numbers, CUDA's rules, and a log of what the host waits for.

`start()` comes before torch is imported and holds for the rest of the process, so tests run it in processes of their
own. `python -m simulated_cuda launch.py WORDS`, with tests/cuda in PYTHONPATH, runs a command under it.
"""

from __future__ import annotations

import ctypes
import os
import sys

from simulated_cuda.build import CannotBuild, guard
from simulated_cuda.log import LOG, DeviceError

__all__ = ["LOG", "CannotBuild", "DeviceError", "start"]


def start() -> None:
    """Raises CannotBuild, and RuntimeError where torch is there already."""
    if "torch" in sys.modules:
        raise RuntimeError("the simulated device must start before torch is imported")
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported
    library = ctypes.CDLL(str(guard()), mode=ctypes.RTLD_GLOBAL)
    from simulated_cuda import runtime, triton_launch

    runtime.start(library)
    triton_launch.interpret()
