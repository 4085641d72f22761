"""Random commands, well-formed and malformed: `python -m scripts.campaign_configs --rounds 2000 --seed 0`.

Over every command (launch, --from, evaluate, status, resume, cancel, schedule, table, report, notes, plots, audit,
import), with models, texts, SAEs, experiments, clusters and components of a world of files (campaign_world.py), sound
and broken. Each ends with status 0, or 1 for a run that diverged or failed, with its reason; or with one sentence and
status 2, and then leaves nothing behind. No traceback, no hang, no half-made folder, no token in any output or file, no
code of a file that the command did not choose. Each violation is printed with its command, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from scripts.campaign_commands import Commands
from scripts.campaign_world import PASSWORD, PROJECT, SECRETS, environment, make_world

sys.path.insert(0, str(PROJECT))

from tests.sweeps import forked  # noqa: E402

TIMEOUT = 900
"""Seconds after which a command counts as hanging."""
RUNS = 0.3
"""Share of the launches that are run and not only planned."""
IN_WORDS_OF_CODE = re.compile(
    r"<class '|object at 0x|\bNoneType\b|has no attribute|unexpected keyword|not subscriptable|not callable"
    r"|not iterable|\b(Key|Attribute|Index|Type|Assertion|Recursion|Value|Unicode\w+)Error\b|\[Errno"
)
"""What a sentence for a user does not hold."""
OF_OWN_CODE = re.compile(r"\(\w+: [^()]*, \S+\.py line \d+\)")
"""The error of a file of the user's, which is quoted with its type and place."""
OURS = [
    "sae_sweeps.cli.launch", "sae_sweeps.cli.command", "sae_sweeps.cli.evaluate", "sae_sweeps.cli.resume",
    "sae_sweeps.cli.repeat", "sae_sweeps.cli.status", "sae_sweeps.cluster.dispatch", "sae_sweeps.sweeps.curves",
    "analysis.report", "analysis.tables.compare", "analysis.output.formats", "analysis.plots.draw",
    "sae_sweeps.kernels.sparse_numba", "sae_sweeps.kernels.coactivation_cpu", "datasets", "pyarrow.parquet",
]  # fmt: skip
"""Imported once, in the process whose forks run the commands."""


def answer(words: list[str], world: Path, seed: str) -> tuple[str, list[str]]:
    """How a command ended, and a sentence for each violation."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        words = _on_copies(words, world, folder)
        launch, whole = words[0] == "launch", chance.random() < RUNS
        if launch and "--dry-run" not in words and "--from" not in words:
            planned = _tried([*words, "--dry-run"], folder, world)
            if planned is None:
                return "hangs", ["--dry-run does not end"]
            found = output_violations(planned, "--dry-run", (0, 2)) + left_behind(folder, "--dry-run", world)
            if found or planned.returncode or not whole or _starts_processes(words):
                return _ended(planned), found
        before = contents(folder)
        done = _tried(words, folder, world)
        if done is None:
            return "hangs", ["it does not end"]
        found = output_violations(done, "it", (0, 1, 2)) + run_violations(folder, done.returncode)
        if done.returncode == 2 and (new := sorted(contents(folder) - before)):
            found.append(f"status 2, and it left {new[0]}")
        return _ended(done), found + left_behind(folder, "it", world, done.returncode != 2)


def _starts_processes(words: list[str]) -> bool:
    """Whether a launch would leave this process: Slurm, or W&B's own."""
    return any(word.startswith(("cluster=", "logger=", "experiment=")) for word in words)


def _on_copies(words: list[str], world: Path, folder: Path) -> list[str]:
    """The command on copies of the runs and SAEs that it could change."""
    out = []
    for word in words:
        path = Path(word.partition("=")[2] if word.startswith("-o=") else word)
        named = [name for name in ("outputs", "damaged", "saes", "run") if path.is_relative_to(world / name)]
        if words[0] in ("evaluate", "resume", "cancel") and named:
            copy = folder / "given" / named[0]
            if not copy.exists():
                shutil.copytree((world / named[0]).resolve(), copy, symlinks=named[0] != "run")
            out.append(str(copy / path.relative_to(world / named[0])))
        else:
            out.append(word)
    return out


def _tried(words: list[str], folder: Path, world: Path) -> subprocess.CompletedProcess[str] | None:
    """The command in a fork; None where it does not end."""
    launch = words[0] == "launch"
    command = (
        [sys.executable, str(PROJECT / "launch.py"), *words[1:]]
        if launch
        else [sys.executable, "-m", "sae_sweeps", *words]
    )
    try:
        return forked.run(command, str(folder), environment(world), TIMEOUT)
    except subprocess.TimeoutExpired:
        return None


def _ended(done: subprocess.CompletedProcess[str]) -> str:
    last = (done.stderr.strip() or done.stdout.strip() or "nothing printed").splitlines()
    return f"status {done.returncode}" if done.returncode == 0 else f"status {done.returncode}: {last[-1][:400]}"


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def output_violations(done: subprocess.CompletedProcess[str], which: str, allowed: tuple[int, ...]) -> list[str]:
    """A sentence for each fault in the exit status and the printed output of a command."""
    found, printed = [], done.stdout + done.stderr
    if "Traceback (most recent" in printed:
        return [f"{which} prints a traceback: {printed.strip().splitlines()[-1]}"]
    if done.returncode not in allowed:
        found.append(f"{which} ends with status {done.returncode}")
    errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("warning: ")]
    usage = bool(errors) and errors[0].startswith("usage: ") and ": error: " in errors[-1]
    if done.returncode == 2 and not usage and not (len(errors) == 1 and errors[0].startswith("error: ")):
        found.append(f"{which} is refused in other words than one sentence: {errors[:4]}")
    if done.returncode == 2 and not usage and errors:
        if code := IN_WORDS_OF_CODE.search(OF_OWN_CODE.sub("", errors[-1])):
            found.append(f"{which} is refused in words of code ({code[0]}): {errors[-1][:300]}")
        if not errors[-1].rstrip().endswith((".", "?", "!", "`")):
            found.append(f"{which} is refused in half a sentence: {errors[-1][:300]}")
    if done.returncode == 1 and not re.search(r"failed|diverged|differ|warning|finding|error|not comparable", printed):
        found.append(f"{which} ends with status 1 without a reason")
    return found + [f"{which} prints a token" for token in (*SECRETS.values(), PASSWORD) if token in done.stdout]


def left_behind(folder: Path, which: str, world: Path, may_write: bool = False) -> list[str]:
    """A sentence for each file that a command may not have left."""
    found = []
    given = folder / "given"
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or (path.is_relative_to(given) and path.is_symlink()) or path.parent.name == "digests":
            continue  # digests of large files are kept for the command that comes next
        if not may_write and not path.is_relative_to(given):
            found.append(f"{which} wrote {path.relative_to(folder)}")
        elif path.name.endswith(".tmp"):
            found.append(f"{which} left {path.relative_to(folder)}")
        elif path.is_file() and path.stat().st_size < 2**24:
            content = path.read_bytes()
            found += [
                f"{path.relative_to(folder)} holds a token" for token in SECRETS.values() if token.encode() in content
            ]
    ran = [path for path in (world / "EXECUTED", world / "models" / "EXECUTED", folder / "EXECUTED") if path.exists()]
    return found[:3] + [f"{which} ran code of a file" for _ in ran]


def run_violations(folder: Path, exit_status: int) -> list[str]:
    """A sentence for each fault in the recorded ends of the runs of a command."""
    found, states = [], []
    for run in folder.glob("**/runs/*"):
        if (folder / "given") in run.parents or not run.is_dir():
            continue
        if not (run / "status.json").exists():
            found.append("a run's folder has no status")
            continue
        status = json.loads((run / "status.json").read_text())
        states.append(status["state"])
        if status["state"] == "completed":
            metrics = json.loads((run / "results.json").read_text())["metrics"]
            bad = [key for key, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
            found += [f"a completed run has {key}={metrics[key]}" for key in bad]
        elif status["state"] not in ("failed", "diverged") or not status.get("error"):
            found.append(f"a run is left {status['state']} without a reason")
        elif IN_WORDS_OF_CODE.search(status["error"]) and "traceback in" in status["error"]:
            found.append(f"a run failed in words of code: {status['error'][:300]}")
    if exit_status == 0 and set(states) - {"completed"}:
        found.append(f"status 0, and runs are {states}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first command")
    parser.add_argument("--world", type=Path, help="keep the files there, and take those that lie there already")
    parser.add_argument("--show", action="store_true", help="every command and its answer")
    words = parser.parse_args()
    forked.IMPORTED += OURS
    with tempfile.TemporaryDirectory() as temporary:
        world = (words.world or Path(temporary) / "world").absolute()
        if not world.exists():
            world.mkdir(parents=True)
            make_world(world)
        composing = Lock()  # Hydra composes one at a time

        def tried(number: int) -> tuple[int, list[str], str, list[str]]:
            seed = f"{words.seed}/{number}"
            with composing:
                command = Commands(world, random.Random(seed)).draw()
            try:
                return number, command, *answer(command, world, seed)
            except Exception as error:  # a fault of the campaign itself
                return number, command, "not judged", [f"{type(error).__name__}: {error}"]

        began, wrong, ends = time.monotonic(), 0, Counter[str]()
        with ThreadPoolExecutor(2) as pool:
            for number, command, ended, found in pool.map(tried, range(words.first, words.first + words.rounds)):
                wrong += bool(found)
                ends[
                    f"{command[0] if command[0] != 'launch' or '--from' not in command else '--from'} {ended[:8]}"
                ] += 1
                if found or words.show:
                    print(f"{number}: {shlex.join(command)}\n    {ended}", flush=True)
                for sentence in found:
                    print(f"    WRONG: {sentence}", flush=True)
    for kind, count in sorted(ends.items()):
        print(f"{count:6} {kind}")
    minutes = (time.monotonic() - began) / 60
    print(f"{words.rounds} commands in {minutes:.0f} minutes: {wrong} answered wrongly")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
