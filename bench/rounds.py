"""Contenders measured round by round in turn, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.contenders import PEERS
from bench.data import Shape

ROOT = Path(__file__).parents[1]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"


@dataclass
class Contender:
    label: str
    name: str
    shape: Shape
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Measured:
    label: str
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_gb: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def times(self, other: Measured) -> float:
        """Median over rounds of this one's time over the other's in the same round."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True))


def interleaved(
    contenders: list[Contender], rounds: int, steps: int, threads: int, warm: int = 2
) -> dict[str, Measured]:
    """Each contender's times per step, `steps` steps a round, by label; those that cannot start are left out."""
    running: dict[str, subprocess.Popen[str]] = {}
    for contender in contenders:
        process = _start(contender, threads)
        if process is not None:
            running[contender.label] = process
    found = {label: Measured(label) for label in running}
    try:
        for turn in range(-warm, rounds):
            for label, process in running.items():
                answer = _ask(process, steps)
                if turn >= 0:
                    found[label].seconds.append(answer["seconds"])
                    found[label].cpu.append(answer["cpu"])
                    found[label].peak_gb = answer["peak_gb"]
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return found


def _start(contender: Contender, threads: int) -> subprocess.Popen[str] | None:
    python = sys.executable
    if contender.name in PEERS:
        python = str(PEERS_PYTHON)
        if not PEERS_PYTHON.exists():
            print(f"{contender.label}: left out, there is no .venv-peers (make peers)", file=sys.stderr)
            return None
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    if contender.name != "ours":
        del environment["OMP_WAIT_POLICY"]
        environment["BENCH_OTHERS"] = "1"  # for bench/__init__.py
    settings = json.dumps({"shape": asdict(contender.shape), **contender.settings})
    errors = tempfile.TemporaryFile("w+")  # a pipe would fill up, since it is read only after a failure
    process = subprocess.Popen(
        [python, "-m", "bench.worker", contender.name, str(threads), settings],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
        env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    if not process.stdout.readline():
        process.wait()
        errors.seek(0)
        print(f"{contender.label}: left out, it does not start:\n{errors.read()[-1000:]}", file=sys.stderr)
        return None
    return process


def _ask(process: subprocess.Popen[str], steps: int) -> dict[str, float]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args} ended with status {process.wait()}")
    return json.loads(line)
