"""A GGUF file becomes a folder in Hugging Face format whose weights are the file's."""

import json
import sys

import numpy as np
import pytest
import torch

from sae_sweeps import gguf as module
from sae_sweeps.activations.language_model import load_language_model
from sae_sweeps.config.facts import ModelFacts, model_facts
from sae_sweeps.config.schema import LayerConfig, ModelConfig
from sae_sweeps.errors import ConfigError, DataError

WIDTH, HIDDEN, N_LAYERS, HEADS = 32, 64, 2, 4
TOKENS = ["<bos>", "<|endoftext|>", "a", "b", "ab", "Ġ", "c", "d"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A Llama of two layers: matrices in Q8_0, the rest in float32."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    rng = np.random.default_rng(0)

    def matrix(name, rows, columns):
        weight = rng.normal(size=(rows, columns)).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)

    matrix("token_embd.weight", len(TOKENS), WIDTH)
    for n in range(N_LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{n}.{name}.weight", WIDTH, WIDTH)
        matrix(f"blk.{n}.ffn_gate.weight", HIDDEN, WIDTH)
        matrix(f"blk.{n}.ffn_up.weight", HIDDEN, WIDTH)
        matrix(f"blk.{n}.ffn_down.weight", WIDTH, HIDDEN)
        writer.add_tensor(f"blk.{n}.attn_norm.weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(f"blk.{n}.ffn_norm.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output_norm.weight", np.full(WIDTH, 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_is_dequantised_once_and_says_how_it_was_quantised(file, tmp_path, monkeypatch, capsys):
    from gguf import GGUFReader
    from gguf.quants import dequantize

    monkeypatch.setattr(module, "CACHE", tmp_path)
    cfg = ModelConfig(source="local", path=str(file))
    assert model_facts(cfg) == ModelFacts(WIDTH, N_LAYERS, vocabulary=8)
    assert "dequantised once" in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    record = json.loads((folder / "config.json").read_text())["gguf"]
    assert record["tensors"] == {"F32": 5, "Q8_0": 15} and record["file"] == "tiny.gguf" and len(record["sha256"]) == 64
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    lm = load_language_model(cfg, "cpu")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not capsys.readouterr().err.startswith("model=")
    down = next(t for t in GGUFReader(file).tensors if t.name == "blk.1.ffn_down.weight")
    assert torch.equal(
        lm.model.model.layers[1].mlp.down_proj.weight, torch.from_numpy(dequantize(down.data, down.tensor_type))
    )
    assert lm.activations(torch.tensor([[0, 4, 6]]), LayerConfig("mlp.hook_post", 1)).shape == (1, 3, HIDDEN)
    assert lm.tokenizer("ab")["input_ids"] == [4]


def test_what_is_no_gguf_file_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF and no more")
    with pytest.raises(DataError, match="broken.gguf: not a GGUF model that transformers can read") as caught:
        model_facts(ModelConfig(source="local", path=str(file)))
    assert "\n" not in str(caught.value) and not (tmp_path / "cache").exists()


def test_without_the_package_the_mend_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'sae-sweeps\[gguf\]'"):
        module.convert(tmp_path / "any.gguf", tmp_path / "folder")
