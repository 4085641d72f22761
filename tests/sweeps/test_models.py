"""Local folders in Hugging Face format, local text and names on the hub, through the whole command."""

import json

import pytest
from commands import numbers, read, rows, run, run_folders

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("models")]  # its fixture is made once

SMALL = ["k=4", "d_sae=64", "num_tokens=4096", "batch_size=256", "data.context=32", "eval.recon_batches=2"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A JSONL file of some hundred short documents."""
    path = tmp_path_factory.mktemp("text") / "stories.jsonl"
    words = "the quick brown fox jumps over the lazy dog while seven wizards make toxic brew for an evil queen".split()
    stories = (" ".join(words[(i * j) % len(words)] for j in range(1, 80)) + f" story {i}" for i in range(400))
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    return path


@pytest.mark.parametrize("model", ["tiny_gpt_neox_folder", "tiny_gemma2_folder", "tiny_llama_folder"])
def test_a_local_folder_is_harvested_trained_and_evaluated(model, text, tmp_path, request):
    folder = request.getfixturevalue(model)
    run(f"model={folder}", f"data={text}", "layer=1", *SMALL, f"outputs={tmp_path}")
    (place,) = run_folders(tmp_path)
    results = read(place, "results.json")
    assert read(place, "status.json")["state"] == "completed"
    assert {"fvu", "ce_loss_score", "kl_div_score", "explained_variance", "l0", "mse_per_token"} <= results[
        "metrics"
    ].keys()
    assert results["metrics"]["l0"] <= 4 and rows(place)[-1]["loss"] < rows(place)[0]["loss"]
    cfg = read(place, "sae/cfg.json")
    assert cfg["metadata"]["hook_name"] == "blocks.1.hook_resid_post" and cfg["architecture"] == "topk"
    assert read(place, "evals/core.json")["eval_type_id"] == "core"


@pytest.mark.parametrize("hook", ["mlp_out", "attn_out"])
def test_other_hooks_and_the_standard_architecture(hook, text, tiny_gemma2_folder, tmp_path):
    words = [f"model={tiny_gemma2_folder}", f"data={text}", *SMALL[1:], f"layer={hook}", f"outputs={tmp_path}"]
    run("-m", *words, "layer=0,1", "architecture=standard", "train.normalize_activations=true")
    hooks = {read(f, "sae/cfg.json")["metadata"]["hook_name"] for f in run_folders(tmp_path)}
    assert hooks == {f"blocks.{n}.hook_{hook}" for n in (0, 1)}
    for folder in run_folders(tmp_path):
        assert read(folder, "results.json")["provenance"]["activation_scale"] != 1


def test_a_sweep_over_models_and_the_copy_of_a_model_is_the_same_run(text, tiny_gpt_neox_folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_gpt_neox_folder, copy)
    words = [f"data={text}", *SMALL, f"outputs={tmp_path / 'o'}"]
    done = run("-m", f"model={tiny_gpt_neox_folder},{copy}", *words)
    assert "equal runs" in done.stdout and len(run_folders(tmp_path / "o")) == 1


def test_bfloat16_runs_end_near_float32_ones(text, tiny_llama_folder, tmp_path):
    words = [f"model={tiny_llama_folder}", f"data={text}", *SMALL]
    run("-m", *words, "train.precision=float32,bfloat16", f"outputs={tmp_path}")
    losses = [read(f, "results.json")["metrics"]["fvu"] for f in run_folders(tmp_path)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


def test_short_text_repeats_and_says_so(tmp_path, tiny_gpt_neox_folder):
    path = tmp_path / "short.txt"
    path.write_text("\n\n".join(f"paragraph {i} " + "word " * 600 for i in range(30)))
    run(f"model={tiny_gpt_neox_folder}", f"data={path}", *SMALL, "num_tokens=81920", f"outputs={tmp_path / 'o'}")
    (place,) = run_folders(tmp_path / "o")
    assert any("repeat it" in warning for warning in read(place, "results.json")["warnings"])


def test_wandb_offline_changes_no_number_and_leaves_its_files(text, tiny_gpt_neox_folder, tmp_path):
    words = [f"model={tiny_gpt_neox_folder}", f"data={text}", *SMALL]
    run(*words, f"outputs={tmp_path / 'a'}")
    run(*words, f"outputs={tmp_path / 'b'}", "logger=wandb")
    (a,), (b,) = run_folders(tmp_path / "a"), run_folders(tmp_path / "b")
    assert numbers(a) == numbers(b)
    assert list((b / "wandb").glob("offline-run-*/*.wandb")) and not (a / "wandb").exists()


def test_no_network_is_one_sentence_that_says_what_to_do(tmp_path, text):
    done = run("model=pythia-70m", f"data={text}", *SMALL, f"outputs={tmp_path}", expect=2)
    assert "model=DIR" in done.stderr and "EleutherAI/pythia-70m" in done.stderr and done.stderr.count("\n") == 1
    commit = f"model.revision={'c' * 40}"  # given by the user and unknown to this machine
    done = run("model=pythia-70m", commit, f"data={text}", *SMALL, f"outputs={tmp_path}", expect=1)
    assert "model=DIR" in done.stdout and "EleutherAI/pythia-70m" in done.stdout and "Traceback" not in done.stdout
    done = run("model=hub", "model.path=no-such/model", f"data={text}", *SMALL, f"outputs={tmp_path}", expect=2)
    assert "no-such/model" in done.stderr and done.stderr.count("\n") == 1


def test_a_missing_field_and_a_missing_column_are_named(tmp_path, tiny_gpt_neox_folder, text):
    words = [f"model={tiny_gpt_neox_folder}", f"data={text}", *SMALL, f"outputs={tmp_path}"]
    done = run(*words, "data.text_field=body", expect=2)
    assert "body" in done.stderr and done.stderr.count("\n") == 1
