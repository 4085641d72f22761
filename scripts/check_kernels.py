"""Compare a whole run by the fast kernels with the same run by the plain formulas, in every metric.

    python -m scripts.check_kernels [key=value ...]      without words: the demo's first run

First in float64, where the relative difference must be at most 1e-4; else the exit status is 1. Then in float32, where
rounding sometimes decides which feature is the k-th largest, after which the weights diverge. The plain formulas on two
instruction sets (MKL's AVX-512 and AVX2) show the size of that effect. A last column compares a run with
`train.selection=bfloat16`, which may select other features.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4
DEMO = ["penalty=ortho", "lambda2_max=0.1"]
ROOT = Path(__file__).parents[1]
OTHER_ROUNDING = {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def metrics(words: list[str], **environment: str) -> dict[str, Any]:
    """The metrics of a run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "launch.py", *words, "report=false", f"outputs={folder}"]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(folder).glob("runs/*/results.json")
        results = json.loads(path.read_text())
    print(f"{results['provenance']['kernels']:10} {results['title']}  {environment or ''}", flush=True)
    return results["metrics"]


def relative_differences(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Relative difference of each metric that is a number."""
    return {
        name: abs(mine[name] - value) / max(abs(value), 1e-9)
        for name, value in theirs.items()
        if isinstance(value, (int, float)) and isinstance(mine[name], (int, float))
    }


def main() -> None:
    words = sys.argv[1:] or DEMO
    fast, plain = [*words, "train.kernels=auto"], [*words, "train.kernels=reference"]
    double = ["train.precision=float64"]
    reference = metrics(plain)
    columns = {
        "float64": relative_differences(metrics([*fast, *double]), metrics([*plain, *double])),
        "float32": relative_differences(metrics(fast), reference),
        "rounding": relative_differences(metrics(plain, **OTHER_ROUNDING), reference),
        "bfloat16": relative_differences(metrics([*fast, "train.selection=bfloat16"]), reference),
    }
    print(f"\n{'relative difference':34} {'value':>12} " + " ".join(f"{name:>9}" for name in columns))
    for name in columns["float64"]:
        print(f"{name:34} {reference[name]:12.6g} " + " ".join(f"{column[name]:9.1e}" for column in columns.values()))
    worst = {name: max(column.values()) for name, column in columns.items()}
    print(f"{'at most':47} " + " ".join(f"{value:9.1e}" for value in worst.values()))
    sys.exit(int(worst["float64"] > TOLERANCE))


if __name__ == "__main__":
    main()
