"""Names of hooks, their place in a run's config and id, and what is read of a model without loading it."""

import json

import pytest
from composing import points

from sae_sweeps.cli.evaluate import layer_words
from sae_sweeps.config.facts import ModelFacts, model_facts
from sae_sweeps.config.hooks import hook_name, layer_of_hook_name, with_short_hook
from sae_sweeps.config.identity import canonical, run_id
from sae_sweeps.config.run import run_config
from sae_sweeps.config.schema import LayerConfig, ModelConfig
from sae_sweeps.config.words import rewrite
from sae_sweeps.errors import ConfigError, DataError


def run_of(*words):
    (point,) = points(*words)
    return run_config(point.cfg)


@pytest.mark.parametrize(
    ("given", "kept", "full"),
    [
        (LayerConfig("resid_post", 3), LayerConfig("resid_post", 3), "blocks.3.hook_resid_post"),
        (LayerConfig("hook_resid_mid", 3), LayerConfig("resid_mid", 3), "blocks.3.hook_resid_mid"),
        (LayerConfig("blocks.3.hook_mlp_out"), LayerConfig("mlp_out", 3), "blocks.3.hook_mlp_out"),
        (LayerConfig("attn.hook_z", 0), LayerConfig("attn.hook_z", 0), "blocks.0.attn.hook_z"),
        (LayerConfig("blocks.12.ln2.hook_normalized", 12), LayerConfig("ln2.hook_normalized", 12),
         "blocks.12.ln2.hook_normalized"),
    ],
)  # fmt: skip
def test_a_place_has_one_form_in_configs_and_its_name_there(given, kept, full):
    assert with_short_hook(given) == kept and hook_name(kept) == full and layer_of_hook_name(full) == kept


def test_a_name_with_a_layer_beside_another_layer_is_refused():
    with pytest.raises(ConfigError, match="layer.hook=blocks.3.hook_mlp_out: names layer 3, and layer=4 another"):
        with_short_hook(LayerConfig("blocks.3.hook_mlp_out", 4))
    assert layer_of_hook_name("hook_embed") is None and layer_of_hook_name("blocks.x.hook_mlp_out") is None


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("layer=attn.hook_z", "layer.hook=attn.hook_z"),
        ("layer=resid_post,blocks.3.hook_mlp_out", "layer.hook=resid_post,blocks.3.hook_mlp_out"),
        ("layer=resid_mid", "layer.hook=resid_mid"),
        ("layer=resid_post", "layer=resid_post"),
    ],
)
def test_a_hook_can_be_given_as_the_layer(word, expected):
    assert rewrite([word]) == [expected]


def test_saes_of_any_hook_are_evaluated_where_they_were_trained(tmp_path):
    assert layer_words("blocks.5.attn.hook_z", tmp_path) == ["layer=attn.hook_z", "layer.index=5"]
    with pytest.raises(ConfigError, match="its hook hook_embed is in no layer"):
        layer_words("hook_embed", tmp_path)


def test_one_place_is_one_run_and_the_width_is_the_activations():
    plain, spelled = run_of("layer=1"), run_of("layer.hook=blocks.1.hook_resid_post")
    assert run_id(plain) == run_id(spelled)
    assert canonical(plain)["layer"] == {"hook": "resid_post", "index": 1}  # as before there was a width
    wide = run_of("layer=mlp.hook_post", "layer=1", "layer.d_in=640")
    assert (wide.d_in, wide.model.d_in) == (640, 160)
    assert canonical(wide)["layer"] == {"hook": "mlp.hook_post", "index": 1}
    assert plain.d_in == plain.layer.d_in == 160


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("layer.d_in=7", "layer.d_in=7: resid_post is 160 wide; give layer.d_in=null"),
        ("layer.hook=a/b", "layer.hook=a/b: give resid_post"),
        ("layer.hook=blocks.99.hook_mlp_out", "layer=99: builtin has 5 layers"),
    ],
)
def test_mistakes_are_one_sentence(word, message):
    with pytest.raises(ConfigError, match=message):
        run_of(word)


def _folder(tmp_path, **config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return ModelConfig(source="local", path=str(tmp_path))


def test_sizes_are_read_under_every_familys_names(tmp_path):
    assert model_facts(_folder(tmp_path, d_model=32, n_layers=3)) == ModelFacts(32, 3)  # MPT
    assert model_facts(_folder(tmp_path, n_embd=16, n_layer=2)) == ModelFacts(16, 2)  # GPT-2
    assert model_facts(_folder(tmp_path, text_config={"hidden_size": 8, "num_hidden_layers": 4})) == ModelFacts(8, 4)
    unknown = _folder(tmp_path, size=8)
    with pytest.raises(DataError, match="set model.d_in and model.n_layers"):
        model_facts(unknown)
    unknown.d_in, unknown.n_layers = 8, 4
    assert model_facts(unknown) == ModelFacts(8, 4)


def test_an_encoder_decoder_model_is_refused_when_planning(tmp_path):
    with pytest.raises(DataError, match=r"is an encoder-decoder model \(t5\); give a causal language model"):
        model_facts(_folder(tmp_path, model_type="t5", is_encoder_decoder=True, d_model=8, num_layers=2))


def test_the_model_that_is_made_here_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(DataError, match="`make smollm2` downloads"):
        model_facts(ModelConfig(name="smollm2-135m", source="local", path=str(tmp_path / "absent")))


def test_a_width_that_cannot_be_read_can_be_given(tmp_path):
    from sae_sweeps.lens import hook_width

    cfg = _folder(tmp_path, model_type="of-tomorrow", hidden_size=8, num_hidden_layers=2)
    assert model_facts(cfg) == ModelFacts(8, 2)
    with pytest.raises(ConfigError, match="layer.hook=attn.hook_z: its width cannot be read.*layer.d_in=WIDTH"):
        hook_width(tmp_path / "config.json", "attn.hook_z")


def test_a_model_that_brings_its_own_code_is_not_made(tmp_path):
    from sae_sweeps.lens import hook_width

    _folder(tmp_path, model_type="mine", auto_map={"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"})
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(
        ConfigError, match="the model needs Python code of its own, which is not run.; give it as layer.d_in=WIDTH"
    ):
        hook_width(tmp_path / "config.json", "attn.hook_z")
    assert not (tmp_path / "ran").exists()


def test_a_model_whose_layer_does_not_fit_into_memory_is_a_mistake_of_one_sentence(tmp_path):
    from sae_sweeps.lens import hook_width

    sizes = {"hidden_size": 2**40, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    _folder(tmp_path, model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"], **sizes)
    with pytest.raises(
        ConfigError, match="one layer of the model does not fit into memory.; give it as layer.d_in=WIDTH"
    ):
        hook_width(tmp_path / "config.json", "attn.hook_z")
