"""Ways to name a sweep's points beside a product: lists of presets, and a sweeper that receives their results."""

import json

import pytest
import yaml
from sweeping import TINY, run, run_folders

pytestmark = pytest.mark.slow

SMALL = [*TINY, "num_tokens=640", "eval=core", "train.held_out_tokens=64"]


def test_optuna_receives_the_metric_of_results(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["experiment=tune", *SMALL, "k=4", f"outputs={tmp_path}", f"hydra.sweep.dir={tmp_path}/study"]
    run(*words, "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2")
    fvus = [json.loads((f / "results.json").read_text())["metrics"]["fvu"] for f in run_folders(tmp_path)]
    found = yaml.safe_load((tmp_path / "study" / "optimization_results.yaml").read_text())
    assert len(set(fvus)) == 4 and found["best_value"] == min(fvus)
    assert set(found["best_params"]) == {"lr", "lambda2_max"}
    assert len(list((tmp_path / "sweeps").iterdir())) == 2


def test_a_list_of_presets_is_a_sweep(tmp_path):
    words = ["--dry-run", "-m", "experiment=glob(de*)", "model=synthetic", f"outputs={tmp_path}"]
    done = run(*words)
    assert "run 2" in done.stdout and "decorrelation" in done.stdout, done.stdout
