"""A whole run by the fast kernels beside the same run by the plain formulas: every metric, and how far apart.

    python -m scripts.check_kernels [key=value ...]      without words: the demo's first run

Exits with 1 when a metric differs by more than 1e-4 of its value.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4
DEMO = ["penalty=ortho", "lambda2_max=0.1"]
ROOT = Path(__file__).parents[1]


def metrics(words: list[str], folder: str) -> tuple[dict[str, Any], str]:
    """The metrics of a run, and the kernels that it was computed with."""
    subprocess.run([sys.executable, "launch.py", *words, f"outputs={folder}"], cwd=ROOT, check=True)
    (path,) = Path(folder).glob("runs/*/results.json")
    results = json.loads(path.read_text())
    return results["metrics"], results["provenance"]["kernels"]


def main() -> None:
    words = sys.argv[1:] or DEMO
    found: dict[str, dict[str, Any]] = {}
    for kernels in ("auto", "reference"):
        with tempfile.TemporaryDirectory() as folder:
            numbers, used = metrics([*words, f"train.kernels={kernels}"], folder)
            found[used] = numbers
    (fast, mine), (plain, theirs) = found.items()
    worst = 0.0
    print(f"{'':34} {fast:>14} {plain:>14} {'apart':>9}")
    for name, value in mine.items():
        other = theirs[name]
        if isinstance(value, (int, float)) and isinstance(other, (int, float)):
            apart = abs(value - other) / max(abs(other), 1e-9)
            worst = max(worst, apart)
            print(f"{name:34} {value:14.7g} {other:14.7g} {apart:9.1e}")
    print(f"at most {worst:.1e} apart, relative")
    sys.exit(int(worst > TOLERANCE))


if __name__ == "__main__":
    main()
