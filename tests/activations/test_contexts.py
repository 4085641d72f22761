"""Rows are packed as SAELens packs them."""

from types import SimpleNamespace

import pytest

from sae_sweeps.activations.contexts import contexts, held_out_contexts
from sae_sweeps.activations.document import Document
from sae_sweeps.activations.language_model import load_language_model
from sae_sweeps.config.schema import DataConfig, ModelConfig
from sae_sweeps.errors import ConfigError, DataError


class NumberTokenizer:
    """A text of numbers, each its own token."""

    def __call__(self, texts, **options):
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


def fake_lm(**more):
    return SimpleNamespace(**{"tokenizer": NumberTokenizer(), "bos_id": 0, "max_context": None} | more)


def rows(texts, context, prepend_bos=True):
    docs = (Document(str(i), text) for i, text in enumerate(texts))
    cfg = DataConfig(context=context, prepend_bos=prepend_bos)
    return [c.tokens_L.tolist() for c in contexts(docs, fake_lm(), cfg)]


# Made with sae_lens 6.54.12: concat_and_batch_sequences(docs, 5, begin_batch_token_id=0 or None,
# sequence_separator_token_id=0). Among them a BOS in the text, at a document's start and at a row's, an empty
# document, a document that ends with its row, and a separator that fills the row's last place.
TEXTS = ["1 2 3 4 5 6 7", "", "0 1", "2 3 4", "5 6 7 0 1 2 3", "4 5 6 7", "1", "2 3"]
WITH_BOS = [[0, 1, 2, 3, 4], [0, 5, 6, 7, 0], [0, 1, 0, 2, 3], [0, 4, 0, 5, 6], [0, 7, 0, 1, 2]]
WITH_BOS += [[0, 3, 0, 4, 5], [0, 6, 7, 0, 1]]
WITHOUT = [[1, 2, 3, 4, 5], [6, 7, 0, 1, 0], [2, 3, 4, 0, 5], [6, 7, 0, 1, 2], [3, 0, 4, 5, 6], [7, 0, 1, 0, 2]]


def test_rows_equal_saelens_rows():
    assert rows(TEXTS, 5) == WITH_BOS
    assert rows(TEXTS, 5, prepend_bos=False) == WITHOUT


def test_roles_follow_their_tokens():
    docs = [Document("a", "1 2 3", role=1), Document("b", "4 5 6", role=2)]
    (context,) = contexts(docs, fake_lm(), DataConfig(context=8))
    assert context.tokens_L.tolist() == [0, 1, 2, 3, 0, 4, 5, 6]
    assert context.role_L.tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


def test_the_tokenizer_adds_no_special_tokens(tiny_llama_folder):
    lm = load_language_model(ModelConfig(source="local", path=str(tiny_llama_folder)), "cpu")
    assert lm.tokenizer("def").input_ids[0] == lm.bos_id
    (row, *_) = contexts([Document("a", "def " * 40)], lm, DataConfig(context=16))
    assert row.tokens_L.tolist().count(lm.bos_id) == 1


def test_impossible_contexts():
    for lm, cfg, words in [
        (fake_lm(), DataConfig(context=1), "data.context=1 "),
        (fake_lm(max_context=64), DataConfig(context=128), "at most 64 tokens"),
        (fake_lm(bos_id=None), DataConfig(), "neither BOS nor EOS"),
    ]:
        with pytest.raises(ConfigError, match=words):
            next(contexts([], lm, cfg))


def test_held_out_contexts(tmp_path):
    texts = "\n".join('{"text": "' + f"{i} " * 9 + '"}' for i in range(1, 60))
    (tmp_path / "t.jsonl").write_text(texts)
    data = DataConfig(kind="jsonl", path=str(tmp_path / "t.jsonl"), context=10, held_out=0.5)
    tokens_SL = held_out_contexts(ModelConfig(), data, fake_lm(), 4)
    assert tokens_SL.shape == (4, 10) and tokens_SL.dtype.itemsize == 8
    assert 4 < len(held_out_contexts(ModelConfig(), data, fake_lm(), 1000)) < 59
    data.context = 5000
    with pytest.raises(DataError, match="does not fill one context of 5000"):
        held_out_contexts(ModelConfig(), data, fake_lm(), 4)
