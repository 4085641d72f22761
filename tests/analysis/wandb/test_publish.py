"""Runs that have ended, sent to W&B: the real client against a server on the loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.wandb.dashboard import EVALUATED, NOTED
from sae_sweeps.storage.run_folder import RunFolder
from tests.analysis.outputs import add_run, add_sweep
from tests.wandb_stub import WandbStub

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow


def analysis(stub, home, *words, expect=0):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment = clean | (stub.environment(str(home)) if stub else {"HOME": str(home)})
    done = subprocess.run(
        [sys.executable, "-m", "analysis", *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture
def sweep(tmp_path):
    """Two completed runs that differ in lambda2_max, and one that diverged."""
    outputs = tmp_path / "outputs"
    hostile = "=cmd|<script>'\"\n, x"
    folders = [
        add_run(
            outputs,
            "aaa",
            {"penalty.lambda2_max": 0.1, "lr_schedule.lr": 0.003, "architecture.l1_penalty": 0.04},
            {"fvu": 0.25},
            title="weak",
        ),
        add_run(outputs, "bbb", {"penalty.lambda2_max": 1.0}, {"fvu": 0.5}, title=hostile, warnings=("dead",)),
        add_run(outputs, "ccc", state="diverged", error="recon_loss is not finite at step 20"),
    ]
    for folder in folders:
        run = RunFolder(folder)
        for step in range(0, 50, 10):
            run.metrics.append({"step": step, "tokens": 1000 * (step + 1), "loss": 1 / (step + 1)})
            pairs = {"pairs": [[0, 1], [1, 2], [2, 3]], "overlap": [0.5, 0.2, 0.1], "abs_cosine": [step / 100, 0, 0]}
            for chosen, record in ((2, pairs), (25, pairs | {"overlap": [1, 1, 1]})):
                run.monitors.append({"step": step, "monitor": "pairs", "chosen": chosen, **record})
        run.close()
    return add_sweep(outputs, "20260101-000000-abcd", ["aaa", "bbb", "ccc"])


def test_a_sweep_published_twice_is_what_it_is_once(sweep, tmp_path):
    with WandbStub() as stub:
        done = analysis(stub, tmp_path, "publish", sweep, "--entity", "me")
        assert "aaa: 5 rows, completed" in done.stdout and "table of 3 runs" in done.stdout
        first = {name: (run.history, run.summary, run.notes, run.exit_code) for name, run in stub.runs.items()}
        analysis(stub, tmp_path, "publish", sweep, "--entity", "me")
        second = {name: (run.history, run.summary, run.notes, run.exit_code) for name, run in stub.runs.items()}
    assert set(first) == {"aaa", "bbb", "ccc", "sweep-20260101-000000-abcd"}
    timeless = [{name: told(*what) for name, what in runs.items()} for runs in (first, second)]
    assert timeless[0] == timeless[1]
    assert [row["_step"] for row in stub.runs["aaa"].history] == [0, 10, 20, 30, 40]
    assert [row["loss"] for row in stub.runs["aaa"].history] == [1 / (step + 1) for step in range(0, 50, 10)]
    assert [row["pairs/highest/abs_cosine"] for row in stub.runs["aaa"].history] == [0, 0.1, 0.2, 0.3, 0.4]
    assert {row["pairs/lowest/overlap"] for row in stub.runs["aaa"].history} == {0.1}
    summary = stub.runs["aaa"].summary
    noted = {"training_steps": 100, "final_loss": 30.5, "learning_rate": 0.003, "sparsity_penalty": 0.04}
    assert noted | {"dict_size": 1024, "layer": 2} == {name: summary[name] for name in (*noted, "dict_size", "layer")}
    assert stub.runs["ccc"].summary["training_steps"] == 41 and "final_loss" not in stub.runs["ccc"].summary
    assert stub.runs["aaa"].summary["fvu"] == 0.25 and stub.runs["aaa"].exit_code == 0
    assert stub.runs["ccc"].exit_code == 1 and "not finite at step 20" in stub.runs["ccc"].notes
    assert stub.runs["aaa"].group == "20260101-000000-abcd"
    assert stub.runs["aaa"].config["penalty"]["value"]["lambda2_max"] == 0.1
    assert stub.runs["bbb"].notes.endswith("Warning: dead")


def told(history, summary, notes, exit_code):
    """What must not change; the client adds times of its own."""
    rows = [{key: value for key, value in row.items() if key not in ("_timestamp", "_runtime")} for row in history]
    kept = {key: value for key, value in summary.items() if not key.startswith("_")}
    if table := kept.pop("run_notes", None):
        kept["run_notes"] = (table["nrows"], table["sha256"])
    return rows, kept, notes, exit_code


def test_the_run_notes_stand_in_a_table_of_the_sweep(sweep, tmp_path):
    with WandbStub() as stub:
        analysis(stub, tmp_path, "publish", sweep, "--entity", "me")
    summary = stub.runs["sweep-20260101-000000-abcd"].summary["run_notes"]
    assert summary["_type"] == "table-file" and summary["nrows"] == 3
    (content,) = [json.loads(body) for name, body in stub.files.items() if name.endswith("run_notes.table.json")]
    assert content["columns"][:4] == ["run", "title", "state", "varied"]
    row = dict(zip(content["columns"], content["data"][0], strict=True))
    assert row["run"] == "aaa" and "lambda2_max=0.1" in row["varied"] and "fvu 0.2500" in row["results"]
    assert content["data"][2][2] == "diverged"


def test_a_run_that_still_trains_is_left_for_later(tmp_path):
    folder = add_run(tmp_path / "outputs", "aaa", state="running", step=3)
    with WandbStub() as stub:
        done = analysis(stub, tmp_path, "publish", folder)
    assert "aaa: running; published once it has ended" in done.stdout and not stub.runs


def test_without_a_key_nothing_is_asked_and_the_status_tells(sweep, tmp_path):
    done = analysis(None, tmp_path, "publish", sweep, expect=1)
    assert "no API key" in done.stdout
    missing = analysis(None, tmp_path, "publish", tmp_path / "nowhere", expect=2)
    assert missing.stderr.startswith("error: ") and "nowhere does not exist" in missing.stderr


def test_offline_files_can_be_sent_later(sweep, tmp_path):
    with WandbStub() as stub:
        analysis(stub, tmp_path, "publish", sweep.parents[1] / "runs" / "aaa", "--mode", "offline")
        assert stub.requests == []
    assert list((sweep.parents[1] / "runs" / "aaa" / "wandb").glob("offline-run-*/run-aaa.wandb"))


def test_the_dashboard_is_saved_once_however_often_it_is_asked_for(sweep, tmp_path):
    with WandbStub() as stub:
        first = analysis(stub, tmp_path, "dashboard", "me/sae-sweeps", sweep)
        second = analysis(stub, tmp_path, "dashboard", "me/sae-sweeps", sweep)
    assert first.stdout == second.stdout and "workspace" in first.stdout and "report" in first.stdout
    workspace, report = sorted(stub.views.values(), key=lambda view: view["type"])
    assert (workspace["type"], report["type"]) == ("project-view", "runs")
    for view in (workspace, report):
        assert view["displayName"] == "SAE sweeps" and view["projectName"] == "sae-sweeps"
        for shown in ("held_out_fvu", "config:penalty.value.lambda2_max", "run_notes", "^penalty/", *NOTED, *EVALUATED):
            assert shown in view["spec"], shown
        assert "pairs/highest/abs_cosine" in view["spec"]
        assert "Parallel Coordinates Plot" in view["spec"] and "Scatter Plot" in view["spec"]


def test_the_dashboard_as_files_asks_nobody(tmp_path):
    with WandbStub() as stub:
        analysis(stub, tmp_path, "dashboard", "me/sae-sweeps", "--dump", tmp_path / "dumped")
        assert stub.requests == []
    for name in ("workspace", "report"):
        assert "held_out_fvu" in json.dumps(json.loads((tmp_path / "dumped" / f"{name}.json").read_text()))


def test_a_project_that_is_none_is_a_sentence(tmp_path):
    for word in ("project", "/x", "a/b/c"):
        done = analysis(None, tmp_path, "dashboard", word, expect=2)
        assert done.stderr.startswith(f"error: {word}: give the project as ENTITY/PROJECT")
    done = analysis(None, tmp_path, "dashboard", "me/sae-sweeps", expect=2)
    assert "wandb login" in done.stderr and "--dump DIR" in done.stderr
