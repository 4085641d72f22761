"""`python -m sae_sweeps evaluate` on runs, sweeps and foreign SAEs, and what `launch.py eval=...` leaves."""

import json
import re
import shutil

import pytest
import torch
from commands import read, run, run_folders
from safetensors.torch import load_file, save_file

from sae_sweeps.cli import evaluate as command
from sae_sweeps.cli.compose import compose_points
from sae_sweeps.errors import ConfigError, DamagedFile
from sae_sweeps.runs.evaluate import Failure
from tests.judge_stub import judge_stub

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("evaluate")]  # its fixture is made once

TINY = ["d_sae=64", "k=4", "num_tokens=4096", "batch_size=256", "layer=1", "eval=none", "train.held_out_tokens=0"]
LITTLE = [
    "eval.probing={train_rows: 40, test_rows: 20, context: 32, k_values: [1, 2], datasets: [builtin/topics_set1]}",
    "eval.ablation={train_rows: 40, test_rows: 20, n_values: [2, 200], probe_epochs: 2}",
    "eval.hierarchy={folds: 2, rows: 8, k_values: [1]}",
    "eval.absorption.epochs=3",
    "eval.absorption.min_letters=1",
    "eval.absorption.min_probe_f1=0.01",
    "eval.unlearning={contexts: 4, n_features: [2], multipliers: [20], retain_thresholds: [0.5]}",
    "eval.recon_batches=1",
    "eval.sparsity_batches=1",
    "eval.batch_size=4",
]
OF_TPP, OF_CORE = LITTLE[:2], LITTLE[-3:]
ALL = "eval.evaluations=[core,separation,sparse_probing,hierarchy,tpp,scr,absorption,unlearning]"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Two runs and a copy of one of their SAEs, evaluated together."""
    outputs = tmp_path_factory.mktemp("outputs")
    run("-m", *TINY, "seed=0,1", f"outputs={outputs}")
    first = run_folders(outputs)[0]
    foreign = outputs / "elsewhere" / "my_sae"
    shutil.copytree(first / "sae", foreign)
    done = run("evaluate", outputs, foreign, ALL, *LITTLE, f"outputs={outputs}", module="sae_sweeps")
    return outputs, foreign, done.stdout


def comparable(path):
    content = json.loads(path.read_text())
    for key in ("eval_id", "datetime_epoch_millis", "sae_lens_release_id"):
        content.pop(key)
    return content


def test_everything_is_scored_in_saebenchs_form_and_named_builtin(evaluated):
    outputs, foreign, out = evaluated
    for name in ("sparse_probing", "hierarchy", "tpp", "scr", "absorption", "unlearning"):
        assert f"{name}: 3 done in" in out or f"{name}: 2 done in" in out
    folder = run_folders(outputs)[0]
    metrics = read(folder, "results.json")["metrics"]
    wanted = {
        "builtin_sae_top_1_test_accuracy", "builtin_sae_test_accuracy", "builtin_llm_test_accuracy",
        "builtin_tpp_threshold_2_total_metric", "builtin_scr_dir1_threshold_200", "builtin_mean_absorption_score",
        "builtin_unlearning_score", "builtin_hierarchy_fine_top_1_accuracy", "fvu", "ce_loss_score",
    }  # fmt: skip
    assert wanted <= metrics.keys() and "sae_top_1_test_accuracy" not in metrics
    content = read(folder, "evals/sparse_probing.json")
    assert (
        content["eval_type_id"] == "sparse_probing"
        and content["eval_result_unstructured"]["sae_sweeps"]["data"] == "builtin"
    )
    assert content["eval_result_details"][0]["dataset_name"] == "builtin/topics_set1_results"
    assert read(folder, "evals/absorption.json")["eval_type_id"] == "absorption_first_letter"
    assert any("n_values 200 exceed d_sae = 64" in warning for warning in read(folder, "results.json")["warnings"])
    assert "builtin_" in out and str(foreign / "evals") in out


def test_a_foreign_sae_gets_the_numbers_of_the_run_that_it_was(evaluated):
    outputs, foreign, _ = evaluated
    folder = run_folders(outputs)[0]
    for name in ("core", "sparse_probing", "tpp", "scr", "absorption", "unlearning", "hierarchy"):
        assert comparable(foreign / "evals" / f"{name}.json") == comparable(folder / "evals" / f"{name}.json"), name
    table = run("table", foreign, "--format", "json", module="analysis").stdout
    assert "my_sae" in table and "builtin_sae_top_1_test_accuracy" in table


def test_alone_and_with_a_warm_cache_the_files_are_the_same(evaluated, tmp_path):
    outputs, foreign, _ = evaluated
    second = run_folders(outputs)[1]
    copy = tmp_path / "alone"
    shutil.copytree(second / "sae", copy)
    for cache in (tmp_path / "cold", outputs):  # with nothing kept, and with all that the others left
        run("evaluate", copy, ALL, *LITTLE, f"outputs={cache}", module="sae_sweeps")
        for name in ("sparse_probing", "tpp", "scr", "absorption", "unlearning", "hierarchy"):
            assert comparable(copy / "evals" / f"{name}.json") == comparable(second / "evals" / f"{name}.json"), name
        shutil.rmtree(copy / "evals")


def test_what_is_done_is_skipped_and_a_changed_setting_is_not(evaluated):
    outputs, _, _ = evaluated
    before = {path: path.stat().st_mtime_ns for path in outputs.glob("runs/*/evals/*.json")}
    out = run("evaluate", outputs, ALL, *LITTLE, f"outputs={outputs}", module="sae_sweeps").stdout
    assert out.count("done before") == 2 and before == {path: path.stat().st_mtime_ns for path in before}
    words = [*LITTLE, "eval.hierarchy.folds=3"]
    out = run("evaluate", outputs, ALL, *words, f"outputs={outputs}", module="sae_sweeps").stdout
    assert "hierarchy: 2 done in" in out and "tpp: 0 done in 0.0 s, 2 done before" in out


def test_the_config_of_the_results_has_the_settings_of_every_evaluation(evaluated, tmp_path):
    outputs, foreign, _ = evaluated
    folder = shutil.copytree(run_folders(outputs)[0], tmp_path / "runs" / run_folders(outputs)[0].name)
    copy = shutil.copytree(foreign, tmp_path / "my_sae")
    for place in (folder, copy):
        before = read(place, "results.json")["config"]["eval"]
        words = ["eval.features.tokens=512", "eval.features.examples=2"]
        run("evaluate", place, "eval=features", *words, f"outputs={outputs}", module="sae_sweeps")
        results = read(place, "results.json")
        found = results["config"]["eval"]
        assert found["evaluations"] == [*before["evaluations"], "features"]
        assert found["features"]["tokens"] == 512 and found["name"] == before["name"]
        same = found.keys() - {"evaluations", "features"}
        assert {key: found[key] for key in same} == {key: before[key] for key in same}
        assert not any("other settings" in warning for warning in results["warnings"])
        # evaluations whose settings one config cannot hold are named in a warning
        words = ["eval.evaluations=[separation,tpp]", *OF_TPP, "eval.seed=1"]
        run("evaluate", place, *words, f"outputs={outputs}", module="sae_sweeps")
        results = read(place, "results.json")
        assert results["config"]["eval"]["seed"] == 1
        (warning,) = [warning for warning in results["warnings"] if "other settings" in warning]
        assert warning == (
            "absorption, features, hierarchy, scr, sparse_probing, unlearning: measured by other settings than "
            "config.eval, those in evals/NAME.summary.json"
        )
        run("evaluate", place, ALL, *LITTLE, f"outputs={outputs}", module="sae_sweeps")
        results = read(place, "results.json")
        assert not any("other settings" in warning for warning in results["warnings"])
        assert results["config"]["eval"]["features"]["tokens"] == 512


def test_one_failing_evaluation_leaves_the_others_and_says_so(evaluated, tmp_path):
    outputs, foreign, _ = evaluated
    copy = tmp_path / "sae"
    shutil.copytree(foreign, copy, ignore=shutil.ignore_patterns("evals", "results.json"))
    words = [*OF_TPP, *OF_CORE, f"outputs={outputs}", "eval.evaluations=[tpp,core]", "eval.probing.train_rows=4"]
    words += ["eval.probing.test_rows=4", f"eval.data={tmp_path}"]
    done = run("evaluate", copy, *words, expect=1, module="sae_sweeps")
    assert "evaluation tpp failed" in done.stdout and "hf download LabHC/bias_in_bios" in done.stdout
    assert (copy / "evals/core.json").exists() and "Traceback" not in done.stdout + done.stderr
    assert any("evaluation tpp failed" in warning for warning in read(copy, "results.json")["warnings"])


def test_damaged_runs_leave_the_others(evaluated, tmp_path):
    outputs, _, _ = evaluated
    first, second = (tmp_path / "runs" / f"{n}-{folder.name}" for n, folder in enumerate(run_folders(outputs)))
    third = tmp_path / "runs" / "third"
    for source, copy in zip((*run_folders(outputs), run_folders(outputs)[0]), (first, second, third), strict=True):
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("evals", "results.json"))
    (first / "config.yaml").write_text("model: [")
    (second / "sae/sae_weights.safetensors").write_bytes(b"cut")
    done = run("evaluate", tmp_path, "eval.evaluations=[separation]", expect=1, module="sae_sweeps")
    assert f"error: {first.name}: " in done.stdout and f"{second.name}: error: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert [(folder / "results.json").exists() for folder in (first, second, third)] == [False, False, True]


def test_a_mistake_of_the_command_is_named_before_a_damaged_run(monkeypatch, tmp_path):
    errors = {"a": DamagedFile("a is damaged"), "b": ConfigError("eval.evaluations=x: must be one of core")}

    def of_run(folder, cfg):
        raise errors[folder.name]

    monkeypatch.setattr(command, "folders_at", lambda paths, words: [(path, True) for path in paths])
    monkeypatch.setattr(command, "of_run", of_run)
    with pytest.raises(ConfigError, match="must be one of core"):
        command.find_targets([tmp_path / "a", tmp_path / "b"], None, [])


def test_numbers_that_a_failed_evaluation_left_before_are_called_earlier_ones(tmp_path):
    failure = Failure("run", "tpp", "no network.")
    assert failure.warning(tmp_path) == str(failure)
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals/tpp.summary.json").write_text("{}")
    assert (
        failure.warning(tmp_path)
        == "evaluation tpp failed: no network; its numbers here are earlier ones, by other settings"
    )


@pytest.mark.parametrize("word", ["eval=none", "eval.evaluations=[]"])
def test_nothing_to_evaluate_is_refused(word, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(f"{word}: leaves nothing to evaluate")):
        command.evaluate([tmp_path], [word])


def test_a_broken_and_a_dead_sae_are_told_of(evaluated, tmp_path):
    outputs, foreign, _ = evaluated
    for name, value in (("dead", -100.0), ("broken", float("nan"))):
        copy = tmp_path / name
        shutil.copytree(foreign, copy, ignore=shutil.ignore_patterns("evals", "results.json"))
        weights = load_file(copy / "sae_weights.safetensors")
        weights["b_enc"] = torch.full_like(weights["b_enc"], value)
        save_file(weights, copy / "sae_weights.safetensors")
    words = [ALL, *LITTLE, f"outputs={outputs}"]
    run("evaluate", tmp_path / "dead", tmp_path / "broken", *words, module="sae_sweeps")
    dead, broken = (read(tmp_path / name, "results.json") for name in ("dead", "broken"))
    assert any("the SAE is dead" in warning for warning in dead["warnings"])
    assert any("at chance" in warning for warning in dead["warnings"])
    assert "tpp: not evaluated: the SAE's b_enc is not finite" in broken["warnings"]
    assert "builtin_sae_top_1_test_accuracy" not in broken["metrics"]
    assert all((tmp_path / "broken/evals" / f"{name}.json").exists() for name in ("tpp", "scr", "absorption"))


def test_a_judge_that_fails_midway_is_asked_only_for_the_rest(evaluated, tmp_path):
    _, foreign, _ = evaluated
    copy = tmp_path / "sae"
    shutil.copytree(foreign, copy, ignore=shutil.ignore_patterns("evals", "results.json"))
    with judge_stub() as server:
        asked = (
            f"{{judge: 'http://127.0.0.1:{server.server_port}/v1', n_latents: 2, total_tokens: 8192, concurrency: 1}}"
        )
        words = [copy, "eval.evaluations=[autointerp]", f"eval.autointerp={asked}", f"outputs={tmp_path}"]
        done = run("evaluate", *words, expect=1, module="sae_sweeps")
        assert "4 requests" in done.stdout and "confirm=true" in done.stdout and server.requests == []
        server.failures = [None, 401, 401]
        words.append("eval.autointerp.confirm=true")
        assert "the server answered 401" in run("evaluate", *words, expect=1, module="sae_sweeps").stdout
        server.failures.clear()
        server.requests.clear()
        done = run("evaluate", *words, module="sae_sweeps")
        assert "3 requests" in done.stdout and "(1 answered before)" in done.stdout
        assert (
            len(server.requests) == 3 and len((copy / "evals/autointerp.answers.jsonl").read_bytes().split(b"\n")) == 5
        )
        assert read(copy, "results.json")["metrics"]["builtin_autointerp_score"] == pytest.approx(10 / 14)


def test_a_launch_evaluates_too_and_a_failure_ends_it_with_1(tmp_path):
    words = [w for w in TINY if w != "eval=none"] + ["eval.evaluations=[sparse_probing]", *LITTLE[:1]]
    run(*words, f"outputs={tmp_path}")
    (folder,) = run_folders(tmp_path)
    assert "builtin_sae_top_2_test_accuracy" in read(folder, "results.json")["metrics"]
    done = run(*words, f"outputs={tmp_path}", f"eval.data={tmp_path}", "eval.probing.datasets=null", expect=1)
    assert "evaluation sparse_probing failed" in done.stdout
    assert read(folder, "status.json")["state"] == "completed"


def test_mistakes_are_one_sentence(evaluated, tmp_path):
    outputs, foreign, _ = evaluated
    mistakes = {
        ("nowhere",): "nowhere does not exist",
        (foreign, "seed=3"): "seed=3: evaluate trains nothing",
        (foreign, "layer=0,1"): "one value of each key",
        (foreign, "eval.evaluations=[coer]"): "eval.evaluations=coer: must be one of core",
        (foreign, "model=gpt2"): "the SAE reads d_in=160",
        (foreign, "data.max_norm=10"): "judged within the norm that it was trained under",
        (tmp_path,): "holds no trained SAE",
        ("eval=full",): "evaluate needs a path",
        (foreign, "eval.probing.k_values=abc"): "eval.probing.k_values=abc",
        (foreign, "eval.ablation.n_values=[0]"): "eval.ablation.n_values=[0]: give numbers above 0",
        (foreign, "eval.hierarchy.folds=2"): "eval.hierarchy.folds=2: no evaluation of this command reads it (eval.",
    }
    for words, message in mistakes.items():
        done = run("evaluate", *words, expect=2, module="sae_sweeps")
        assert message in done.stderr and done.stderr.count("\n") == 1, (words, done.stderr)


def test_where_a_foreign_sae_belongs_is_read_from_its_cfg(tmp_path):
    assert command.model_words("builtin", tmp_path) == ["model=builtin"]
    assert command.model_words("google/gemma-2-2b", tmp_path) == ["model=gemma-2-2b"]
    assert command.model_words("gemma-2-2b", tmp_path) == ["model=gemma-2-2b"]
    assert command.model_words("org/other", tmp_path) == ["model=hub", "model.path=org/other"]
    assert command.layer_words("blocks.12.hook_mlp_out", tmp_path) == ["layer=mlp_out", "layer.index=12"]
    assert command.data_words("wikitext", "builtin") == ["data=wikitext"]
    assert command.data_words(None, "openwebtext") == ["data=openwebtext"]
    (point,) = compose_points(["eval=full"])
    assert point.cfg.eval.recon_batches == 200
