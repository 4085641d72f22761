"""Sweeps on a Slurm of their own, struck at random: `python -m scripts.campaign_cluster --rounds 5 --seed 0`.

Each round launches one sweep and strikes it until `--strikes` blows have fallen: scancel, requeue, the time limit's
warning, SIGKILL of a job's process, preemption, a node's daemon or the controller stopped and started. Then every run
must be complete, or cancelled, failed or lost with its reason; `resume` must complete it; and all numbers must be those
of a sweep that nothing disturbed. Ends with status 1 where that does not hold. Every second round has accounting.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT / "tests" / name) for name in ("cluster", "sweeps")]

from slurm_cluster import SlurmCluster, missing  # noqa: E402
from sweeping import (  # noqa: E402
    ON_SLURM,
    TINY,
    kill_process_of,
    launch,
    numbers,
    push,
    read,
    run,
    run_folders,
    status,
    the_sweep,
    trains,
)  # fmt: skip

GRID = ["-m", *TINY, "num_tokens=192000", "train.checkpoint_every=100", "train.log_every=20", "k=4", "seed=range(0,8)"]
ENDS = ("completed", "cancelled", "failed", "lost", "preempted")


def strike(cluster: SlurmCluster, outputs: Path, draw: random.Random) -> str | None:
    """One blow to whatever trains now; what it was, or None when nothing trains."""
    training = [folder for folder in run_folders(outputs) if trains(folder)]
    if not training:
        return None
    folder = draw.choice(training)
    job = status(folder)["slurm_job_id"]
    blow = draw.choice(["scancel", "requeue", "warning", "kill", "preempt", "node", "controller"])
    if blow == "scancel":
        cluster.call("scancel", job, check=False)
    elif blow == "requeue":
        cluster.call("scontrol", "requeue", job, check=False)
    elif blow == "warning":
        cluster.call("scancel", "-s", "USR2", job, check=False)
    elif blow == "kill":
        try:
            kill_process_of(folder)
        except ProcessLookupError:
            return None
    elif blow == "preempt":
        node = cluster.call("squeue", "-h", "-r", "-o", "%N", "-j", job, check=False).strip()
        wanted = ["-w", node] if node else []
        options = ["--gpus-per-node=2", "-o", "/dev/null", "--wrap", "sleep 1"]
        cluster.call("sbatch", "-p", "urgent", *wanted, *options, check=False)
    elif blow == "node":
        number = draw.randrange(3)
        cluster.stop_process(f"slurmd-n{number}")
        cluster.start_node(number)
    else:
        cluster.stop_process("slurmctld")
        cluster.start_controller()
    return f"{blow} {folder.name}"


def struck_round(seed: int, strikes: int, undisturbed: Path, accounting: bool) -> list[str]:
    """What went wrong in one round."""
    draw, wrong = random.Random(seed), []
    scratch = Path(tempfile.mkdtemp(prefix="campaign-"))
    outputs, blows = scratch / "o", []
    with SlurmCluster(accounting) as cluster:
        words = [*GRID, *ON_SLURM, f"cluster.group_size={draw.choice([1, 2, 4])}", f"outputs={outputs}"]
        launcher = launch(*words, cluster=cluster, log=scratch / "log")
        try:
            sweep = the_sweep(outputs)
            until = time.monotonic() + 1800
            while launcher.poll() is None and time.monotonic() < until:
                if len(blows) < strikes and (blow := strike(cluster, outputs, draw)):
                    blows.append(blow)
                push(cluster)
                time.sleep(draw.uniform(0.2, 2.0))
            if launcher.poll() is None:
                return [f"the launcher waits for ever; see {scratch}"]
            for folder in run_folders(outputs):
                end = status(folder)
                if end["state"] not in ENDS or (end["state"] != "completed" and not end["error"]):
                    wrong.append(f"{folder.name} ended as {end['state']} ({end['error']})")
            ends = sorted(status(folder)["state"] for folder in run_folders(outputs))
            done = launch("resume", sweep, cluster=cluster, module="sae_sweeps", log=scratch / "resumed")
            while done.poll() is None:
                push(cluster)
                time.sleep(0.5)
        finally:
            launcher.kill()
        for folder in run_folders(undisturbed):
            struck = outputs / "runs" / folder.name
            if status(struck)["state"] != "completed":
                wrong.append(f"{folder.name} was not completed by resume: {status(struck)}")
            elif numbers(struck) != numbers(folder):
                wrong.append(f"{folder.name} has other numbers than undisturbed")
    restarts = sum(read(folder, "status.json")["restarts"] for folder in run_folders(outputs))
    counted = ", ".join(f"{ends.count(end)} {end}" for end in sorted(set(ends)))
    kind = "accounting" if accounting else "no accounting"
    print(f"round {seed} ({kind}): {len(blows)} blows ({', '.join(blows)}); {counted}; {restarts} restarts", flush=True)
    if not wrong:
        shutil.rmtree(scratch)
    return [f"{line} (seed {seed}, {scratch})" for line in wrong]


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--strikes", type=int, default=8)
    given = words.parse_args()
    if lacking := missing(accounting=given.rounds > 1):
        raise SystemExit(f"a Slurm of its own needs {', '.join(lacking)}")
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as undisturbed:
        run(*GRID, f"outputs={undisturbed}")
        for number in range(given.rounds):
            wrong += struck_round(given.seed + number, given.strikes, Path(undisturbed), accounting=number % 2 == 1)
    print(
        "\n".join(wrong) or f"{given.rounds} rounds: every run ended, and every number is that of an undisturbed sweep"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
