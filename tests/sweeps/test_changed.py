"""A model or text that is another one since: a new run where it is launched, a sentence where a run reads it again."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from commands import read, run, run_folders
from hub_stub import A, B, cached
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

TINY = ["k=4", "d_sae=64", "num_tokens=2048", "batch_size=256", "data.context=32", "train.held_out_tokens=0"]
CORE = ["eval=core", "eval.recon_batches=1", "eval.sparsity_batches=1"]


def write_text(path, words):
    chosen = random.Random(0)
    rows = (" ".join(chosen.choice(words.split()) for _ in range(100)) for _ in range(60))
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_moved_branch_trains_anew_and_the_old_run_keeps_its_commit(tiny_gpt_neox_folder, tmp_path):
    cache, name = Path(os.environ["HF_HUB_CACHE"]), "org/moved"
    text = write_text(tmp_path / "text.jsonl", "the cat sat on a mat and ran to the old house")
    words = ["model=hub", f"model.path={name}", f"data={text}", *TINY, f"outputs={tmp_path / 'o'}"]
    cached(cache, "model", name, A, tiny_gpt_neox_folder)
    run(*words, "eval=none")
    (first,) = run_folders(tmp_path / "o")
    before = contents(first)
    assert f"revision: {A}" in (first / "config.yaml").read_text()
    assert read(first, "identity.json")["model"]["digest"] == f"hub:{name}@{A}"
    assert "complete, skipped" in run(*words, "eval=none").stdout

    cached(cache, "model", name, B, tiny_gpt_neox_folder)
    weights = cache / "models--org--moved" / "snapshots" / B / "model.safetensors"
    torch.manual_seed(1)
    save_file({key: w + 0.1 * torch.randn_like(w) for key, w in load_file(weights).items()}, weights, {"format": "pt"})
    assert "complete, skipped" not in run(*words, "eval=none").stdout
    (second,) = set(run_folders(tmp_path / "o")) - {first}
    assert contents(first) == before
    assert read(second, "results.json")["config"]["model"]["revision"] == B
    assert read(first, "results.json")["metrics"]["final_loss"] != read(second, "results.json")["metrics"]["final_loss"]

    run("evaluate", first, second, *CORE, module="sae_sweeps")
    ce = [read(folder, "results.json")["metrics"]["ce_loss_without_sae"] for folder in (first, second)]
    assert ce[0] != ce[1]  # each on its own commit, though the branch is at one of them


def test_a_text_that_is_another_one_is_named_and_nothing_is_stored(tmp_path):
    text = write_text(tmp_path / "text.jsonl", "the cat sat on a mat and ran to the old house")
    words = ["data=jsonl", "data.path=text.jsonl", *TINY, f"outputs={tmp_path / 'o'}"]
    launch = [*words, "eval=none"]
    run(*launch, cwd=tmp_path)
    (folder,) = run_folders(tmp_path / "o")
    before = contents(folder)
    write_text(tmp_path / "elsewhere" / "text.jsonl", "completely different words live inside this file")
    done = run("evaluate", folder, *CORE, module="sae_sweeps", cwd=tmp_path / "elsewhere", expect=2)
    assert "data.path=text.jsonl holds other text than the run's" in done.stderr and done.stderr.count("\n") == 1
    assert contents(folder) == before
    kept = text.read_bytes()
    write_text(text, "completely different words live inside this file")
    (sweep,) = (tmp_path / "o" / "sweeps").iterdir()
    done = run("resume", sweep, module="sae_sweeps", expect=2)
    assert "data.path=text.jsonl holds other text than the run's" in done.stderr and done.stderr.count("\n") == 1
    run(*launch, cwd=tmp_path)  # the same command is a run of its own now
    assert len(run_folders(tmp_path / "o")) == 2 and contents(folder) == before
    text.write_bytes(kept)
    run("evaluate", folder, *CORE, module="sae_sweeps", cwd=tmp_path)
    assert read(folder, "results.json")["warnings"] == json.loads(before[Path("results.json")])["warnings"]


def test_a_run_of_an_earlier_version_is_evaluated_with_a_warning(tmp_path):
    run("model=builtin", *TINY, "eval=none", f"outputs={tmp_path / 'o'}")
    (folder,) = run_folders(tmp_path / "o")
    (folder / "identity.json").unlink()
    run("evaluate", folder, *CORE, module="sae_sweeps")
    assert not any("may be others" in warning for warning in read(folder, "results.json")["warnings"])
    other = folder.rename(folder.with_name("0" * 12))  # as where the id was made otherwise
    done = run("evaluate", other, *CORE, "eval.recon_batches=2", module="sae_sweeps")
    assert "the model and the text may be others than it was trained on" in done.stdout
    assert any("may be others" in warning for warning in read(other, "results.json")["warnings"])
