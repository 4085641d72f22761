"""Random commands, most with a senseless value: `python -m scripts.campaign_configs --rounds 200 --seed 0`.

Each command chooses groups at random and sets a few of their keys, to similar values or to nonsense.
It must be refused in one sentence before anything is written, or planned; what is planned is run on a tiny SAE and must
end complete with finite numbers, or failed or diverged with its reason in one sentence. No traceback is ever printed.
Each violation is printed with its command, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config.words import choices

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT / "tests" / "sweeps"))

from forked import run as run_command  # noqa: E402

GROUPS = ("architecture", "penalty", "schedule", "lr_schedule", "group_layer", "eval")
TINY = ["model=synthetic", "model.d_in=16", "d_sae=64", "num_tokens=8192", "batch_size=256", "device=cpu"]
NONSENSE = (
    "0", "-1", "1", "2", "0.5", "1.5", "-0.0", "1e-30", "1e30", "1e400", "nan", "inf", "-inf", "null", "true", "false",
    "abc", "''", "' '", "[]", "[0]", "[1,2,3]", "[a,null]", "{}", "{a: 1}", "9223372036854775808", "1_000", "0x10",
    "1e3", "é", "../x", "a/b", "'x=y'", "'1,2'", "'${seed}'", "'a\nb'", "range(0,3)", "0.1,0.2", "choice(1,2)",
)  # fmt: skip
LEFT_OUT = ("hydra", "outputs", "device", "dry_run", "report", "cluster", "variants", "arms", "logger")
"""Keys of places and devices, and keys that start other processes."""
TIMEOUT = 120
"""Seconds after which a command is stopped; a run that long is not a violation."""


def random_words(chance: random.Random) -> list[str]:
    groups = [f"{group}={chance.choice(choices(group))}" for group in chance.sample(GROUPS, chance.randint(0, 4))]
    try:
        (point,) = compose_points([*TINY, *groups])
    except Exception:  # groups that do not go together: itself a command to try
        return groups
    keys = leaves(point.cfg)
    words = list(groups)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        group = chance.choice(sorted({key.partition(".")[0] for key in keys}))
        key = chance.choice([key for key in sorted(keys) if key.partition(".")[0] == group])
        words.append(f"{key}={like(keys[key], chance) if chance.random() < 0.5 else chance.choice(NONSENSE)}")
    return ["-m", *words] if chance.random() < 0.3 else words


def leaves(cfg: DictConfig, before: str = "") -> dict[str, Any]:
    """Dotted keys and their values."""
    out: dict[str, Any] = {}
    for key in cfg:
        path = f"{before}{key}"
        if path.split(".")[0] in LEFT_OUT or path.endswith(".name") or OmegaConf.is_missing(cfg, key):
            continue
        value = cfg[key]
        out |= leaves(value, f"{path}.") if isinstance(value, DictConfig) and len(value) else {path: value}
    return out


def like(value: Any, chance: random.Random) -> str:
    """Another value of the same kind, at the edge or not."""
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, int):
        return str(chance.choice((-1, 0, 1, 2, 3, 7, value // 2, value + 1, 2 * value, 64, 2**31, 2**63 - 1)))
    if isinstance(value, float):
        return repr(chance.choice((-1.0, 0.0, 1e-30, 1e-8, value / 10, value * 10, 0.5, 1.0, 1.0000001, 100.0, 1e30)))
    return "null" if value is None else shlex.quote(str(value))


def answer(words: list[str]) -> tuple[str, list[str]]:
    """How a command ended, and a sentence for each violation."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        env.pop("HYDRA_FULL_ERROR", None)
        command = [sys.executable, str(PROJECT / "launch.py"), *TINY, *words]

        def tried(*more: str) -> subprocess.CompletedProcess[str] | None:
            try:
                return run_command([*command, *more], folder, env, TIMEOUT)
            except subprocess.TimeoutExpired:
                return None

        plan = tried("--dry-run")
        if plan is None:
            return "unanswered", ["--dry-run takes longer than two minutes"]
        found = output_violations(plan, "--dry-run", (0, 2))
        if left := [path for path in Path(folder).rglob("*") if path.is_file()]:
            found.append(f"--dry-run wrote {left[0].name}")
        if found or plan.returncode:
            return plan.stderr.strip() or "refused", found
        done = tried()
        if done is None:
            return "left, it took too long", []
        found = output_violations(done, "the run", (0, 1, 2)) + run_violations(Path(folder), done.returncode)
        return "completed" if done.returncode == 0 else done.stderr.strip() or done.stdout.strip(), found


def output_violations(done: subprocess.CompletedProcess[str], which: str, allowed: tuple[int, ...]) -> list[str]:
    """A sentence for each fault in the exit status and the printed output of a command."""
    found = []
    if "Traceback" in done.stdout + done.stderr:
        found.append(f"{which} prints a traceback: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    elif done.returncode not in allowed:
        found.append(f"{which} ends with status {done.returncode}")
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    if done.returncode == 2 and not (len(errors) == 1 and errors[0].startswith("error: ")):
        found.append(f"{which} is refused in other words than one sentence: {errors}")
    return found


def run_violations(folder: Path, exit_status: int) -> list[str]:
    """A sentence for each fault in the recorded ends of the runs of a command."""
    found, states = [], []
    for file in folder.glob("outputs/runs/*/status.json"):
        status = json.loads(file.read_text())
        states.append(status["state"])
        if status["state"] == "completed":
            metrics = json.loads((file.parent / "results.json").read_text())["metrics"]
            bad = [key for key, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
            found += [f"a completed run has {key}={metrics[key]}" for key in bad]
        elif status["state"] not in ("failed", "diverged") or not status.get("error"):
            found.append(f"a run is left {status['state']} without a reason")
    if exit_status == 0 and set(states) != {"completed"}:
        found.append(f"status 0, and runs are {states}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="every command and its answer")
    words = parser.parse_args()
    composing = Lock()  # Hydra composes one at a time

    def tried(number: int) -> tuple[list[str], str, list[str]]:
        with composing:
            command = random_words(random.Random(f"{words.seed}/{number}"))
        return command, *answer(command)

    wrong, completed = 0, 0
    with ThreadPoolExecutor(2) as pool:
        for command, ended, found in pool.map(tried, range(words.rounds)):
            wrong, completed = wrong + bool(found), completed + (ended == "completed")
            if found or words.show:
                print(f"python launch.py {shlex.join([*TINY, *command])}\n    {ended}", flush=True)
            for sentence in found:
                print(f"    WRONG: {sentence}", flush=True)
    print(f"{words.rounds} commands: {completed} runs completed, {wrong} answered wrongly")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
