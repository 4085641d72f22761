"""What a whole run leaves beside its SAE: monitors, held-out curve, feature separation."""

import json

import numpy as np
import pytest
from commands import SMALL, read, rows, run, run_folders

pytestmark = pytest.mark.slow


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_monitors_snapshots_and_the_held_out_curve(tmp_path):
    run(*SMALL, "penalty=ortho", "base_threshold=0.02", "train.monitor_every=4", f"outputs={tmp_path}")
    (folder,) = run_folders(tmp_path)
    followed = [row["step"] for row in rows(folder) if "held_out_fvu" in row]
    assert followed == [0, 4, 8, 12, 16, 19] == [row["step"] for row in rows(folder) if "grad_norm/recon_enc" in row]
    competition = [row for row in lines(folder / "monitors.jsonl") if row["monitor"] == "competition"]
    assert [row["step"] for row in competition] == [5, 8, 12, 16, 19]  # from a quarter on
    assert {len(row["pairs"]) for row in competition} == {len(competition[0]["c"])}
    assert all(row["pairs"] == competition[0]["pairs"] for row in competition)
    for percent in (25, 50, 75, 100):
        shot = np.load(folder / "monitors" / f"similarity_{percent}.npz")
        assert shot["histogram"].sum() == 128 * 127 / 2 and shot["block"].shape == (128, 128)
    metrics = read(folder, "results.json")["metrics"]
    assert {"nearest_neighbour_cosine", "recovery_share", "recovery_mmcs_correlated"} <= metrics.keys()
    out = run("table", tmp_path, "--target-fvu", "0.99", "--format", "json", module="analysis").stdout
    assert "tokens_to_fvu" in out


def test_an_sae_that_is_trained_without_outliers_is_judged_without_them(tmp_path):
    """Beside one of every token; the held-out curve ends at what core measures."""
    small = ["k=8", "d_sae=64", "num_tokens=2048", "batch_size=256", "train.monitor_every=4", f"outputs={tmp_path}"]
    small += ["eval.batch_size=4", "eval.recon_batches=1", "eval.sparsity_batches=2", "train.held_out_tokens=2000"]
    run("-m", *small, "data.max_norm=null,1.2", "activations.mode=disk")
    configs = {folder: read(folder, "results.json")["config"] for folder in run_folders(tmp_path)}
    found = {config["data"]["max_norm"]: folder for folder, config in configs.items()}
    assert len(list((tmp_path / "activations").glob("*/meta.json"))) == 1  # harvested once
    for max_norm, folder in found.items():
        results, last = read(folder, "results.json"), rows(folder)[-1]
        norms, metrics = results["provenance"]["norms"], results["metrics"]
        limit = None if max_norm is None else pytest.approx(1.2 * norms["median"])
        assert norms["limit"] == limit == read(folder, "sae/cfg.json")["metadata"].get("norm_limit")
        assert 0 < norms["top_variance"] < 0.2 and not any("thousandth" in text for text in results["warnings"])
        for name in ("fvu", "fvu_per_token"):
            assert last[f"held_out_{name}"] == pytest.approx(metrics[name], rel=1e-6)
    every, limited = found[None], found[1.2]
    assert read(every, "results.json")["provenance"]["norms"]["left_out"] == 0
    share = read(limited, "results.json")["metrics"]["outlier_tokens"]
    assert 0 < share < 0.2 and "outlier_tokens" not in read(every, "results.json")["metrics"]
    run("evaluate", limited, "eval.exclude_outliers=false", "eval.evaluations=[core]", *small[6:9], module="sae_sweeps")
    again = read(limited, "results.json")["metrics"]
    assert "outlier_tokens" not in again and again["fvu"] != rows(limited)[-1]["held_out_fvu"]


def test_a_group_layer_that_acts_at_inference_has_no_sae_and_is_judged_all_the_same(tmp_path):
    words = [*SMALL, "penalty=bottleneck", "group_layer.competition=true", f"outputs={tmp_path}"]
    out = run(*words).stdout
    (folder,) = run_folders(tmp_path)
    assert "there will be no sae/" in out and not (folder / "sae").exists()
    first = read(folder, "results.json")
    assert any("group_layer.competition_train_only=true" in warning for warning in first["warnings"])
    run(*words, "eval.composition=true")  # from the checkpoint, nothing trained
    second = read(folder, "results.json")
    assert second["metrics"].items() >= first["metrics"].items() and "composition_rate" in second["metrics"]
    assert second["provenance"] == first["provenance"]


def test_features_against_labels_and_groups_by_corpus_on_a_local_model(tmp_path, tiny_llama_folder):
    corpus = tmp_path / "text.jsonl"
    texts = {"forget": "the virus of sample {} spreads", "retain": "def number_{}(self): return 1"}
    made = [{"text": texts[kind].format(i), "set": kind} for i in range(400) for kind in texts]
    corpus.write_text("\n".join(map(json.dumps, made)))
    small = ["k=4", "d_sae=64", "num_tokens=2048", "batch_size=128", "data.context=32", "eval.recon_batches=1"]
    small += ["eval.sparsity_batches=1", "eval.batch_size=2", "eval.label_tokens=200", "train.held_out_tokens=64"]
    data = [f"model={tiny_llama_folder}", f"data={corpus}", "data.label_field=set", f"outputs={tmp_path / 'out'}"]
    run("-m", *small, *data, "penalty=selective_ortho,contrastive", "penalty.lambda2_max=0.1", expect=0)
    folders = run_folders(tmp_path / "out")
    assert len(folders) == 2
    for folder in folders:
        metrics = read(folder, "results.json")["metrics"]
        assert 0 <= metrics["nmi"] <= 1 and -1 <= metrics["silhouette"] <= 1 and 0 <= metrics["feature_mi"] <= 1
    words = [*small, *data, "penalty=selective_ortho", "penalty.grouping=corpus"]
    run(*words)
    run(*small, *data, "penalty=contrastive", "penalty.positives=pairs")
    assert len(run_folders(tmp_path / "out")) == 4
