"""The built-in model's training, on a few words and a model of a few numbers."""

import pytest
import torch
from safetensors.torch import load_file

from sae_sweeps.builtin import train
from sae_sweeps.builtin.text import corpus
from sae_sweeps.builtin.train import Recipe
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.files import read_json

RECIPE = Recipe(steps=6, rows=2, warmup=2, lr=1e-2)


@pytest.fixture
def tiny(monkeypatch):
    torch.set_num_threads(1)
    names = [f"module{i}" for i in range(30)]
    assert {corpus.split_of(name) for name in names} == set(corpus.SPLITS)
    monkeypatch.setattr(
        corpus, "_documents", lambda: [(n, f"# {n}\nimport {n}\n" * (8 + i)) for i, n in enumerate(names)]
    )
    monkeypatch.setattr(train, "VOCABULARY", 270)
    monkeypatch.setattr(train, "CONTEXT", 16)
    sizes = dict(vocab_size=270, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    monkeypatch.setattr(train, "ARCHITECTURE", train.ARCHITECTURE | sizes)
    corpus.digest.cache_clear()
    yield
    corpus.digest.cache_clear()


def test_rows_hold_the_documents_in_order_with_bos_between(monkeypatch):
    monkeypatch.setattr(train, "CONTEXT", 4)
    documents = [torch.tensor([5, 6]), torch.tensor([7, 8, 9, 10])]
    assert train.pack(documents).tolist() == [[0, 5, 6, 0], [0, 7, 8, 9]]


def test_shuffled_rows_hold_the_same_text(monkeypatch):
    monkeypatch.setattr(train, "CONTEXT", 4)
    documents = [torch.arange(2, 60), torch.arange(60, 100)]
    one, again, other = (train.pack(documents, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert (one[:, 0] == 0).all()
    read = one[:, 1:][one[:, 1:] != 0]
    assert len(set(read.tolist())) == len(read) >= 98 - 2 * 3  # each token once; both ends may be cut


def test_learning_rate_warms_up_and_ends_at_zero():
    recipe = Recipe(steps=100, warmup=10, lr=1.0)
    rates = [train.learning_rate(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.02


def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tiny, tmp_path, monkeypatch):
    train.train(RECIPE, tmp_path / "whole", tmp_path / "a", checkpoint_every=2)

    def killed(model, optimizers, rows, step, recipe, take_step=train.take_step):
        if step == 5:
            raise KeyboardInterrupt
        return take_step(model, optimizers, rows, step, recipe)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "take_step", killed)
        train.train(RECIPE, tmp_path / "killed", tmp_path / "b", checkpoint_every=2)
    assert not (tmp_path / "b").exists()
    train.train(RECIPE, tmp_path / "killed", tmp_path / "b", checkpoint_every=2)

    weights = [load_file(tmp_path / out / "model.safetensors") for out in "ab"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_record_tells_what_was_run(tiny, tmp_path):
    facts = train.train(RECIPE, tmp_path / "work", tmp_path / "out")
    assert facts == read_json(tmp_path / "out" / "training.json")
    assert facts["steps"] == 6 and facts["tokens"] == 6 * 2 * 16
    assert facts["corpus_digest"] == corpus.digest()
    assert 0 < facts["held_out_loss"] < 10


def test_checkpoint_of_another_recipe_is_refused(tiny, tmp_path):
    train.train(RECIPE, tmp_path / "work", tmp_path / "out")
    other = Recipe(steps=6, rows=2, warmup=2, lr=2e-2)
    with pytest.raises(ConfigError, match="lr=0.01, not 0.02"):
        train.train(other, tmp_path / "work", tmp_path / "out")
