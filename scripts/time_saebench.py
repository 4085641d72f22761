"""Time and memory of SAEBench's own loop over eight SAEs and of ours, in the world that `saebench_fixture.py` made.

`python scripts/time_saebench.py FOLDER .venv-saelens/bin/python`, with the project's own Python: for each evaluation
ours with nothing kept (cold) and with what is kept in `outputs/activations` (warm), then SAEBench's loop, then ours
again, so that both meet the same machine; at last all evaluations in one command of ours. Wall seconds are those of a
machine that may do other things, CPU seconds (user and system) hardly depend on them. Ours are those of the whole
process, SAEBench's those of its loop alone, without what its imports take. One thread each. Writes FOLDER/times/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "scripts")]

from saebench_fixture import EVALUATIONS, command  # noqa: E402

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
Took = dict[str, float]
"""wall, cpu [s], peak_gb."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("saebench", type=Path, help="the Python that has SAEBench")
    parser.add_argument("--only", nargs="*", choices=[*EVALUATIONS, "all"], help="measure these again; the others stay")
    words = parser.parse_args()
    folder = words.folder.resolve()
    for name in words.only or [*EVALUATIONS, "all"]:
        if name == "all":
            runs = [ours(folder, list(EVALUATIONS)) for _ in range(2)]
            keep(folder, name, {kind: [run[kind] for run in runs] for kind in runs[0]})
            continue
        before = ours(folder, [name])
        (folder / f"theirs-{name}.json").unlink(missing_ok=True)
        subprocess.run(
            [words.saebench, PROJECT / "scripts/check_saebench.py", folder, "--only", name], env=ENVIRONMENT
        )  # prints what differs
        theirs = json.loads((folder / f"theirs-{name}.json").read_text())
        after = ours(folder, [name])
        keep(folder, name, {"saebench": theirs, **{kind: [before[kind], after[kind]] for kind in before}})
    show({path.stem: json.loads(path.read_text()) for path in (folder / "times").iterdir()})
    return 0


def keep(folder: Path, name: str, found: dict[str, Any]) -> None:
    (folder / "times").mkdir(exist_ok=True)
    (folder / "times" / f"{name}.json").write_text(json.dumps(found, indent=2))


def ours(folder: Path, names: list[str]) -> dict[str, Took]:
    """Our command over the eight SAEs, cold and warm, in a place of its own."""
    place = folder / "timed" / "-".join(names)
    shutil.rmtree(place, ignore_errors=True)
    took = {}
    for kind in ("cold", "warm"):
        shutil.rmtree(place / "saes", ignore_errors=True)
        shutil.copytree(folder / "saes", place / "saes", ignore=shutil.ignore_patterns("evals", "results.json"))
        took[kind] = measured(command(folder, place / "saes", place / "outputs", names))
        print(f"ours {' '.join(names)} {kind}: {took[kind]}", flush=True)
    return took


def measured(words: list[str]) -> Took:
    """Wall and CPU seconds and the peak of memory of a command. Raises CalledProcessError where it fails."""
    began = time.monotonic()
    process = subprocess.Popen(words, cwd=PROJECT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return {
        "wall": round(time.monotonic() - began, 1),
        "cpu": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss / 2**20, 2),
    }


def show(times: dict[str, Any]) -> None:
    """CPU seconds (wall seconds) and peaks, as a table in Markdown; ours is the mean of its repetitions."""
    names = [name for name in EVALUATIONS if name in times]
    if len(times) > len(EVALUATIONS):
        theirs = [times[name]["saebench"] for name in names]
        whole = {kind: sum(one[kind] for one in theirs) for kind in ("wall", "cpu")}
        times["all"]["saebench"] = whole | {"peak_gb": max(one["peak_gb"] for one in theirs), "saes": theirs[0]["saes"]}
        names.append("all")
    print("\n| evaluation | SAEBench | ours, cold | ours, warm | factor, cold | warm | peak GB, SAEBench | ours |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in names:
        theirs = times[name]["saebench"]
        mean = {
            kind: {key: statistics.mean(run[key] for run in times[name][kind]) for key in ("cpu", "wall")}
            for kind in ("cold", "warm")
        }
        peak = max(run["peak_gb"] for kind in mean for run in times[name][kind])
        cells = [f"{one['cpu']:,.0f} ({one['wall']:,.0f})" for one in (theirs, mean["cold"], mean["warm"])]
        factors = [f"{theirs['cpu'] / mean[kind]['cpu']:.1f}" for kind in mean]
        print(f"| {name} | {' | '.join(cells + factors)} | {theirs['peak_gb']:.1f} | {peak:.1f} |")


if __name__ == "__main__":
    sys.exit(main())
