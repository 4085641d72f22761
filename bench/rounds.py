"""Contenders measured round by round in turn, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import importlib.util
import json
import select
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from bench.data import Shape
from bench.setting import ROOT, Setting

PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
PEERS = ("sparsify", "sae_lens", "dictionary_learning")
"""Contenders that are other libraries, by the names of their modules."""
ENDED = "ended with status"
FEWEST = 3
"""Rounds without which nothing is reported."""


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
    peak_gb: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def times(self, other: Measured) -> float:
        """Median over rounds of this one's time over the other's in the same round."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=False))


class LeftOut(Exception):
    """Why a contender is not measured."""


class Worker:
    """A contender's process."""

    def __init__(self, contender: Contender, setting: Setting):
        environment = setting.environment()
        python = python_of(contender.name)
        if contender.name != "ours":
            environment.pop("OMP_WAIT_POLICY", None)
            environment["BENCH_OTHERS"] = "1"  # for bench/__init__.py
        self.errors: IO[str] = tempfile.TemporaryFile(
            "w+"
        )  # a pipe would fill up, since it is read only after a failure
        settings = json.dumps({"shape": asdict(contender.shape), **contender.settings})
        self.process = subprocess.Popen(
            [python, "-m", "bench.worker", contender.name, str(setting.threads), settings],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip

    def answer(self, seconds: float) -> dict[str, float]:
        """The next line of its output. Raises LeftOut where none comes in time."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], min(max(seconds, 0), 3600))[0]:
            raise LeftOut("no answer in the time that its part has for it")
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.errors.seek(0)
            text = self.errors.read()
            print(text[-2000:], file=sys.stderr)
            last = text.strip().splitlines()[-1:] or ["nothing on stderr"]
            raise LeftOut(f"{ENDED} {status}: {last[0][:200]}")
        return json.loads(line)

    def ask(self, steps: int, seconds: float) -> dict[str, float]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` finds out why
        return self.answer(seconds)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def python_of(contender: str) -> str:
    """The Python that has what a contender needs. Raises LeftOut where none has."""
    if contender in PEERS and PEERS_PYTHON.exists():
        return str(PEERS_PYTHON)
    if contender in PEERS and importlib.util.find_spec(contender) is None:
        raise LeftOut(f"{contender} is neither in .venv-peers (make peers) nor where torch is")
    if contender == "ours" and importlib.util.find_spec("hydra") is None:
        raise LeftOut("hydra cannot be imported here (make bench-packages)")
    return sys.executable


def interleaved(
    contenders: list[Contender],
    setting: Setting,
    steps: int,
    warm: int = 2,
    seconds: float = float("inf"),
    rounds: int = 0,
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Each contender's times per step, `steps` steps a round, and why others were left out; both by label.

    At most `rounds` rounds (by default the setting's), fewer where they would take longer than `seconds`.
    """
    ends = time.monotonic() + min(seconds, setting.left() - 3)
    running: dict[str, Worker] = {}
    found: dict[str, Measured] = {}
    left_out: dict[str, str] = {}

    def tried(label: str, work: Any) -> Any:
        try:
            return work()
        except LeftOut as why:
            left_out[label] = str(why)
            found.pop(label, None)
            if label in running:
                running.pop(label).end()

    try:
        for contender in contenders:
            worker = tried(contender.label, lambda contender=contender: Worker(contender, setting))
            if worker is not None:
                running[contender.label] = worker
        ready = (time.monotonic() + ends) / 2 if ends < float("inf") else ends
        for label, worker in list(running.items()):
            if tried(label, lambda worker=worker: worker.answer(ready - time.monotonic())):
                found[label] = Measured(label)
        took = 0.0
        for turn in range(-1 if setting.small else -warm, rounds or setting.rounds):
            began = time.monotonic()
            if turn >= FEWEST and began + took > ends:
                break
            for label, worker in list(running.items()):
                given = tried(label, lambda worker=worker: worker.ask(steps, ends - time.monotonic()))
                if given and turn >= 0:
                    found[label].seconds.append(given["seconds"])
                    found[label].peak_gb = given["peak_gb"]
            took = time.monotonic() - began
    finally:
        for worker in running.values():
            worker.end()
    return {label: one for label, one in found.items() if one.seconds}, left_out
