"""SAEBench's result files, older and of today, and this project's own, as imported runs."""

import json

import pytest

from analysis.auditing.audit import audit
from analysis.reading.import_files import write_import
from analysis.reading.records import records
from analysis.reading.sources import read_sources
from sae_sweeps.errors import DataError
from sae_sweeps.evaluation.result import Result
from sae_sweeps.storage.files import write_json

CFG = {
    "d_in": 64, "d_sae": 512, "hook_layer": 4, "hook_name": "blocks.4.hook_resid_post",
    "model_name": "pythia-70m-deduped", "architecture": "topk", "activation_fn_kwargs": {"k": 20},
}  # fmt: skip


def result(kind, metrics, model="pythia-70m-deduped", **more):
    return {
        "eval_type_id": kind,
        "eval_config": {"model_name": model, "random_seed": 42},
        "eval_result_metrics": metrics,
        "eval_result_details": [{"mean_absorption_score": 9.0}],
        "sae_lens_id": "blocks.4.hook_resid_post__trainer_10",
        "sae_lens_release_id": "sae_bench_pythia70m",
        "sae_cfg_dict": CFG,
        "eval_result_unstructured": {},
    } | more


OLDER = {
    "core": {
        "reconstruction_quality": {"explained_variance": 0.75, "mse": 1.6, "cossim": -1},
        "model_performance_preservation": {"ce_loss_score": 0.98},
        "sparsity": {"l0": 20.0, "l1": 9.0},
    },
    "absorption_first_letter": {"mean": {"mean_absorption_score": 0.03, "mean_num_split_features": 1.4}},
    "sparse_probing": {"llm": {"llm_top_1_test_accuracy": 0.65}, "sae": {"sae_top_1_test_accuracy": 0.74}},
    "scr": {"scr_metrics": {"scr_metric_threshold_10": -1.0, "scr_dir1_threshold_10": 0.1}},
    "tpp": {"tpp_metrics": {"tpp_threshold_10_total_metric": 0.02}},
    "unlearning": {"unlearning": {"unlearning_score": 0.06}},
    "autointerp": {"autointerp": {"autointerp_score": 0.8, "autointerp_std_dev": None}},
}


def test_the_older_files_of_one_sae_are_one_run(tmp_path):
    for kind, metrics in OLDER.items():
        write_json(tmp_path / "results" / kind / "sae_eval_results.json", result(kind, metrics))
    (found,) = read_sources([tmp_path / "results"])
    path, _ = write_import(found, tmp_path)
    assert path.name == "sae_bench_pythia70m_blocks.4.hook_resid_post__trainer_10.json"
    (run,) = found.runs
    assert run["metrics"] == {
        "mean_absorption_score": 0.03, "mean_full_absorption_score": 0.03, "mean_num_split_features": 1.4,
        "autointerp_score": 0.8, "autointerp_std_dev": None, "explained_variance_legacy": 0.75, "mse": 1.6,
        "cossim": None, "ce_loss_score": 0.98, "l0": 20.0, "l1": 9.0, "scr_metric_threshold_10": -1.0,
        "scr_dir1_threshold_10": 0.1, "llm_top_1_test_accuracy": 0.65, "sae_top_1_test_accuracy": 0.74,
        "tpp_threshold_10_total_metric": 0.02, "unlearning_score": 0.06,
    }  # fmt: skip
    frame = records([path])
    row = frame.iloc[0]
    assert row["config", "model"] == "pythia-70m-deduped" and row["config", "layer.index"] == 4
    assert (row["config", "architecture.d_sae"], row["config", "architecture.k"]) == (512, 20)
    assert {f.code for f in audit(frame)} == {"dead", "import-doubt", "reported"}


def test_todays_core_keeps_both_variances(tmp_path):
    metrics = {"reconstruction_quality": {"explained_variance": -3.0, "explained_variance_legacy": 0.75}}
    write_json(tmp_path / "core.json", result("core", metrics, sae_lens_id="custom_sae"))
    (found,) = read_sources([tmp_path / "core.json"])
    assert found.name == "sae_bench_pythia70m"
    assert found.runs[0]["metrics"] == {"explained_variance": -3.0, "explained_variance_legacy": 0.75}


def test_files_of_this_project_keep_what_saebench_has_no_place_for(tmp_path):
    cfg = {"d_in": 8, "d_sae": 16, "architecture": "topk", "metadata": {"hook_name": "blocks.2.hook_mlp_out"}}
    metrics = {"unlearning": {"unlearning_score": 0.1, "other": None}}
    ours = Result("unlearning", "mine", cfg, {}, metrics, data="builtin", also={"extra": 2.0}, warnings=["few"])
    write_json(tmp_path / "evals" / "unlearning.json", ours.to_json())
    write_json(tmp_path / "evals" / "unlearning.summary.json", {"settings": {}, "metrics": {}, "warnings": []})
    (found,) = read_sources([tmp_path / "evals"])
    assert found.name == "mine"
    wanted = {"builtin_unlearning_score": 0.1, "builtin_other": None, "builtin_extra": 2.0}
    assert found.runs[0]["metrics"] == wanted
    assert found.runs[0]["config"]["layer.index"] == 2 and found.runs[0]["config"]["layer.hook"] == "mlp_out"


def test_results_by_sae_name(tmp_path):
    both = {name: {"eval_result_metrics": {"sparsity": {"l0": l0}}} for name, l0 in (("one", 1.0), ("two", 2.0))}
    (tmp_path / "x.json").write_text(json.dumps(both))
    assert [(found.name, found.runs[0]["metrics"]) for found in read_sources([tmp_path])] == [
        ("one", {"l0": 1.0}), ("two", {"l0": 2.0}),
    ]  # fmt: skip


def test_another_model_and_two_words_for_one_number(tmp_path):
    write_json(tmp_path / "a.json", result("core", {"sparsity": {"l0": 1.0}}, model="gemma-2-2b"))
    path, _ = write_import(read_sources([tmp_path / "a.json"])[0], tmp_path / "to")
    (finding,) = [f for f in audit(records([path])) if f.code == "eval-model"]
    assert finding.sentence == "trained on model pythia-70m-deduped, evaluated on gemma-2-2b."
    write_json(tmp_path / "b.json", result("core", {"sparsity": {"l0": 2.0}}))
    with pytest.raises(DataError, match="l0 of .* is 2.0 here and 1.0 in another file"):
        read_sources([tmp_path / "a.json", tmp_path / "b.json"])
