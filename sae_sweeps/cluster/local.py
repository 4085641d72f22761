"""Processes on this machine. A pool, a process in a session of its own, starts one process per group, a limited number
at a time, each on a GPU of its own; it continues when the launcher ends.

The record of group N's process is `local/N.json` in the sweep's folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sae_sweeps.cluster.jobs import Job, JobState, runs_in
from sae_sweeps.config.schema import LocalConfig
from sae_sweeps.storage.files import MissingFile, read_json, write_json
from sae_sweeps.storage.gpus import visible_gpus
from sae_sweeps.storage.lease import process_alive, process_start, this_process
from sae_sweeps.storage.sweep_folder import read_manifest

PROJECT = Path(__file__).parents[2]
FOLDER = "local"
DEFAULT_PROCESSES = 2
POLL_S = 0.1
STOPPED = (130, -signal.SIGTERM, -signal.SIGINT)
"""Exit statuses of a process that a signal ended."""


class Local:
    def __init__(self, cfg: LocalConfig):
        self.cfg = cfg

    def submit(self, sweep: Path, groups: list[int]) -> list[Job]:
        sweep = sweep.resolve()
        (sweep / FOLDER).mkdir(exist_ok=True)
        processes = processes_of(self.cfg)
        command = [sys.executable, "-m", "sae_sweeps.cluster.local", str(sweep), str(processes), *map(str, groups)]
        with open(sweep / FOLDER / "pool.log", "ab") as log:
            pool = process_record(_start(command, environment(processes), log))
        known = read_manifest(sweep)["groups"]
        return [Job("local", f"local-{n}", [n], runs_in(known, [n]), [f"{FOLDER}/{n}.log"], pool=pool) for n in groups]

    def states(self, sweep: Path, jobs: list[Job]) -> dict[str, JobState] | None:
        return {job.id: _state(sweep, job) for job in jobs}

    def cancel(self, sweep: Path, jobs: list[Job]) -> None:
        """End the pools first, so that nothing more starts, then the processes."""
        for pool in {str(job.pool): job.pool for job in jobs}.values():
            terminate(pool)
        for job in jobs:
            terminate((read_record(sweep, job.groups[0]) or {}).get("process"))


def processes_of(cfg: LocalConfig) -> int:
    """How many groups are trained side by side."""
    return cfg.processes or len(visible_gpus()) or DEFAULT_PROCESSES


def environment(processes: int) -> dict[str, str]:
    """Environment of the processes: this code, and their share of the CPUs where the user sets no OMP_NUM_THREADS."""
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    share = str(max(1, len(os.sched_getaffinity(0)) // processes))
    return {"OMP_NUM_THREADS": share, "OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path}


def _start(command: list[str], env: dict[str, str], log: Any) -> subprocess.Popen:
    """A process in a session of its own: Ctrl-C and a closed terminal do not reach it."""
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
    )


def process_record(process: subprocess.Popen) -> dict[str, Any]:
    return this_process() | {"pid": process.pid, "start_time": process_start(process.pid)}


def terminate(process: dict[str, Any] | None) -> None:
    """Send SIGTERM to a process of this machine, if it is running."""
    if process and process_alive(process):
        try:
            os.kill(process["pid"], signal.SIGTERM)
            os.kill(process["pid"], signal.SIGCONT)  # a suspended process receives SIGTERM only now
        except ProcessLookupError:
            pass


def read_record(sweep: Path, group: int) -> dict[str, Any] | None:
    """The record of the process that trains a group; None before it starts."""
    try:
        return read_json(sweep / FOLDER / f"{group}.json")
    except MissingFile:
        return None


def _state(sweep: Path, job: Job) -> JobState:
    record = read_record(sweep, job.groups[0])
    if record is None:
        alive = job.pool is not None and process_alive(job.pool)
        if alive is False:
            return JobState("GONE", False, "the process that starts the groups ended before this group's turn")
        return JobState("PENDING", True, "" if alive else f"on {(job.pool or {}).get('host')}")
    if record["exit"] is not None:
        how = f"on signal {-record['exit']}" if record["exit"] < 0 else f"with status {record['exit']}"
        unfinished_run = "interrupted" if record["exit"] in STOPPED else "lost"
        return JobState("ENDED", False, f"its process ended {how} before the run's end", unfinished_run)
    if process_alive(record["process"]) is False:
        return JobState("GONE", False, "its process is gone and recorded no end")
    return JobState("RUNNING", True, f"process {record['process']['pid']} on {record['process']['host']}")


class Pool:
    """Starts the groups' processes in their order, at most `processes` at a time."""

    def __init__(self, sweep: Path, processes: int, groups: list[int]):
        self.sweep, self.waiting = sweep, groups
        gpus = visible_gpus()
        self.free: list[str | None] = [gpus[i % len(gpus)] if gpus else None for i in range(processes)]
        self.running: dict[int, tuple[subprocess.Popen, str | None]] = {}
        self.stopped = False

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        while self.running or (self.waiting and not self.stopped):
            while self.waiting and self.free and not self.stopped:
                self._start(self.waiting.pop(0), self.free.pop(0))
            time.sleep(POLL_S)
            for group, (process, gpu) in list(self.running.items()):
                if process.poll() is not None:
                    self._record(group, process, process.returncode)
                    del self.running[group]
                    self.free.append(gpu)

    def _stop(self, number: int, frame: Any) -> None:
        self.stopped = True
        for process, _ in self.running.values():
            process.terminate()

    def _start(self, group: int, gpu: str | None) -> None:
        env = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {})
        with open(self.sweep / FOLDER / f"{group}.log", "ab") as log:
            command = [sys.executable, "-u", "-m", "sae_sweeps.cluster.worker", str(self.sweep), str(group)]
            process = _start(command, env, log)
        self.running[group] = process, gpu
        self._record(group, process, None)

    def _record(self, group: int, process: subprocess.Popen, exit: int | None) -> None:
        path = self.sweep / FOLDER / f"{group}.json"
        before = read_json(path) if exit is not None else {"process": process_record(process)}
        write_json(path, before | {"exit": exit})


if __name__ == "__main__":
    Pool(Path(sys.argv[1]), int(sys.argv[2]), [int(word) for word in sys.argv[3:]]).run()
