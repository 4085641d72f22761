"""What a further run of a sweep costs the launcher: composing, checking, planning, and all of a tiny run."""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout

from bench.results import Results
from bench.setting import ROOT, Setting

GRID = (
    "architecture=topk,batch_topk,standard,gated,p_anneal,jumprelu,matryoshka",
    "penalty=none,ortho,selective_ortho,decorrelation,strict_ortho,adaptive_sharing,contrastive,bottleneck,ortsae",
)
TINY = (
    "model=synthetic", "model.d_in=16", "d_sae=32", "k=4", "batch_size=64", "num_tokens=640", "eval=none",
    "device=cpu", "report=false",
)  # fmt: skip


def launcher(setting: Setting, results: Results) -> None:
    """CPU seconds of commands of few and of many runs, in turn; their difference for each run."""
    few, many, one = (1, 2, "architecture=topk") if setting.small else (10, 110, "architecture=topk")
    pairs = {
        "planned, the same choices": ([_seeds(few), "penalty=ortho"], [_seeds(many), "penalty=ortho"], many - few),
        "planned, other choices of groups": ([one, GRID[1]], [*GRID], 54),
    }
    planned({"": [_seeds(few)]})  # imports
    found: dict[str, list[float]] = {label: [] for label in pairs}
    for _ in range(1 if setting.small else 3):
        for label, (short, long, more) in pairs.items():
            took = planned({"few": short, "many": long})
            found[label].append((took["many"] - took["few"]) / more)
    for label, seconds in found.items():
        results.add("A further run of a sweep", {"": label, "CPU ms": 1e3 * statistics.median(seconds)})
    few, many = (1, 2) if setting.small else (5, 65)
    trained = [(cpu_of(many, setting) - cpu_of(few, setting)) / (many - few) for _ in range(1 if setting.small else 2)]
    row = {"": "planned, trained for ten tiny steps and in the table", "CPU ms": 1e3 * statistics.median(trained)}
    results.add("A further run of a sweep", row)


def _seeds(n: int) -> str:
    return f"seed={','.join(map(str, range(n)))}"


def planned(commands: dict[str, list[str]]) -> dict[str, float]:
    """CPU seconds of each command's dry run, in this process."""
    from sae_sweeps.cli.command import main

    took = {}
    for name, words in commands.items():
        began = time.process_time()
        with redirect_stdout(io.StringIO()):
            if status := main(["-m", *words, "--dry-run"]):
                raise RuntimeError(f"launch.py -m {' '.join(words)} --dry-run: status {status}")
        took[name] = time.process_time() - began
    return took


def cpu_of(n_runs: int, setting: Setting) -> float:
    """CPU seconds of a whole launch of tiny runs, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", *TINY, f"seed=range(0,{n_runs})", f"outputs={folder}"]
        process = subprocess.Popen(
            [sys.executable, "launch.py", *words], cwd=ROOT, env=setting.environment(), stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"launch.py {' '.join(words)}: status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime
