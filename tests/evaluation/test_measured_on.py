"""Every evaluation records the model, layer and hook that it ran on, and is done again where they are others."""

import gc
import json
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from toy_lm import toy_sae

from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config import evaluations
from sae_sweeps.config.evaluations import EVALUATIONS, EvalConfig, Evaluation, find_evaluation, same_settings
from sae_sweeps.config.facts import BUILTIN_MODEL
from sae_sweeps.config.identity import run_id
from sae_sweeps.config.run import run_config
from sae_sweeps.errors import ConfigError
from sae_sweeps.evaluation.result import Numbers, Result
from sae_sweeps.runs.evaluate import Subject, evaluate_group, is_done, judged, wanted
from sae_sweeps.runs.session import RunSession
from sae_sweeps.storage.run_folder import read_summary

GEMMA = ["model=gemma-2-2b", "data=openwebtext"]


def run_of(*words):
    (point,) = compose_points(list(words))
    return run_config(point.cfg)


def test_unlearning_is_judged_on_the_sibling_that_the_models_yaml_names():
    run = run_of(*GEMMA, "eval=full")
    other = judged(run, "unlearning")
    assert (other.model.path, other.model.source, other.model.dtype) == ("google/gemma-2-2b-it", "hub", "bfloat16")
    assert (other.layer, other.eval.data, judged(run, "tpp") is run) == (run.layer, "saebench", True)
    assert wanted(run)[-1] == "unlearning"
    same = run_of(*GEMMA, "eval.unlearning.model=same")
    assert judged(same, "unlearning") is same
    for words in (["model=gpt2", "data=openwebtext"], ["model=builtin"]):
        assert judged(run := run_of(*words), "unlearning") is run
    hub = run_of(
        "model=hub", "model.path=google/gemma-2-2b", "model.d_in=2304", "model.n_layers=26", "data=openwebtext"
    )
    assert judged(hub, "unlearning").model.path == "google/gemma-2-2b-it"  # also in configs from before the key
    given = run_of(*GEMMA, "eval.unlearning.model=org/other")
    assert judged(given, "unlearning").model.path == "org/other"


def test_neither_the_sibling_nor_the_key_is_part_of_a_runs_identity():
    run = run_of(*GEMMA)
    others = [run_of(*GEMMA, word) for word in ("model.instruct=org/other", "eval.unlearning.model=same")]
    assert {run_id(run)} == {run_id(other) for other in others}


@pytest.mark.parametrize("word", ["nonsense", "/nowhere/x", "a/b/c"])
def test_a_word_that_is_no_model_is_refused_before_anything_runs(word):
    with pytest.raises(ConfigError, match=f"eval.unlearning.model={word}: is no folder and no name on the hub; give"):
        run_of("model=builtin", f"eval.unlearning.model={word}")


def on_models(monkeypatch, seen):
    """The evaluations of these names replaced by ones that note where they run."""

    def evaluate(saes, shared, cfg):
        gc.collect()
        before = [model() for _, _, model, _ in seen]
        seen.append((shared.model_name, shared.layer.index, weakref.ref(shared.lm.model), before))
        return {name: Result("tpp", name, sae.cfg(), {}, {"x": {"y": 1.0}}) for name, sae in saes.items()}

    def separation(saes, shared, cfg):
        return {name: Numbers({"z": 1.0}) for name in saes}

    made = {"unlearning": Evaluation("unlearning", evaluate), "tpp": Evaluation("tpp", evaluate)}
    made["separation"] = Evaluation("separation", separation)
    for module in (evaluations, __import__("sae_sweeps.runs.evaluate", fromlist=["x"])):
        monkeypatch.setattr(module, "find_evaluation", lambda name: made.get(name) or find_evaluation(name))


def test_files_name_the_model_that_was_loaded_and_only_one_is_held(tmp_path, monkeypatch):
    sibling = tmp_path / "sibling"
    shutil.copytree(BUILTIN_MODEL, sibling)
    (sibling / "generation_config.json").write_text("{}")  # the same files would be the same model
    run = run_of(
        "model=builtin", "layer=1", "eval.evaluations=[tpp,unlearning,separation]", f"model.instruct={sibling}"
    )
    seen = []
    on_models(monkeypatch, seen)
    session, subject = RunSession(torch.device("cpu")), Subject("it", run, tmp_path / "run", toy_sae())
    lines = []
    assert evaluate_group([subject], session, tmp_path / "cache", lines.append) == []
    assert [(name, layer) for name, layer, *_ in seen] == [("builtin", 1), (str(sibling), 1)]
    assert seen[1][3] == [None] and seen[1][2]() is not None  # the first model is gone when the second is there
    assert any(line.startswith(f"unlearning: 1 done on {sibling} in") for line in lines)
    for name, model in (("tpp", "builtin"), ("separation", "builtin"), ("unlearning", str(sibling))):
        place = {"model_name": model, "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1}
        assert read_summary(tmp_path / f"run/evals/{name}.summary.json")["measured_on"] == place
        if name != "separation":
            content = json.loads((tmp_path / f"run/evals/{name}.json").read_text())
            assert content["eval_result_unstructured"]["sae_sweeps"]["measured_on"] == place
    assert all(is_done(run, tmp_path / "run", name) for name in ("tpp", "unlearning"))
    there = replace(run, eval=replace(run.eval, unlearning=replace(run.eval.unlearning, model="same")))
    assert is_done(there, tmp_path / "run", "tpp") and not is_done(there, tmp_path / "run", "unlearning")
    deeper = run_of("model=builtin", "layer=2")
    assert not is_done(deeper, tmp_path / "run", "tpp")  # an SAE from elsewhere may be measured anywhere


def test_a_sibling_that_does_not_fit_or_load_is_named_with_the_mend(tmp_path, monkeypatch):
    seen = []
    on_models(monkeypatch, seen)
    sibling = tmp_path / "sibling"
    shutil.copytree(BUILTIN_MODEL, sibling)
    run = run_of("model=builtin", "layer=1", "eval.evaluations=[unlearning]", f"eval.unlearning.model={sibling}")
    run.model.n_layers = 7  # as if the SAE's model were another
    session, subject = RunSession(torch.device("cpu")), Subject("it", run, tmp_path / "run", toy_sae())
    (failure,) = evaluate_group([subject], session, tmp_path / "cache")
    mend = "give eval.unlearning.model=same to judge the model that the SAE was trained on"
    sizes = f"has d_in={run.model.d_in} and 5 layers, and builtin has d_in={run.model.d_in} and 7"
    assert failure.why == f"eval.unlearning.model={sibling}: {sizes}; give its sibling, or {mend}."
    shutil.copy(BUILTIN_MODEL / "tokenizer.json", sibling / "config.json")
    session = RunSession(torch.device("cpu"))
    (failure,) = evaluate_group([subject], session, tmp_path / "cache")
    assert failure.why.startswith(f"eval.unlearning.model={sibling}: could not be loaded (") and mend in failure.why
    assert seen == []


def test_results_from_before_a_key_count_where_it_has_its_default():
    cfg = EvalConfig()
    then = {"batch_size": 16, "recon_batches": 4, "sparsity_batches": 16, "exclude_special_tokens": True}
    assert same_settings(then, cfg, "core") and not same_settings(then, replace(cfg, compute_kl=False), "core")
    assert not same_settings(then | {"recon_batches": 5}, cfg, "core")
    nested = {"data": "auto", "seed": 42, "probing": {"train_rows": 4000}, "hierarchy": {"folds": 5}, "version": 2}
    assert same_settings(nested, cfg, "hierarchy")
    assert not same_settings(nested | {"hierarchy": {"folds": 4}}, cfg, "hierarchy")
    assert not same_settings({k: v for k, v in nested.items() if k != "version"}, cfg, "hierarchy")  # other numbers


def test_every_evaluation_whose_numbers_changed_has_a_later_version():
    changed = {"separation", "sparse_probing", "hierarchy", "tpp", "scr", "absorption", "unlearning"}
    assert {name for name in EVALUATIONS if find_evaluation(name).version > 1} == changed
    assert OmegaConf.load("conf/model/gemma-2-2b.yaml").instruct == "google/gemma-2-2b-it"
