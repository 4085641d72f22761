"""Launch sweeps on a test Slurm, strike them, and compare numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from commands import PROJECT, command, environment, numbers, read, rows, run_folders, wait_for

from tests.sweeps import forked

__all__ = ["numbers", "read", "rows", "run_folders", "wait_for"]

TINY = [
    "model=synthetic",
    "d_sae=32",
    "model.d_in=16",
    "batch_size=64",
    "train.held_out_tokens=0",
    "eval=none",
    "device=cpu",
]
"""A run that costs its start and little else."""
LONG = [*TINY, "num_tokens=32000", "train.checkpoint_every=100", "train.log_every=20", "train.monitor_every=500"]
"""500 steps: long enough to be held and struck on its way."""
ON_SLURM = ["cluster=slurm", "cluster.cpus=1", "cluster.mem=null", "cluster.poll_s=0.3"]


def env(cluster=None):
    return environment() | (cluster.environment() if cluster else {}) | {"OMP_NUM_THREADS": "1"}


SLOWLY_PATH = str(Path(__file__).parent / "slowly").replace(" ", "\\ ")
SLOWLY = f"cluster.setup=['export PYTHONPATH={SLOWLY_PATH}:$PYTHONPATH']"
"""Jobs whose runs train slowly, to be struck on their way."""


def launch(*words, cluster=None, module=None, log=None):
    """A command in the background."""
    out = log.open("w") if log else subprocess.DEVNULL
    return subprocess.Popen(
        command(*words, module=module), cwd=PROJECT, env=env(cluster), stdout=out, stderr=subprocess.STDOUT
    )


def run(*words, cluster=None, module=None, expect=0, seconds=900):
    done = forked.run(command(*words, module=module), PROJECT, env(cluster), timeout=seconds)
    assert done.returncode == expect, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def the_sweep(outputs):
    """The folder of the only sweep there is, once its manifest names a job."""
    wait_for(lambda: any(jobs(path) for path in (Path(outputs) / "sweeps").glob("*")))
    (sweep,) = (Path(outputs) / "sweeps").iterdir()
    return sweep


def jobs(sweep):
    path = sweep / "manifest.json"
    return json.loads(path.read_text())["jobs"] if path.exists() else []


def folder_of(outputs, job):
    """The folder of the first run of a job."""
    return Path(outputs) / "runs" / job["runs"][0]


def status(folder):
    return read(folder, "status.json") if (folder / "status.json").exists() else {"state": None, "step": 0}


def trains(folder):
    """Whether a run has begun and is not at its end."""
    return len(rows(folder)) > 2 and status(folder)["state"] == "running"


def has_checkpoint(folder):
    return (folder / "checkpoint" / "state.safetensors").exists()


def kill_process_of(folder):
    os.kill(status(folder)["pid"], signal.SIGKILL)


def hold(folder, state="running"):
    """Stop the process that trains a run, so that it cannot end before what comes next reaches it.

    Slurm and `cancel` let it go on when they send their own signals.
    """
    os.kill(status(folder)["pid"], signal.SIGSTOP)
    assert status(folder)["state"] == state, (folder, status(folder))


def hold_each(ready):
    """Hold runs, each as soon as its own condition of {folder: condition} is met."""
    waiting = dict(ready)

    def all_held():
        for folder in [folder for folder, met in waiting.items() if met(folder)]:
            hold(folder)
            del waiting[folder]
        return not waiting

    wait_for(all_held, 300)


def let_go(folder):
    os.kill(status(folder)["pid"], signal.SIGCONT)


_pending_since = {}


def push(cluster):
    """Let requeued jobs start before the two minutes that Slurm waits by itself are over.

    Not at once: it would take the end of a job's last process for the end of the new one.
    """
    now = time.monotonic()
    for line in cluster.call("squeue", "-h", "-r", "-t", "PD", "-o", "%i %r", check=False).splitlines():
        id, _, reason = line.partition(" ")
        if reason in ("BeginTime", "None") and now - _pending_since.setdefault((cluster, id), now) > 2:
            cluster.call("scontrol", "update", f"JobId={id}", "StartTime=now", check=False)
            del _pending_since[cluster, id]


def push_until(cluster, condition, seconds=300):
    """Push requeued jobs on until `condition()` is true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it waits for ever"
        if cluster:
            push(cluster)
        time.sleep(0.5)


def finish(process, cluster=None, seconds=900):
    """Wait for a launcher, pushing requeued jobs on; its exit status."""
    push_until(cluster, lambda: process.poll() is not None, seconds)
    return process.returncode


def python(code):
    return [sys.executable, "-c", code]
