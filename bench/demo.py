"""The demo on the CPU and on the GPU at the same time, metric by metric."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.results import Results
from bench.setting import ROOT, Setting
from scripts.compare_devices import gap

WORDS = ("penalty=ortho", "lambda2_max=0.1,0.5,1.0")
OTHER_ROUNDING = {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Older instructions: the same run on the same device, rounded otherwise."""


RESERVE = 3.0
"""Seconds of the part that are kept for comparing."""


class Failed(Exception):
    """A demo that did not complete."""


def demo(setting: Setting, results: Results) -> None:
    """The demo's three runs on either device, and on the CPU with other instructions: what rounding alone changes."""
    shape = ["num_tokens=1024", "batch_size=256", "d_sae=64", "k=4"] if setting.small else ["num_tokens=204800"]
    words = [*WORDS, *shape, "report=false"]
    ways: dict[str, tuple[str, dict[str, str]]] = {
        "cpu": ("cpu", {}), setting.device: (setting.device, {}), "cpu, other rounding": ("cpu", OTHER_ROUNDING)
    }  # fmt: skip
    share = str(max(1, setting.threads // len(ways)))
    with tempfile.TemporaryDirectory() as folder:
        started = {}
        for number, (way, (device, environment)) in enumerate(ways.items()):
            outputs = Path(folder) / str(number)
            outputs.mkdir()
            command = [sys.executable, "launch.py", "-m", *words, f"device={device}", f"outputs={outputs}"]
            with open(outputs / "log", "w") as log:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=setting.environment(OMP_NUM_THREADS=share, **environment),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            started[way] = process, outputs, time.perf_counter()
        found: dict[str, dict[tuple[str, str], float]] = {}
        while len(found) < len(started) and setting.left() > RESERVE:
            time.sleep(0.05)
            for way, (process, outputs, began) in started.items():
                if way in found or process.poll() is None:
                    continue
                took = time.perf_counter() - began
                if process.returncode:
                    raise Failed(f"{way}: {(outputs / 'log').read_text()[-500:]}")
                found[way] = metrics(outputs)
                results.add("The demo's commands, side by side", {"": way, "s": took})
        for process, _, _ in started.values():
            process.kill()
    if late := sorted(ways.keys() - found.keys()):
        results.add("The demo's commands, side by side", {"": ", ".join(late), "s": "not done in the time of the part"})
    for run, name in found.get("cpu", {}):
        values = {way: numbers.get((run, name), float("nan")) for way, numbers in found.items()}
        differences = {f"{way}: difference": gap(value, values["cpu"]) for way, value in values.items() if way != "cpu"}
        results.add(
            "Metrics of the demo's runs; differences are relative", {"run": run, "metric": name} | values | differences
        )
    for way in [way for way in found if way != "cpu" and "cpu" in found]:
        gaps = {key: gap(found[way].get(key, float("nan")), value) for key, value in found["cpu"].items()}
        worst = max(gaps, key=lambda key: gaps[key])
        results.add(
            "Largest relative difference from the CPU",
            {"": way, "difference": gaps[worst], "metric": worst[1], "run": worst[0]},
        )


def metrics(outputs: Path) -> dict[tuple[str, str], float]:
    """By the title of a run and the metric's name."""
    found: dict[tuple[str, str], float] = {}
    for path in sorted(outputs.glob("runs/*/results.json")):
        content: dict[str, Any] = json.loads(path.read_text())
        for name, value in content["metrics"].items():
            if isinstance(value, int | float):
                found[content["title"], name] = float(value)
    return found
