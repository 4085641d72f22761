"""A whole run by the fast kernels beside the same run by the plain formulas: every metric, and how far apart.

    python -m scripts.check_kernels [key=value ...]      without words: the demo's first run

In float64 first, where they must end within 1e-4 of each other, relative; else the exit status is 1. Then in float32,
where rounding alone decides now and then which feature is the k-th largest, and the weights go ways of their own from
there on. How far that takes a run is shown by the plain formulas on two instruction sets (MKL's AVX-512 and AVX2), and
beside them stands what `train.selection=bfloat16`, which may choose other features, does to the same run.
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


def apart(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
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
        "float64": apart(metrics([*fast, *double]), metrics([*plain, *double])),
        "float32": apart(metrics(fast), reference),
        "rounding": apart(metrics(plain, **OTHER_ROUNDING), reference),
        "bfloat16": apart(metrics([*fast, "train.selection=bfloat16"]), reference),
    }
    print(f"\n{'relative difference':34} {'value':>12} " + " ".join(f"{name:>9}" for name in columns))
    for name in columns["float64"]:
        print(f"{name:34} {reference[name]:12.6g} " + " ".join(f"{column[name]:9.1e}" for column in columns.values()))
    worst = {name: max(column.values()) for name, column in columns.items()}
    print(f"{'at most':47} " + " ".join(f"{value:9.1e}" for value in worst.values()))
    sys.exit(int(worst["float64"] > TOLERANCE))


if __name__ == "__main__":
    main()
