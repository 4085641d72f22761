"""What a sweep on Slurm costs beside its runs: `python -m scripts.measure_sweep_overhead 20 200`.

Starts the tests' own Slurm, launches that many tiny runs, and reports the launcher's CPU seconds from start to table
(planning, submission, watching, collecting), what one look at all runs costs, and what `status` does. CPU seconds, not
wall time: the runs themselves share the machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT / "tests" / "cluster"))

from slurm_cluster import SlurmCluster, missing  # noqa: E402

from sae_sweeps.cluster.watch import SweepWatcher  # noqa: E402

TINY = [
    "model=synthetic",
    "model.d_in=16",
    "d_sae=32",
    "batch_size=64",
    "num_tokens=640",
    "k=4",
    "eval=none",
    "device=cpu",
]


def cpu_of(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """CPU and wall seconds of a command and the commands that it calls."""
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command}: status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - began


def cpu_of_look(sweep: Path, times: int = 5) -> float:
    """CPU seconds of one poll of every run, squeue for all jobs included."""

    def used() -> float:
        now = os.times()
        return now.user + now.system + now.children_user + now.children_system

    watcher = SweepWatcher(sweep)
    watcher.poll()
    began = used()
    for _ in range(times):
        watcher.poll()
    return (used() - began) / times


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("counts", nargs="+", type=int, help="numbers of runs")
    words.add_argument("--group-size", type=int, default=25)
    words.add_argument("--poll-s", type=float, default=10.0)
    given = words.parse_args()
    if lacking := missing():
        raise SystemExit(f"a Slurm of its own needs {', '.join(lacking)}")
    rows = []
    with SlurmCluster() as cluster, tempfile.TemporaryDirectory() as scratch:
        environment = cluster.environment() | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
        os.environ.update(environment)
        for n in given.counts:
            outputs = f"{scratch}/{n}"
            launch = [sys.executable, "launch.py", "-m", *TINY, f"seed=range(0,{n})", f"outputs={outputs}"]
            on_slurm = ["cluster=slurm", "cluster.cpus=1", "cluster.mem=null", f"cluster.group_size={given.group_size}"]
            cpu, wall = cpu_of([*launch, *on_slurm, f"cluster.poll_s={given.poll_s}"], environment)
            (sweep,) = (Path(outputs) / "sweeps").iterdir()
            status, _ = cpu_of([sys.executable, "-m", "sae_sweeps", "status", str(sweep)], environment)
            rows.append((n, cpu, wall, cpu_of_look(sweep), status))
            print(f"{n} runs: launcher {cpu:.2f} s CPU, {wall:.0f} s wall", file=sys.stderr)
    print("| runs | launcher, CPU s | per run, ms | one look, ms | `status`, CPU s |")
    print("|---|---|---|---|---|")
    for n, cpu, _, look, status in rows:
        print(f"| {n} | {cpu:.2f} | {1000 * cpu / n:.0f} | {1000 * look:.1f} | {status:.2f} |")
    for (n, cpu, *_), (more, dearer, *_) in zip(rows, rows[1:], strict=False):
        print(f"each further run from {n} to {more}: {1000 * (dearer - cpu) / (more - n):.1f} ms CPU of the launcher")


if __name__ == "__main__":
    main()
