"""Launches that meet on one outputs folder: `python -m scripts.campaign_concurrency --launches 20 --seed 0`.

Overlapping sweeps started at once, two users on one folder, a launcher that is killed while its processes train,
leases of dead owners, and clocks that jump. Every run must be trained once, be complete, and have the numbers of a
sweep alone. Each violation is printed, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scripts.campaign_faults import (
    GRIDS,
    PROJECT,
    SYNTHETIC,
    Reference,
    complete,
    faults_of_output,
    faults_of_tree,
    forked,
    launching,
    reference_of,
    runs_of,
    warm_up,
)

VALUES = (2, 3, 4, 5, 6, 7)
"""Of k: one run each."""
OTHER_USER = 65534
TIMEOUT = 900


def grid(values: Any) -> list[str]:
    return [f"k={','.join(map(str, values))}" if word.startswith("k=") else word for word in SYNTHETIC]


GRIDS["crowd"] = grid(VALUES)


def at_once(works: list[Callable[[], int]], cwd: Path) -> tuple[list[int], list[str]]:
    """Statuses and outputs of works that start together."""
    outputs = [cwd / f"launch-{n}" for n in range(len(works))]
    for output in outputs:
        output.write_bytes(b"")
        output.chmod(0o666)
    with ThreadPoolExecutor(len(works)) as pool:
        statuses = list(
            pool.map(lambda pair: forked(*pair, timeout=TIMEOUT, cwd=cwd), zip(works, outputs, strict=True))
        )
    return statuses, [output.read_text(errors="replace") for output in outputs]


def trained_once(texts: list[str], outputs: Path) -> list[str]:
    """A sentence for each run that not exactly one launch trained, and for each log with a row twice."""
    found = []
    trained = [run for text in texts for run in re.findall(r"(\w{12})  .*\n  completed: ", text)]
    for name, folder in runs_of(outputs).items():
        if trained.count(name) != 1:
            found.append(f"{name} was trained {trained.count(name)} times")
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        if steps != sorted(set(steps)):
            found.append(f"{name} has rows twice: {steps}")
    return found


def crowd(launches: int, chance: random.Random, cwd: Path, reference: Reference) -> list[str]:
    """Overlapping sweeps at once."""
    chosen = [sorted(chance.sample(VALUES, chance.randint(1, 4))) for _ in range(launches - 1)] + [list(VALUES)]
    statuses, texts = at_once([launching(grid(values)) for values in chosen], cwd)
    found = [f"a launch ends with status {status}" for status in statuses if status]
    for text, status in zip(texts, statuses, strict=True):
        found += faults_of_output(text, status)
    sweeps = len(list((cwd / "o" / "sweeps").iterdir()))
    found += [] if sweeps == launches else [f"{launches} launches made {sweeps} sweeps"]
    return found + trained_once(texts, cwd / "o") + faults_of_tree(cwd / "o", reference, all_complete=True)


def two_users(launches: int, chance: random.Random, cwd: Path, reference: Reference) -> list[str]:
    """Root and an unprivileged user share a folder: with write access to each other's files, and without."""
    found = []
    for umask in (0o000, 0o022):
        place = cwd / f"{umask:03o}"
        place.mkdir()
        for folder in (place, place / "o", place / "o" / "runs", place / "o" / "sweeps", place / "o" / "activations"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o777)

        def as_user(uid: int, umask: int = umask) -> Callable[[], int]:
            def work() -> int:
                os.umask(umask)
                if uid:
                    os.setgroups([])
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                    os.environ["HOME"] = "/nonexistent"
                return launching(GRIDS["crowd"])()

            return work

        statuses, texts = at_once([as_user(0), as_user(OTHER_USER), as_user(0), as_user(OTHER_USER)], place)
        for text, status in zip(texts, statuses, strict=True):
            found += faults_of_output(text, status)
        if umask == 0 and any(statuses):
            found.append(f"statuses {statuses} where both may write")
        if umask:  # what one could not write is complete once the other has trained it
            again, texts_again = at_once([as_user(0)], place)
            found += [f"root's second launch ends with status {again[0]}: {texts_again[0][-300:]}"] if again[0] else []
            again, after = at_once([as_user(OTHER_USER)], place)
            found += (
                [f"the unprivileged user's second launch ends with status {again[0]}: {after[0][-300:]}"]
                if again[0]
                else []
            )
            texts += texts_again
        found += trained_once(texts, place / "o") + faults_of_tree(place / "o", reference, all_complete=True)
    return found


def killed_launcher(launches: int, chance: random.Random, cwd: Path, reference: Reference) -> list[str]:
    """The launcher of cluster=local is killed while its processes train; the same command is launched at once again."""
    words = [*GRIDS["crowd"], "cluster=local", "cluster.processes=2", "cluster.poll_s=0.3"]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with open(cwd / "first", "w") as log:
        command = [sys.executable, str(PROJECT / "launch.py"), *words]
        launcher = subprocess.Popen(command, cwd=cwd, env=env, stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + TIMEOUT
        while time.monotonic() < until and not list((cwd / "o").glob("runs/*/checkpoint/state.safetensors")):
            time.sleep(0.05)
        launcher.kill()
        launcher.wait()
    status = forked(launching(GRIDS["crowd"]), cwd / "second", timeout=TIMEOUT, cwd=cwd)
    text = (cwd / "second").read_text()
    found = faults_of_output(text, status) + ([f"the second launch ends with status {status}"] if status else [])
    logs = [path.read_text() for path in (cwd / "o").glob("sweeps/*/local/[0-9].log")]
    return found + trained_once([text, *logs], cwd / "o") + faults_of_tree(cwd / "o", reference, all_complete=True)


def stale_leases(launches: int, chance: random.Random, cwd: Path, reference: Reference) -> list[str]:
    """Each run has a lease: of a dead process here, of another machine long ago, just now, and from the future."""
    from sae_sweeps.storage.lease import this_process

    names = sorted(runs_of(reference.folder / "o"))
    for number, name in enumerate(names):
        folder = cwd / "o" / "runs" / name
        folder.mkdir(parents=True)
        host = {} if number % 4 == 0 else {"host": "elsewhere"}
        owner = this_process() | {"pid": 2**22 - 1, "token": "theirs", "start_time": 1} | host
        (folder / "lease.json").write_text(json.dumps(owner))
        stamp = time.time() + (0, -3600, -50, 86400)[number % 4]
        os.utime(folder / "lease.json", (stamp, stamp))
    status = forked(launching(GRIDS["crowd"]), cwd / "out", timeout=TIMEOUT, cwd=cwd)
    text = (cwd / "out").read_text()
    found = faults_of_output(text, status) + ([f"the launch ends with status {status}"] if status else [])
    return found + trained_once([text], cwd / "o") + faults_of_tree(cwd / "o", reference, all_complete=True)


def clocks(launches: int, chance: random.Random, cwd: Path, reference: Reference) -> list[str]:
    """Four launches whose clocks jump back and forth, then files of 1970 and of tomorrow."""

    def jumping(seed: int) -> Callable[[], int]:
        def work() -> int:
            real, own = time.time, random.Random(seed)
            time.time = lambda: real() + own.choice((-86400.0, 0.0, 3600.0, 1e8))
            return launching(GRIDS["crowd"])()

        return work

    statuses, texts = at_once([jumping(chance.randrange(2**32)) for _ in range(4)], cwd)
    found = [f"a launch ends with status {status}" for status in statuses if status]
    found += trained_once(texts, cwd / "o") + faults_of_tree(cwd / "o", reference, all_complete=True)
    for stamp in (0, time.time() + 86400):
        for path in (cwd / "o").rglob("*"):
            os.utime(path, (stamp, stamp), follow_symlinks=False)
        (status,), (text,) = at_once([launching(GRIDS["crowd"])], cwd)
        if status or text.count("complete, skipped") != len(VALUES):
            found.append(f"with times of {stamp:.0f}: status {status}, {text.count('complete, skipped')} runs skipped")
    return found


SCENES = {scene.__name__: scene for scene in (crowd, two_users, killed_launcher, stale_leases, clocks)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--launches", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(SCENES), default=list(SCENES))
    words = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "SAE_SWEEPS_LOCAL": "none", "COLUMNS": "200"}
    import torch

    torch.set_num_threads(1)
    scratch = Path(tempfile.mkdtemp(prefix="concurrency-"))
    scratch.chmod(0o755)
    warm_up()
    reference = reference_of("crowd", scratch, interrupted=False)
    wrong = 0
    for name in words.only:
        cwd, began = scratch / f"scene-{name}", time.monotonic()
        cwd.mkdir()
        if name == "two_users" and os.geteuid() != 0:
            print("skipped: two_users needs root, to become another user", flush=True)
            continue
        found = SCENES[name](words.launches, random.Random(f"{words.seed}/{name}"), cwd, reference)
        done = sum(complete(folder) for folder in (cwd).glob("**/o/runs/*"))
        about = (SCENES[name].__doc__ or "").splitlines()[0]
        print(
            f"{'WRONG' if found else 'ok':5} {name}: {about} {done} runs, {time.monotonic() - began:.0f} s", flush=True
        )
        for sentence in found:
            print(f"      {sentence}", flush=True)
        if found:
            print(f"      python -m scripts.campaign_concurrency --seed {words.seed} --only {name}   (kept in {cwd})")
        wrong += bool(found)
    if not wrong:
        shutil.rmtree(scratch)
    return int(bool(wrong))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
