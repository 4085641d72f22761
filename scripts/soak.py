"""Small runs for an hour, in one process and as sweeps: `python -m scripts.soak --minutes 60`.

One process (forked once) launches sweep after sweep, each with another seed, with evaluations, checkpoints and tables,
on one outputs folder; what a finished sweep leaves there is removed but for the last KEPT sweeps. Beside it a second
one launches sweeps of cluster=local. After each sweep resident memory, open files, threads and the size of the outputs
tree are noted. docs/soak.png shows them; the verdict is by the slope of a robust line over the second half of the time,
against LIMITS. Ends with status 1 where one is above its limit.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).parents[1]
SMALL = [
    "-m", "model.d_in=16", "d_sae=32", "batch_size=64", "num_tokens=2560", "k=2,4", "train.checkpoint_every=10",
    "train.log_every=5", "train.monitor_every=20", "train.held_out_tokens=64", "eval.sparsity_batches=2", "device=cpu",
    "model=synthetic", "report=false", "outputs=o",
]  # fmt: skip
KEPT = 3
LIMITS = {"memory_mb": 30.0, "files": 1.0, "threads": 1.0, "disk_mb": 1.0}
"""Largest growth per 100 sweeps that counts as flat."""
LABELS = {
    "memory_mb": "resident memory (MB)", "files": "open files", "threads": "threads", "disk_mb": "outputs (MB)",
}  # fmt: skip


def sample(outputs: Path) -> dict[str, float]:
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    size = sum(path.stat().st_size for path in outputs.rglob("*") if path.is_file() and not path.is_symlink())
    return {
        "memory_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "disk_mb": size / 1e6,
    }


def prune(outputs: Path) -> None:
    """Remove all but the last sweeps, their runs, and activations that no run of these has."""
    for sweep in sorted((outputs / "sweeps").iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        for run in json.loads((sweep / "manifest.json").read_text())["runs"]:
            shutil.rmtree(outputs / "runs" / run["run_id"], ignore_errors=True)
        shutil.rmtree(sweep)


def soak(place: Path, words: list[str], until: float, mode: str) -> None:
    """Launch sweeps in this process until then; a line of figures for each in `place`/samples.jsonl."""
    from sae_sweeps.cli.command import main

    place.mkdir()
    os.chdir(place)
    log = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    began = time.monotonic()
    for number in range(10**9):
        if time.monotonic() >= until:
            return
        kept = "disk" if mode == "one process" and number % 2 else "memory"
        status = main([*words, f"seed={number}", f"activations.mode={kept}"])
        if status:
            raise SystemExit(f"sweep {number} ends with status {status}: see {place / 'log'}")
        prune(Path("o"))
        os.truncate("log", 0)
        figures = {"minutes": (time.monotonic() - began) / 60, "sweep": number, **sample(Path("o"))}
        with open("samples.jsonl", "a") as file:
            file.write(json.dumps(figures) + "\n")


def slope(values: np.ndarray) -> float:
    """Growth per 100 sweeps over the second half: the median of the slopes between all pairs (Theil and Sen)."""
    half = values[len(values) // 2 :]
    i, j = np.triu_indices(len(half), 1)
    return 100 * float(np.median((half[j] - half[i]) / (j - i))) if len(half) > 1 else 0.0


def draw(samples: dict[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(len(LABELS), 1, figsize=(8, 8), sharex=True, layout="constrained")
    for ax, (name, label) in zip(axes, LABELS.items(), strict=True):
        for mode, rows in samples.items():
            ax.plot([row["minutes"] for row in rows], [row[name] for row in rows], label=f"{mode}, {len(rows)} sweeps")
        ax.set(ylabel=label)
        ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize="small")
    axes[-1].set_xlabel("minutes")
    fig.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("-o", "--output", type=Path, default=PROJECT / "docs" / "soak.png")
    words = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "SAE_SWEEPS_LOCAL": "none"}
    scratch, until = Path(tempfile.mkdtemp(prefix="soak-")), time.monotonic() + 60 * words.minutes
    modes = {"one process": [], "cluster=local": ["cluster=local", "cluster.processes=2", "cluster.poll_s=0.5"]}
    children = {}
    for mode, more in modes.items():
        if (pid := os.fork()) == 0:
            status = 1
            try:
                soak(scratch / mode.replace("=", "-").replace(" ", "-"), [*SMALL, *more], until, mode)
                status = 0
            finally:
                os._exit(status)
        children[mode] = pid
    failed = [mode for mode, pid in children.items() if os.waitpid(pid, 0)[1]]
    samples = {}
    for mode in modes:
        path = scratch / mode.replace("=", "-").replace(" ", "-") / "samples.jsonl"
        if path.exists():
            samples[mode] = [json.loads(line) for line in path.read_text().splitlines()]
    draw(samples, words.output)
    wrong = len(failed)
    for mode, rows in samples.items():
        for name, label in LABELS.items():
            values = np.array([row[name] for row in rows])
            growth = slope(values)
            wrong += growth > LIMITS[name]
            verdict = "flat" if growth <= LIMITS[name] else "GROWS"
            print(
                f"{verdict:5} {mode}: {label} {values[0]:.1f} at first, {values[len(values) // 2]:.1f} in the middle, "
                f"{values[-1]:.1f} at the end of {len(values)} sweeps; {growth:+.2f} per 100 sweeps "
                f"(at most {LIMITS[name]:g})"
            )
    print(f"figure  {words.output}" + "".join(f"\n{mode} did not end well: see {scratch}" for mode in failed))
    if not wrong:
        shutil.rmtree(scratch)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
