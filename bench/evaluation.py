"""Every evaluation of the demo's three SAEs, with nothing kept: one command of `eval=full`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.demo import WORDS
from bench.results import Results
from bench.setting import ROOT, Setting

TINY = ("num_tokens=1024", "batch_size=256", "d_sae=64", "k=4")


def evaluation(setting: Setting, results: Results) -> None:
    """Seconds of each evaluation and of the whole command, by the clock and of CPU."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*WORDS, *(TINY if setting.small else ()), "eval=none", "report=false", f"device={setting.device}"]
        environment = setting.environment()
        subprocess.run(
            [sys.executable, "launch.py", "-m", *words, f"outputs={folder}"],
            cwd=ROOT, env=environment, capture_output=True, check=True,
        )  # fmt: skip
        runs = sorted(map(str, Path(folder).glob("runs/*")))
        command = [
            sys.executable,
            "-m",
            "sae_sweeps",
            "evaluate",
            *runs,
            f"eval={'quick' if setting.small else 'full'}",
        ]
        began = time.perf_counter()
        with open(Path(folder) / "log", "w+") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            log.seek(0)
            printed = log.read()
        took = time.perf_counter() - began
        if status:
            raise RuntimeError(f"evaluate: status {os.waitstatus_to_exitcode(status)}: {printed[-500:]}")
    title = "Every evaluation of the demo's three SAEs, nothing kept"
    for name, seconds in re.findall(r"^  (\w+): 3 done in ([\d.]+) s", printed, re.M):
        results.add(title, {"": name, "s": float(seconds)})
    row = {"": "the whole command", "s": took, "CPU s": usage.ru_utime + usage.ru_stime}
    results.add(title, row)
