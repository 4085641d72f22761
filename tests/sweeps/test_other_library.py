"""An SAE of another library is evaluated anew where its text, its model or its weights are others."""

import shutil

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from sae_sweeps.architectures import saelens
from sae_sweeps.cli.evaluate import (
    find_targets,
    give_own_names,
    layer_words,
    of_other_library,
    refuse_words_of_the_run,
)
from sae_sweeps.errors import ConfigError, DataError
from sae_sweeps.runs.evaluate import Subject, is_done, summarise

D, F = 160, 8


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(D, F, generator=generator)
    weights = {"W_enc": W, "b_enc": torch.zeros(F), "W_dec": W.T.contiguous(), "b_dec": torch.zeros(D)}
    metadata = {"context_size": 64, "prepend_bos": False, "dataset_path": "builtin"}
    sae = saelens.ExportedSAE("standard", weights, None, "blocks.1.hook_resid_post", "builtin", metadata)
    saelens.save(sae, tmp_path / "sae")
    return tmp_path / "sae"


def test_what_its_cfg_names_is_read_and_the_command_goes_before(folder):
    target = of_other_library(folder, [])
    data = target.run.data
    assert (target.run.layer.index, data.name, data.context, data.prepend_bos) == (1, "builtin", 64, False)
    data = of_other_library(folder, ["data=builtin", "data.prepend_bos=true", "data.context=32"]).run.data
    assert (data.context, data.prepend_bos) == (32, True)


def test_another_text_bos_layer_or_weights_is_another_evaluation(folder, tmp_path):
    def done(*words):
        target = of_other_library(folder, list(words))
        return is_done(target.run, folder, "core", target.inputs)

    text = tmp_path / "text.txt"
    text.write_text("some words")
    target = of_other_library(folder, [])
    summarise(Subject("sae", target.run, folder, None, target.inputs), "core", {}, [])
    assert done() and done("data=builtin") and done("data.prepend_bos=false", "device=cpu")
    for words in (["data.prepend_bos=true"], ["data.context=32"], ["layer=resid_post", "layer.index=2"]):
        assert not done(*words)
    assert not done(f"data={text}")
    target = of_other_library(folder, [f"data={text}"])
    summarise(Subject("sae", target.run, folder, None, target.inputs), "core", {}, [])
    assert done(f"data={text}")
    text.write_text("other words")
    assert not done(f"data={text}")
    summarise(Subject("sae", target.run, folder, None, of_other_library(folder, []).inputs), "core", {}, [])
    weights = load_file(folder / "sae_weights.safetensors")
    save_file(weights | {"b_enc": torch.ones(F)}, folder / "sae_weights.safetensors")
    assert not done()


def test_saes_in_folders_of_one_name_are_evaluated_each(folder, tmp_path):
    """Evaluations know SAEs by name: of two with one name the first would be left out."""
    places = [folder, *(tmp_path / name / layer / "sae" for name, layer in (("a", "1"), ("b", "1"), ("b", "2")))]
    for place in places[1:]:
        shutil.copytree(folder, place)
    targets = [of_other_library(place, []) for place in places]
    give_own_names(targets)
    ends = ("-sae", "a-1-sae", "b-1-sae", "b-2-sae")
    assert all(target.name.endswith(end) for target, end in zip(targets, ends, strict=True))
    assert len({target.name for target in targets}) == 4
    alone = [of_other_library(folder, [])]
    give_own_names(alone)
    assert alone[0].name == "sae"


@pytest.mark.parametrize("word", ["data=other.jsonl", "model=builtin", "layer.index=2", "data.context=4"])
def test_a_run_is_evaluated_on_its_own_text(word):
    refuse_words_of_the_run(["eval=core", "device=cpu", "outputs=x"])
    with pytest.raises(ConfigError, match=f"{word}: a run is evaluated on its own model, layer and text"):
        refuse_words_of_the_run(["eval=core", word])


def test_a_folder_without_an_sae_is_not_taken_for_a_run(tmp_path):
    with pytest.raises(DataError, match="holds no trained SAE; give a finished run"):
        list(find_targets([tmp_path], OmegaConf.create(), ["model=builtin"]))


def test_a_missing_hook_is_asked_for_as_a_layer_is_written(tmp_path):
    with pytest.raises(ConfigError, match="the SAE names no hook; give its layer, as layer=N"):
        layer_words(None, tmp_path)
