"""The stream of training tokens: which tokens, in which order, with which bits."""

import copy

import pytest
import torch
from bounds import close

from sae_sweeps.activations.contexts import contexts
from sae_sweeps.activations.harvest import Regrouped, TextSource, streams
from sae_sweeps.activations.language_model import load_language_model
from sae_sweeps.activations.text import documents
from sae_sweeps.architectures.batch import Batch, norms_of
from sae_sweeps.config.schema import DataConfig, LayerConfig, ModelConfig
from sae_sweeps.errors import ConfigError

CONTEXT = 16
DTYPES = [torch.float32, torch.bfloat16, torch.float32]


@pytest.fixture(scope="module")
def lm(tiny_gpt_neox_folder):
    return load_language_model(ModelConfig(source="local", path=str(tiny_gpt_neox_folder)), "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    path.write_text("\n".join(f'{{"text": "def number_{i}(self): return {i * i}"}}' for i in range(120)))
    return DataConfig(kind="jsonl", path=str(path), context=CONTEXT)


def source(lm, data, **more):
    options = {"layer": LayerConfig(index=1), "split": "train", "dtype": torch.float32, "contexts_per_forward": 4}
    return TextSource(lm, data=data, **options | more)


def whole(batches) -> Batch:
    return Batch.concatenate(list(batches))


def test_every_token_stands_where_it_says(lm, data, monkeypatch):
    """Against one context at a time, a token at a time; in float64, where rounding is nothing beside another token."""
    monkeypatch.setattr(lm, "model", copy.deepcopy(lm.model).double())
    monkeypatch.setattr(lm, "_sites", {})
    tokens = whole(source(lm, data, dtype=torch.float64).stream(0, 10**9))
    expected = []
    for number, context in enumerate(contexts(documents(data, "train"), lm, data)):
        acts_LD = lm.activations(torch.from_numpy(context.tokens_L).long()[None], LayerConfig(index=1))[0]
        for position, token in enumerate(context.tokens_L.tolist()):
            if token not in lm.special_ids:
                expected.append((acts_LD[position], token, number, position, 0, acts_LD[position].pow(2).sum().sqrt()))
    assert len(tokens) == len(expected) > 500
    torch.testing.assert_close(tokens.x, torch.stack([row[0] for row in expected]), atol=1e-10, rtol=1e-10)
    *columns, norms = list(zip(*expected, strict=True))[1:]
    for field, column in zip(tokens.fields()[1:-1], columns, strict=True):
        assert field.tolist() == list(column)
    close(tokens.norm, torch.stack(norms), tokens.x.shape[1] + 3, torch.float32)
    int32, int8, float32 = torch.int32, torch.int8, torch.float32
    assert [field.dtype for field in tokens.fields()[1:]] == [int32, int32, int32, int8, float32]


def test_the_norm_is_of_the_activation_before_it_is_rounded_for_keeping(lm, data):
    exact, rounded = (whole(source(lm, data, dtype=dtype).stream(0, 500)) for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(rounded.norm, exact.norm) and torch.equal(exact.norm, norms_of(exact.x))
    assert not torch.equal(norms_of(rounded.x), exact.norm)


def test_train_on_all_keeps_bos(lm, data):
    everything = whole(source(lm, DataConfig(**vars(data) | {"train_on": "all"})).stream(0, 10**9))
    assert len(everything) % CONTEXT == 0 and (everything.token_ids[::CONTEXT] == lm.bos_id).all()
    kept = [i for i, token in enumerate(everything.token_ids.tolist()) if token not in lm.special_ids]
    assert torch.equal(everything[torch.tensor(kept)].x, whole(source(lm, data).stream(0, 10**9)).x)


@pytest.mark.parametrize("start, stop", [(0, 1), (0, 100), (37, 38), (59, 301), (400, 10**9)])
def test_a_part_has_the_bits_of_the_whole(lm, data, start, stop):
    all_of_it = whole(source(lm, data).stream(0, 10**9))
    part = whole(source(lm, data).stream(start, stop))
    for piece, of in zip(part.fields(), all_of_it[start:stop].fields(), strict=True):
        assert torch.equal(piece, of)


def test_contexts_before_the_start_are_not_run(lm, data, monkeypatch):
    calls = []
    real = lm.activations_at
    monkeypatch.setattr(lm, "activations_at", lambda *args: calls.append(0) or real(*args))
    whole(source(lm, data).stream(400, 401))
    assert len(calls) == 1


PLACES = [LayerConfig("resid_post", 0), LayerConfig("resid_pre", 2), LayerConfig("resid_post", 1)]


@pytest.mark.parametrize("start, stop", [(0, 10**9), (59, 301)])
def test_layers_together_have_the_bits_of_each_alone_from_one_pass(lm, data, monkeypatch, start, stop):
    sources = [source(lm, data, layer=layer, dtype=dtype) for layer, dtype in zip(PLACES, DTYPES, strict=True)]
    alone = [whole(one.stream(start, stop)) for one in sources]
    ran, forward = [], type(lm.model.base_model).forward
    monkeypatch.setattr(
        type(lm.model.base_model), "forward", lambda *args, **more: ran.append(0) or forward(*args, **more)
    )
    together = [whole(batches) for batches in zip(*streams(sources, start, stop), strict=True)]
    assert len(ran) == len({int(i) // 4 for i in alone[0].sequence})
    for one, other in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.fields(), other.fields(), strict=True))
    assert [batch.x.dtype for batch in together] == DTYPES


def test_count(lm, data, monkeypatch):
    n = len(whole(source(lm, data).stream(0, 10**9)))
    monkeypatch.setattr(lm, "activations_at", lambda *args: pytest.fail("counting needs no activation"))
    assert source(lm, data).count(10**9) == n and source(lm, data).count(n - 5) == n - 5


def test_roles_reach_the_tokens(lm, data, monkeypatch):
    from sae_sweeps.activations import contexts

    roles = [doc.__class__(doc.name, doc.text, role=1 + i % 2) for i, doc in enumerate(documents(data, "train"))]
    monkeypatch.setattr(contexts, "documents", lambda *args: iter(roles))
    assert set(whole(source(lm, data).stream(0, 300)).role.tolist()) == {1, 2}


def test_stored_dtype(lm, data):
    half = whole(source(lm, data, dtype=torch.bfloat16).stream(0, 50))
    assert torch.equal(half.x, whole(source(lm, data).stream(0, 50)).x.to(torch.bfloat16))


def test_mistakes(lm, data):
    with pytest.raises(ConfigError, match="at most 64"):
        source(lm, DataConfig(**vars(data) | {"context": 65}))
    with pytest.raises(ConfigError, match="layer=7"):
        source(lm, data, layer=LayerConfig(index=7))


@pytest.mark.parametrize("n", [1, 3, 7, 50, 1000])
def test_regrouping_keeps_every_token(lm, data, n):
    regrouped = Regrouped(n)
    pieces = [piece for batch in source(lm, data).stream(0, 200) for piece in regrouped.add(batch)]
    pieces += regrouped.rest()
    assert [len(piece) for piece in pieces[:-1]] == [n] * (len(pieces) - 1) and 0 < len(pieces[-1]) <= n
    assert torch.equal(whole(pieces).x, whole(source(lm, data).stream(0, 200)).x)
