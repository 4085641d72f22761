"""The committed model: whole, small, read by the usual loaders, and as good as its record says."""

import copy

import pytest
import torch

from sae_sweeps.builtin import MODEL_FOLDER
from sae_sweeps.builtin.text import corpus
from sae_sweeps.storage.files import read_json

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
}
TEXT = "def add(a, b):\n    return a + b  # ünïcode ✓\n"


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_FOLDER)


@pytest.fixture(scope="module")
def record():
    return read_json(MODEL_FOLDER / "training.json")


def test_folder_is_complete_and_at_most_8_megabytes():
    files = [path for path in MODEL_FOLDER.iterdir() if path.is_file()]
    assert {path.name for path in files} == FILES
    assert sum(path.stat().st_size for path in files) <= 8_000_000


def test_weights_are_float16_and_as_many_as_recorded(model, record):
    from safetensors import safe_open

    with safe_open(MODEL_FOLDER / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}
    assert sum(p.numel() for p in model.parameters()) == record["parameters"]
    assert model.config.model_type == "gpt_neox"


def test_tokenizer_gives_text_back_and_marks_it_as_pythia_does(tokenizer, model):
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(ids) == TEXT
    assert 0 not in ids and 1 not in ids  # no BOS unless asked for
    assert len(tokenizer) == model.config.vocab_size == 4096
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.unk_token_id == 0
    assert tokenizer.pad_token_id == 1
    assert tokenizer("<|endoftext|>")["input_ids"] == [0]


def test_transformer_lens_reads_the_same_model(model, tokenizer):
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(MODEL_FOLDER), device="cpu", dtype=torch.float64)
    model = copy.deepcopy(model).double()  # in float64 rounding is nothing beside another formula
    tokens = torch.tensor([[0, *tokenizer(TEXT)["input_ids"]]])
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(tokens)
        expected = model(tokens, output_hidden_states=True)
    torch.testing.assert_close(logits, expected.logits, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(cache["blocks.2.hook_resid_post"], expected.hidden_states[3], atol=1e-9, rtol=1e-9)
    assert torch.equal(bridge.to_tokens(TEXT, prepend_bos=True), tokens)


def test_held_out_loss_is_what_the_record_says(model, tokenizer, record):
    """Within what a sample of 8,000 tokens and another Python's sources may differ by; chance is 8.3."""
    context = record["context"]
    ids = [i for _, text in corpus.documents("held_out") for i in (*tokenizer(text)["input_ids"], 0)]
    rows = torch.tensor(ids[: len(ids) // (context - 1) * (context - 1)]).view(-1, context - 1)
    rows = torch.cat([torch.zeros(len(rows), 1, dtype=torch.int64), rows], dim=1)[:: len(rows) // 32]
    with torch.no_grad():
        loss = model(rows, labels=rows).loss.item()
    assert abs(loss - record["held_out_loss"]) < 0.4
    assert record["held_out_loss"] < 4.19
    assert record["held_out_tokens"] >= 100_000
