"""Text that says which tokens are which, from the file to the batch."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from opening import open_activations

from sae_sweeps.activations.language_model import load_language_model
from sae_sweeps.activations.roles import FORGET, RETAIN
from sae_sweeps.activations.sampler import Sampler
from sae_sweeps.activations.text import documents, roles
from sae_sweeps.builtin.text.topics import LABELS, topic_of
from sae_sweeps.config.schema import ActivationsConfig, DataConfig, LayerConfig, ModelConfig
from sae_sweeps.errors import ConfigError, DataError

N_TOKENS = 600


@pytest.fixture(scope="module")
def model(tiny_gpt_neox_folder):
    return ModelConfig(source="local", path=str(tiny_gpt_neox_folder))


@pytest.fixture(scope="module")
def lm(model):
    return load_language_model(model, "cpu")


def jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


@pytest.fixture
def corpora(tmp_path):
    forget = jsonl(tmp_path / "forget.jsonl", [{"text": f"forget number {i} and its virus"} for i in range(60)])
    (tmp_path / "retain").mkdir()
    for i in range(60):
        (tmp_path / "retain" / f"{i}.txt").write_text(f"retain number {i}: a gardener and the tulips in a row")
    return DataConfig(kind="forget_retain", forget=forget, retain=str(tmp_path / "retain"), context=16)


@pytest.fixture
def labelled(tmp_path):
    rows = [{"text": f"text {i} says def f(x): return {i}", "topic": ["b", "a", "c"][i % 3]} for i in range(90)]
    return DataConfig(kind="jsonl", path=jsonl(tmp_path / "l.jsonl", rows), label_field="topic", context=16)


@pytest.fixture
def paired(tmp_path):
    rows = [{"text": f"def f(a): return a + {i}", "twin": f"lambda a: a + {i} # as above"} for i in range(80)]
    return DataConfig(kind="jsonl", path=jsonl(tmp_path / "p.jsonl", rows), pair_field="twin", context=16)


def store(model, lm, data, tmp_path, mode="memory", n=N_TOKENS):
    activations = ActivationsConfig(mode=mode, dtype="float32", buffer_tokens=200)
    key = {"data": str(data), "n": n}
    return open_activations(model, LayerConfig(index=1), data, activations, n, tmp_path / mode, "cpu", key=key, lm=lm)


def test_two_corpora_are_mixed_by_their_share_of_characters(corpora):
    found = list(documents(corpora, "train"))
    assert {doc.role for doc in found} == {RETAIN, FORGET} and roles(corpora) == {1: "retain", 2: "forget"}
    assert all((doc.role == FORGET) == doc.text.startswith("forget") for doc in found)
    for share in (0.2, 0.5, 0.8):
        corpora.forget_share = share
        first = list(islice(documents(corpora, "train"), 40))
        size = Counter({role: sum(len(doc.text) for doc in first if doc.role == role) for role in (1, 2)})
        assert size[FORGET] / size.total() == pytest.approx(share, abs=0.05)
    assert Counter(doc.role for doc in documents(corpora, "train")) == Counter(doc.role for doc in found)  # all of both


def test_each_corpus_has_held_out_documents(corpora):
    corpora.held_out = 0.3
    held_out, train = (list(documents(corpora, split)) for split in ("held_out", "train"))
    assert {doc.role for doc in held_out} == {RETAIN, FORGET}
    assert not {doc.text for doc in held_out} & {doc.text for doc in train}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"forget": None}, "data.forget is not set"),
        ({"retain": "nowhere/at/all"}, "data.retain=nowhere/at/all: no such file"),
        ({"retain": "./missing"}, "data.retain=./missing: no such file"),
        ({"forget_share": 1.0}, "data.forget_share=1.0 is not a share"),
    ],
)
def test_a_corpus_that_is_missing_is_named(corpora, changes, says):
    with pytest.raises((ConfigError, DataError), match=says):
        next(documents(DataConfig(**{**vars(corpora), **changes}), "train"))


def test_a_folder_without_text_is_named(corpora, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no text"):
        next(documents(DataConfig(**{**vars(corpora), "forget": str(tmp_path / "empty")}), "train"))


def test_labels_get_roles_in_a_stable_order(labelled):
    assert roles(labelled) == {1: "retain", 2: "forget", 3: "a", 4: "b", 5: "c"}
    by_text = {doc.text: doc.role for doc in documents(labelled, "train")}
    assert all(by_text[text] == 3 + [1, 0, 2][int(text.split()[1]) % 3] for text in by_text)
    labelled.labels = ["c", "b", "a"]
    assert roles(labelled)[3] == "c"


def test_labels_called_forget_and_retain_are_those_roles(tmp_path):
    rows = [{"text": f"some text {i}", "set": ["forget", "retain", "x"][i % 3]} for i in range(30)]
    data = DataConfig(kind="jsonl", path=jsonl(tmp_path / "a.jsonl", rows), label_field="set")
    assert {doc.role for doc in documents(data, "train")} == {1, 2, 3} and roles(data)[3] == "x"


def test_mistakes_with_labels_are_named(labelled):
    labelled.labels = ["a", "b"]
    with pytest.raises(DataError, match="holds the label c too"):
        list(documents(labelled, "train"))
    labelled.labels, labelled.label_field = None, "subject"
    with pytest.raises(DataError, match="data.label_field=subject is not in .*; its fields are text, topic"):
        list(documents(labelled, "train"))
    with pytest.raises(ConfigError, match="must be listed"):
        roles(DataConfig(kind="hub", path="a/b", label_field="topic"))
    with pytest.raises(ConfigError, match="200 labels are more than"):
        roles(DataConfig(kind="hub", path="a/b", label_field="topic", labels=[str(i) for i in range(200)]))


def test_built_in_text_has_roles_and_labels():
    by_role = Counter()
    for doc in documents(DataConfig(kind="builtin_roles"), "train"):
        assert (doc.role == FORGET) == (topic_of(doc.name) == "concurrency")
        by_role[doc.role] += len(doc.text)
    assert 0.05 < by_role[FORGET] / by_role.total() < 0.3
    data = DataConfig(kind="builtin_labelled")
    for split in ("train", "held_out"):
        size = Counter()
        for doc in documents(data, split):
            assert roles(data)[doc.role] == topic_of(doc.name)
            size[doc.role] += len(doc.text)
        assert min(size.values()) > 1000 and len(size) >= len(LABELS) - 1, size


@pytest.mark.parametrize("mode", ["memory", "disk", "stream"])
def test_role_pairs_share_their_role_and_are_a_function_of_the_step(mode, model, lm, corpora, tmp_path):
    made = [Sampler(store(model, lm, corpora, tmp_path / str(i), mode), 32, 5, "role_pairs") for i in (0, 1)]
    batches = [made[0].batch(step) for step in range(12)]
    for batch in batches:
        assert torch.equal(batch.role[:16], batch.role[16:]) and set(batch.role.tolist()) <= {1, 2}
        same = (batch.sequence[:16] == batch.sequence[16:]) & (batch.position[:16] == batch.position[16:])
        assert not same.any()
    assert len({role for batch in batches for role in batch.role.tolist()}) == 2
    again = made[1].batch(9)
    assert torch.equal(again.x, batches[9].x) and torch.equal(again.token_ids, batches[9].token_ids)
    other = Sampler(made[1].store, 32, 6, "role_pairs").batch(9)
    assert not torch.equal(other.token_ids, again.token_ids)


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_every_token_is_an_anchor_once_per_epoch_and_partners_are_spread(mode, model, lm, corpora, tmp_path):
    held = store(model, lm, corpora, tmp_path, mode, n=256)
    sampler = Sampler(held, 32, 0, "role_pairs")
    batches = [sampler.batch(step) for step in range(16)]

    def places(rows):
        return Counter((int(s), int(p)) for b in batches for s, p in torch.stack([b.sequence, b.position], 1)[rows])

    assert set(places(slice(0, 16)).values()) == {1} and len(places(slice(0, 16))) == 256
    assert len(places(slice(16, 32))) > 150


def test_pairs_of_texts_stand_side_by_side(model, lm, paired, tmp_path):
    held = store(model, lm, paired, tmp_path)
    batch = Sampler(held, 32, 0, "text_pairs").batch(3)
    assert torch.equal(batch.sequence[:16] + 1, batch.sequence[16:]) and (batch.sequence[:16] % 2 == 0).all()
    assert torch.equal(batch.position[:16], batch.position[16:])
    assert not set(batch.token_ids.tolist()) & set(lm.special_ids)  # what fills a row is not trained on
    on_disk = store(model, lm, paired, tmp_path, "disk")
    assert torch.equal(Sampler(on_disk, 32, 0, "text_pairs").batch(3).x, batch.x)


def test_pairs_are_as_long_as_the_shorter_text(lm, tmp_path):
    from sae_sweeps.activations.contexts import rows_of

    data = DataConfig(
        kind="jsonl", path=jsonl(tmp_path / "p.jsonl", [{"text": "a b c d e f g h", "twin": "a b"}] * 20),
        pair_field="twin", context=16,
    )  # fmt: skip
    first, second = islice(rows_of(data, "train", lm), 2)
    assert first.length == second.length < 16 and len(first.tokens_L) == len(second.tokens_L) == 16
    assert first.tokens_L[0] == lm.bos_id == first.tokens_L[-1]


def test_text_without_pairs_is_refused(model, lm, corpora, tmp_path):
    with pytest.raises(DataError, match="no text of the data has a partner"):
        data = DataConfig(kind="text", path=corpora.retain, context=16)
        Sampler(store(model, lm, data, tmp_path, n=12), 8, 0, "text_pairs").batch(0)


def test_the_conf_files_name_what_they_are():
    from sae_sweeps.config.paths import config_dir

    text = (Path(config_dir()) / "data" / "wmdp_bio.yaml").read_text()
    assert "forget: cais/wmdp-bio-forget-corpus" in text and "retain: Salesforce/wikitext:wikitext-103-raw-v1" in text
