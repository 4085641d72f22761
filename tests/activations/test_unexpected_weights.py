"""A checkpoint is used whole or not at all."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_sweeps.activations.language_model import load_language_model
from sae_sweeps.config.facts import BUILTIN_MODEL
from sae_sweeps.config.schema import ModelConfig
from sae_sweeps.errors import DataError


def with_weights(folder, **more):
    shutil.copytree(BUILTIN_MODEL, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | more, folder / "model.safetensors", {"format": "pt"})
    return ModelConfig(source="local", path=str(folder))


def test_weights_that_the_model_has_no_place_for_are_refused_by_name(tmp_path):
    bias = torch.ones(8)
    cfg = with_weights(tmp_path / "biased", **{"embed_out.bias": bias, "gpt_neox.layers.1.extra": bias.clone()})
    with pytest.raises(
        DataError, match="GPTNeoXForCausalLM has no place for the weights gpt_neox.layers.1.extra, lm_head.bias, so"
    ):
        load_language_model(cfg, "cpu")


def test_buffers_that_transformers_knows_to_be_harmless_are_not(tmp_path):
    """Masks that older checkpoints of the same architecture hold."""
    cfg = with_weights(tmp_path / "old", **{"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)})
    assert load_language_model(cfg, "cpu").n_layers == 5
