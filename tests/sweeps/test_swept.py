"""The contract's own command on a small scale, looked at from all sides. One sweep serves all: its file goes to one
worker."""

import json

import pytest
from commands import SMALL, read, rows, run, run_folders

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("swept")]  # its fixture is made once


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("swept")
    words = ["-m", *SMALL, "num_tokens=102400", "penalty=ortho", "lambda2_max=0.1,0.5,1.0"]
    words += [f"outputs={outputs}", "report=true"]
    return outputs, words, run(*words)


def test_three_runs_complete_and_more_weight_means_less_overlap(swept):
    outputs, _, done = swept
    results = sorted((read(f, "results.json") for f in run_folders(outputs)), key=lambda r: r["title"])
    assert [r["title"] for r in results] == ["lambda2_max=0.1", "lambda2_max=0.5", "lambda2_max=1.0"]
    penalties = [r["metrics"]["penalty_loss"] for r in results]
    assert penalties == sorted(penalties, reverse=True) and len(set(penalties)) == 3
    for title in ("0.1", "0.5", "lambda2_", "fvu"):
        assert title in done.stdout
    assert all(read(f, "status.json")["state"] == "completed" for f in run_folders(outputs))


def test_a_run_folder_holds_what_the_contract_lists(swept):
    outputs, _, _ = swept
    for folder in run_folders(outputs):
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert {
            "config.yaml", "status.json", "metrics.jsonl", "results.json", "evals/core.json", "sae/cfg.json",
            "sae/sae_weights.safetensors", "checkpoint/state.safetensors",
        } <= names  # fmt: skip
        assert not any(name.endswith(".tmp") for name in names)
        keys = rows(folder)[-1].keys()
        assert {
            "step", "tokens", "loss", "recon_loss", "sparsity_loss", "penalty_loss", "penalty_weight", "l0", "fvu",
            "dead_features", "grad_norm/recon", "grad_norm/penalty", "lr", "k", "tokens_per_s", "penalty/threshold",
        } <= keys  # fmt: skip
        results = read(folder, "results.json")
        assert {
            "format_version", "run_id", "title", "config", "metrics", "provenance", "warnings",
        } == results.keys()  # fmt: skip
        recorded = results["provenance"].keys()
        assert {"git_commit", "packages", "device", "threads", "kernels", "selection"} <= recorded
        assert {"wall_time_s", "tokens_per_s"} <= recorded
        assert results["metrics"]["final_loss"] == rows(folder)[-1]["loss"]
        assert "${" not in (folder / "config.yaml").read_text()


def test_a_second_launch_trains_nothing_and_prints_the_table_again(swept):
    outputs, words, first = swept
    before = {path: path.stat().st_mtime_ns for f in run_folders(outputs) for path in f.rglob("*") if path.is_file()}
    again = run(*words)
    after = {path: path.stat().st_mtime_ns for path in before}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed <= {"lease.lock"}
    assert again.stdout.count("complete, skipped") == 3
    assert first.stdout.split("\n\n")[1].split("runs ")[0] == again.stdout.split("\n\n")[1].split("runs ")[0]
    assert len(list((outputs / "sweeps").iterdir())) == 2


def test_the_manifest_lists_runs_and_links_lead_to_them(swept):
    outputs, _, _ = swept
    sweep = min((outputs / "sweeps").iterdir())
    manifest = read(sweep, "manifest.json")
    assert {r["run_id"] for r in manifest["runs"]} == {f.name for f in run_folders(outputs)}
    links = [path for path in sweep.iterdir() if path.is_symlink()]
    assert {link.resolve().name for link in links} == {r["run_id"] for r in manifest["runs"]}
    assert any("lambda2_max=0.5" in link.name for link in links)


def test_a_launch_ends_with_its_report(swept):
    outputs, _, first = swept
    page = min((outputs / "sweeps").iterdir()) / "report.html"
    assert f"report  {page}" in first.stdout and "lambda2_max=0.5" in page.read_text()


def test_eval_never_retrains(swept):
    outputs, words, _ = swept
    trained = {f: (f / "checkpoint" / "state.safetensors").stat().st_mtime_ns for f in run_folders(outputs)}
    run(*words, "eval.sparsity_batches=2")
    for folder, time in trained.items():
        assert (folder / "checkpoint" / "state.safetensors").stat().st_mtime_ns == time
        assert read(folder, "evals/core.summary.json")["settings"]["sparsity_batches"] == 2
        assert read(folder, "status.json")["state"] == "completed"


def test_results_are_json_without_nan(swept):
    outputs, _, _ = swept

    def refuse(name):
        pytest.fail(f"{name} is not JSON")

    for path in outputs.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=refuse)
