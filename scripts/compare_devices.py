"""Evaluations of SAEs on two devices, side by side: `python scripts/compare_devices.py SAE... [key=value ...]`.

SAE is a folder in SAELens's format, such as a run's `sae/`. Each device has copies and kept activations of its own.
Prints the seconds of each evaluation and the metric that differs most (accuracies move by whole rows where float32
sums round otherwise). `--devices cpu cuda` is the default; ends with 2 where there is no such device.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="SAE... key=value")
    parser.add_argument("--devices", nargs=2, default=["cpu", "cuda"])
    given = parser.parse_args()
    saes = [Path(word).resolve() for word in given.words if "=" not in word]
    words = [word for word in given.words if "=" in word]
    with tempfile.TemporaryDirectory() as place:
        sides = []
        for number, device in enumerate(given.devices):
            outputs = Path(place) / str(number)
            for i, sae in enumerate(saes):
                shutil.copytree(sae, outputs / "saes" / str(i), ignore=shutil.ignore_patterns("evals", "results.json"))
            command = [sys.executable, "-m", "sae_sweeps", "evaluate", *sorted(map(str, (outputs / "saes").iterdir()))]
            done = subprocess.run(
                [*command, f"device={device}", f"outputs={outputs}", *words],
                cwd=PROJECT,
                stdout=subprocess.PIPE,
                text=True,
            )
            if done.returncode:
                print(done.stdout)
                return done.returncode
            sides.append((seconds(done.stdout), metrics(outputs / "saes")))
    (first_s, first), (second_s, second) = sides
    one, other = given.devices
    print(f"{'evaluation':<16} {one:>8} s {other:>8} s   largest difference")
    for name in first_s:
        gaps = {key: gap(first[key], second[key]) for key in first if key[1] == name}
        worst = max(gaps, key=lambda key: gaps[key])
        largest = f"{gaps[worst]:.1e} of {worst[2]}: {first[worst]} and {second[worst]}"
        print(f"{name:<16} {first_s[name]:>10.1f} {second_s[name]:>10.1f}   {largest}")
    return 0


def seconds(output: str) -> dict[str, float]:
    """Evaluation -> seconds, read from the lines that `evaluate` prints."""
    lines = [line.strip() for line in output.splitlines() if " done in " in line]
    return {line.split(":")[0]: float(line.split(" done in ")[1].split()[0]) for line in lines}


def metrics(saes: Path) -> dict[tuple[str, str, str], float]:
    """By SAE, evaluation and name."""
    found = {}
    for path in sorted(saes.glob("*/evals/*.summary.json")):
        name = path.name.removesuffix(".summary.json")
        for metric, value in json.loads(path.read_text())["metrics"].items():
            found[path.parts[-3], name, metric] = float("nan") if value is None else float(value)
    return found


def gap(a: float, b: float) -> float:
    """Relative difference; 0 where both are nan."""
    return 0.0 if a == b or (a != a and b != b) else abs(a - b) / max(abs(a), abs(b), 1e-12)


if __name__ == "__main__":
    sys.exit(main())
