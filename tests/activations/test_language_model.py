"""Hooks mean what TransformerLens means by them, the forward pass stops at the layer, mistakes are one sentence."""

import json
import shutil

import pytest
import torch

from sae_sweeps.activations import language_model as module
from sae_sweeps.activations.language_model import LanguageModel, load_language_model
from sae_sweeps.config.hooks import hook_name
from sae_sweeps.config.schema import LayerConfig, ModelConfig
from sae_sweeps.errors import ConfigError, DataError, NoNetwork

FAMILIES = ("gpt_neox", "gemma2", "llama")


def load(folder, **more) -> LanguageModel:
    return load_language_model(ModelConfig(source="local", path=str(folder), **more), "cpu")


@pytest.fixture(scope="module")
def folders(tiny_gpt_neox_folder, tiny_gemma2_folder, tiny_llama_folder):
    return dict(zip(FAMILIES, (tiny_gpt_neox_folder, tiny_gemma2_folder, tiny_llama_folder), strict=True))


@pytest.fixture(scope="module")
def tokens_SL():
    return torch.randint(3, 384, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_resid_post_is_the_next_hidden_state(folders, tokens_SL, family):
    lm = load(folders[family])
    with torch.no_grad():
        hidden = lm.model(tokens_SL, output_hidden_states=True).hidden_states
    for index in range(lm.n_layers - 1):
        acts_SLD = lm.activations(tokens_SL, LayerConfig(index=index))
        assert torch.equal(acts_SLD, hidden[index + 1])
    last_SLD = lm.activations(tokens_SL, LayerConfig(index=lm.n_layers - 1))
    base = lm.model.base_model
    norm = base.final_layer_norm if family == "gpt_neox" else base.norm
    assert torch.equal(norm(last_SLD), hidden[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_hook_is_transformer_lens_hook(folders, tokens_SL, family):
    bridges = pytest.importorskip("transformer_lens.model_bridge")
    lm = load(folders[family])
    lm.model.double()  # in float64 three layers of rounding are nothing beside another place in the model
    limit = 1e-10 if family == "gpt_neox" else 1e-4  # the RMS norms of the others compute in float32 all the same
    bridge = bridges.TransformerBridge.boot_transformers(str(folders[family]), device="cpu", dtype=torch.float64)
    layers = [LayerConfig(hook, index) for hook in ("resid_post", "mlp_out", "attn_out") for index in (0, 2)]
    _, cache = bridge.run_with_cache(tokens_SL)
    for layer in layers:
        acts_SLD = lm.activations(tokens_SL, layer)
        assert acts_SLD.shape == (2, 16, 32) and acts_SLD.dtype == torch.float64
        torch.testing.assert_close(acts_SLD, cache[hook_name(layer)], atol=limit, rtol=limit)
    torch.testing.assert_close(lm.logits(tokens_SL), bridge(tokens_SL), atol=limit, rtol=limit)


def test_later_layers_are_not_computed(folders, tokens_SL):
    lm = load(folders["gpt_neox"])
    lm.site(LayerConfig("attn_out", 1))  # runs a few tokens through the whole model, once
    ran = []
    for number, block in enumerate(lm.model.base_model.layers):
        block.register_forward_hook(lambda *args, number=number: ran.append(number))
    lm.activations(tokens_SL, LayerConfig(index=1))
    assert ran == [0, 1]
    ran.clear()
    lm.activations(tokens_SL, LayerConfig("attn_out", 1))
    assert ran == [0]
    ran.clear()
    three = [LayerConfig("attn_out", 1), LayerConfig("resid_pre", 1), LayerConfig("resid_post", 0)]
    together = lm.activations_at(tokens_SL, three)
    assert ran == [0]
    assert all(torch.equal(x, lm.activations(tokens_SL, place)) for x, place in zip(together, three, strict=True))
    assert not any(m._forward_hooks for m in lm.model.modules() if m not in set(lm.model.base_model.layers))


def test_hooks_of_the_bridge_have_the_bits_together_that_they_have_alone(folders, tokens_SL):
    """Some of its modules compute otherwise where they are hooked, and switches change whole layers."""
    places = [
        LayerConfig("ln1.hook_normalized", 0),
        LayerConfig("attn.hook_result", 0),
        LayerConfig("mlp.hook_post", 1),
    ]
    places += [LayerConfig("ln2.hook_normalized", 2), LayerConfig("resid_post", 2)]
    lm = load(folders["llama"])
    together = lm.activations_at(tokens_SL, places)
    assert [lm.site(place).kind == "point" for place in places] == [True, True, False, True, False]
    for x_SLD, place in zip(together, places, strict=True):
        alone = load(folders["llama"])
        assert torch.equal(x_SLD, alone.activations(tokens_SL, place)), place


@pytest.mark.parametrize("hook", ["resid_post", "mlp_out", "attn_out"])
def test_replace_changes_the_logits_at_that_place_only(folders, tokens_SL, hook):
    lm = load(folders["gemma2"])
    layer = LayerConfig(hook, 1)
    plain_SLV = lm.logits(tokens_SL)
    seen = []

    def same(acts_SLD):
        seen.append(acts_SLD)
        return acts_SLD.clone()

    assert torch.equal(lm.logits(tokens_SL, layer, same), plain_SLV)
    assert torch.equal(seen[0], lm.activations(tokens_SL, layer))
    zeroed_SLV = lm.logits(tokens_SL, layer, torch.zeros_like)
    assert not torch.allclose(zeroed_SLV, plain_SLV)
    assert torch.equal(lm.logits(tokens_SL), plain_SLV)  # the hook is gone


def test_special_tokens_dtype_and_default_layer(folders):
    lm = load(folders["gemma2"], dtype="bfloat16")
    assert (lm.bos_id, lm.special_ids, lm.dtype) == (0, {0, 1, 2}, torch.bfloat16)
    assert lm.layer_index(LayerConfig()) == 1
    assert load(folders["gemma2"], default_layer=2).layer_index(LayerConfig()) == 2
    assert lm.activations(torch.tensor([[0, 5]]), LayerConfig()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "change, kind, words",
    [
        ({"path": "nowhere-at-all"}, DataError, "no such folder"),
        ({"path": None}, ConfigError, "model.path"),
        ({"dtype": "float8"}, ConfigError, "model.dtype=float8"),
        ({"source": "synthetic"}, ConfigError, "no language model"),
    ],
)
def test_mistakes_in_the_config(folders, change, kind, words):
    cfg = {"source": "local", "path": str(folders["llama"])} | change
    with pytest.raises(kind, match=words):
        load_language_model(ModelConfig(**cfg), "cpu")


def test_layer_beyond_the_model(folders):
    lm = load(folders["llama"])
    with pytest.raises(ConfigError, match="layer=3: the model has 3 layers"):
        lm.activations(torch.tensor([[0, 5]]), LayerConfig(index=3))
    with pytest.raises(ConfigError, match="layer.hook=hook_mlp: LlamaForCausalLM has no such hook.*hook_mlp_out"):
        lm.activations(torch.tensor([[0, 5]]), LayerConfig("mlp", 1))


def test_folders_that_do_not_hold_a_model(folders, tmp_path):
    with pytest.raises(DataError, match="no config.json"):
        load(tmp_path)
    broken = shutil.copytree(folders["llama"], tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="not a causal language model"):
        load(broken)
    foreign = shutil.copytree(folders["llama"], tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(DataError, match="weights lack model.layers.3"):
        load(foreign)


def test_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "hub_is_reachable", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NoNetwork, match="hf download no-such/model-here --local-dir DIR"):
        load_language_model(ModelConfig(source="hub", path="no-such/model-here"), "cpu")


@pytest.mark.parametrize("hook", ["resid_post", "mlp_out", "attn_out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_pass_is_a_whole_one_with_that_place_replaced(folders, tokens_SL, family, hook):
    lm = load(folders[family])
    layer = LayerConfig(hook, 1)
    x_SLD = lm.activations(tokens_SL, layer)
    assert torch.equal(lm.unembed(lm.resume(tokens_SL, layer, x_SLD)), lm.logits(tokens_SL))
    changed = lm.unembed(lm.resume(tokens_SL, layer, x_SLD / 2))
    assert torch.equal(changed, lm.logits(tokens_SL, layer, lambda acts: acts / 2))
    assert torch.equal(lm.logits(tokens_SL), lm.unembed(lm.resume(tokens_SL, layer, x_SLD)))  # nothing stays behind


def test_earlier_layers_are_not_computed_when_a_pass_is_resumed(folders, tokens_SL):
    lm = load(folders["gpt_neox"])
    x_SLD = lm.activations(tokens_SL, LayerConfig("resid_post", 1))
    lm.resume(tokens_SL, LayerConfig("resid_post", 1), x_SLD)  # the first one looks at what a block returns
    calls = []
    for number, block in enumerate(lm._blocks()):
        block.mlp.register_forward_hook(lambda *_, number=number: calls.append(number))
    lm.resume(tokens_SL, LayerConfig("resid_post", 1), x_SLD)
    assert calls == [2]


def test_rows_stand_behind_bos_and_are_filled_on_the_right(folders):
    for family in FAMILIES:
        lm = load(folders[family])
        rows = lm.tokenize_rows(["def", "return self.value, other", ""], 5)
        assert rows.shape[1] <= 5 and (rows[:, 0] == lm.bos_id).all()
        assert (rows == lm.bos_id).sum() == 3 and int(rows[0, -1]) in lm.special_ids
        alone = lm.tokenize_rows(["def"], 5)[0]
        assert torch.equal(rows[0, : len(alone)], alone)
