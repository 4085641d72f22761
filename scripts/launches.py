"""A launch that a script waits for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
INTERRUPTED = 130
"""Exit status of a launch that Ctrl-C stopped."""


def launch(*words: str) -> int:
    """Exit status of `launch.py WORDS`.

    Ctrl-C is not answered here: the terminal gives it to the launch too, which writes its checkpoints and ends.
    """
    process = subprocess.Popen([sys.executable, "launch.py", *words], cwd=ROOT)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
