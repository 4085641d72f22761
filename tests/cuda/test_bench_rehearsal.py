"""The first GPU's command, rehearsed: `python -m bench --device cuda`, all of its processes on a simulated GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulated_cuda.build import CannotBuild, guard

from bench.results import read

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.slow
def test_rehearsal_on_a_simulated_gpu(tmp_path):
    """All that is measured in a part's own process, by the very command of the first GPU."""
    try:
        guard()
    except CannotBuild as why:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(why))
    parts = ["machine", "check", "syncs", "paths", "disk"]
    command = [sys.executable, "-m", "bench", "--device", "cuda", "--small", "--threads", "1", "--patience", "5"]
    command += ["--out", str(tmp_path), "--parts", *parts]
    environment = os.environ | {"PYTHONPATH": f"{HERE / 'everywhere'}{os.pathsep}{HERE}"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = read(tmp_path)
    assert {line["part"] for line in lines if line.get("status") == "done"} == set(parts)
    rows = [line["row"] for line in lines if line["part"] == "syncs" and "row" in line]
    assert len(rows) > 3 and all(isinstance(row["synchronisations"], int) for row in rows), rows
    checked = [line["row"] for line in lines if line["part"] == "check" and "row" in line]
    kernels = {row.get("kernel") for row in checked}
    assert {"largest, float32", "weight_gradient, bfloat16", "ortho, gradient"} <= kernels
    assert all(float(row["difference"]) < row["allowed"] for row in checked if "kernel" in row)
    assert lines[0]["part"] == "plan" and "NVIDIA H100" in (tmp_path / "page.md").read_text()
