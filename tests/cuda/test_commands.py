"""Whole commands on the simulated device: harvest, train, an interruption, resume, export, evaluate."""

import json
import os
import signal
import time

import pytest
from simulated import ROOT, run, start

FULL = os.environ.get("TEST_MATRIX") == "full"
WORDS = [
    "device=cuda:1", "architecture=topk", "k=4", "d_sae=32", "batch_size=16", "num_tokens=256", "penalty=ortho",
    "train.checkpoint_every=4", "train.log_every=4",
    "eval.batch_size=2", "eval.recon_batches=1", "eval.sparsity_batches=1",
]  # fmt: skip
EVALUATIONS = ["core", "separation", "tpp"]


@pytest.mark.slow
def test_a_run_on_the_second_device_is_interrupted_resumed_and_evaluated(tmp_path):
    launch = [str(ROOT / "launch.py"), *WORDS, f"outputs={tmp_path}"]
    process = start(*launch)
    while process.poll() is None and not list(tmp_path.glob("runs/*/checkpoint/state.safetensors")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate()[0]
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted", printed

    printed = run(*launch)
    results = json.loads((folder / "results.json").read_text())
    assert json.loads((folder / "status.json").read_text())["state"] == "completed", printed
    assert (folder / "sae" / "sae_weights.safetensors").exists() and 0 < results["metrics"]["fvu"] < 2

    words = ["eval=quick", *([] if FULL else [f"eval.evaluations={EVALUATIONS}".replace(" ", "")])]
    printed = run("-m", "sae_sweeps", "evaluate", str(folder), "device=cuda:1", *words)
    assert "failed" not in printed
    assert {f"{name}.summary.json" for name in EVALUATIONS} <= {path.name for path in (folder / "evals").iterdir()}
