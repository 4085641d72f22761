"""Run the project's commands in processes of their own, as a user does."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.sweeps import forked

PROJECT = Path(__file__).parents[2]
SMALL = ["model=synthetic", "k=8", "num_tokens=20480", "d_sae=128"]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0", "COLUMNS": "120"}


def command(*words, module=None):
    """A launch writes no report unless it is asked for: few tests look at one, and each takes seconds."""
    if module:
        return [sys.executable, "-m", module, *map(str, words)]
    quick = [] if any("report=" in str(word) for word in words) else ["report=false"]
    return [sys.executable, str(PROJECT / "launch.py"), *map(str, words), *quick]


def run(*words, module=None, expect=0, cwd=PROJECT):
    """Output and errors of a command that must end with the status `expect`."""
    done = forked.run(command(*words, module=module), cwd, environment(), timeout=300)
    assert done.returncode == expect, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def start(*words, log):
    return subprocess.Popen(command(*words), cwd=PROJECT, env=environment(), stdout=log, stderr=subprocess.STDOUT)


def wait_for(condition, seconds=120):
    """Poll until `condition()` is true; the process under test decides how long that takes."""
    for _ in range(seconds * 50):
        if condition():
            return
        time.sleep(0.02)
    raise TimeoutError(condition)


def run_folders(outputs):
    return sorted((Path(outputs) / "runs").glob("*"))


def read(folder, name):
    return json.loads((folder / name).read_text())


def rows(folder):
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def numbers(folder):
    """What must be the same however often a run was interrupted."""
    weights = (folder / "sae" / "sae_weights.safetensors").read_bytes()
    trace = [{key: value for key, value in row.items() if key != "tokens_per_s"} for row in rows(folder)]
    return weights, trace, read(folder, "results.json")["metrics"]
