"""Every kind of source, the split, and what is wrong with data said in one sentence."""

import gzip
import json

import pytest

from sae_sweeps.activations import text as module
from sae_sweeps.activations import text_files
from sae_sweeps.activations.text import documents, look
from sae_sweeps.config.data import check_data
from sae_sweeps.config.schema import DataConfig
from sae_sweeps.errors import ConfigError, DataError, NoNetwork

TEXTS = [f"Text number {i}." for i in range(200)]


def write_jsonl(path, key="text"):
    path.write_text("\n".join(f'{{"{key}": "{text}", "n": {i}}}' for i, text in enumerate(TEXTS)))
    return path


def both(cfg):
    return [doc.text for doc in documents(cfg, "train")], [doc.text for doc in documents(cfg, "held_out")]


def test_jsonl_is_split_by_the_texts_hash(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl")
    train, held_out = both(DataConfig(kind="jsonl", path=str(path), held_out=0.2))
    assert sorted(train + held_out) == sorted(TEXTS) and 20 < len(held_out) < 60
    assert train == [text for text in TEXTS if text in set(train)]  # in the order of the file
    _, fewer = both(DataConfig(kind="jsonl", path=str(path), held_out=0.1))
    assert set(fewer) < set(held_out)


def test_parquet_and_a_folder_of_jsonl_hold_the_same(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl", "body")
    parquet, jsonl = (
        both(DataConfig(kind=kind, path=str(tmp_path), text_field="body")) for kind in ("parquet", "jsonl")
    )
    assert parquet == jsonl and len(parquet[0]) + len(parquet[1]) == len(TEXTS)


def test_long_text_files_are_cut_and_nothing_is_lost(tmp_path):
    paragraph = "\n".join(f"line {i} of it" for i in range(20)) + "\n\n"
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text(paragraph * 100)
    (tmp_path / "sub" / "b.txt").write_text("x" * 30000)
    (tmp_path / "c.md").write_text("not a text file")
    docs = list(module._text_files(DataConfig(kind="text", path=str(tmp_path))))
    assert "".join(doc.text for doc in docs) == paragraph * 100 + "x" * 30000
    assert max(len(doc.text) for doc in docs) < 3 * text_files.PIECE
    assert all(doc.text.endswith("\n\n") for doc in docs if doc.name.startswith("a.txt") and doc.text)


def test_built_in_text_has_its_own_split():
    train, held_out = (next(documents(DataConfig(), split)) for split in ("train", "held_out"))
    assert train.text and held_out.text and train.name != held_out.name


@pytest.mark.parametrize(
    "change, kind, words",
    [
        ({"kind": "csv"}, ConfigError, "data.kind=csv"),
        ({"path": None}, ConfigError, "data.path"),
        ({"held_out": 1.5}, ConfigError, "data.held_out=1.5"),
        ({"path": "nowhere.jsonl"}, DataError, "no such file"),
        ({"path": "empty.jsonl"}, DataError, "is empty"),
        ({"path": "folder"}, DataError, r"no \*.jsonl file"),
    ],
)
def test_mistakes_seen_before_anything_is_read(tmp_path, monkeypatch, change, kind, words):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(kind, match=words):
        check_data(DataConfig(**{"kind": "jsonl", "path": "a.jsonl"} | change))


@pytest.mark.parametrize(
    "content, change, words",
    [
        ('{"body": "x", "n": 1}', {}, "data.text_field=text is not in .*; its fields are body, n"),
        ('{"text": 7}', {}, "holds int, not text"),
        ('{"text": ""}\n{"text": "  "}', {}, "holds no text"),
        ("{not json", {}, "cannot be read as jsonl"),
        ('{"text": "x"}', {"held_out": 1e-9, "split": "held_out"}, "leaves none of the 1 documents .* for evaluation"),
        ('{"text": "x"}', {"held_out": 1 - 1e-9, "split": "train"}, "for training; lower it"),
    ],
)
def test_mistakes_inside_a_file(tmp_path, content, change, words):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    cfg = DataConfig(kind="jsonl", path=str(path), held_out=change.get("held_out", 0.5))
    with pytest.raises(DataError, match=words):
        list(documents(cfg, change.get("split", "train")))


def test_no_network(monkeypatch):
    monkeypatch.setattr(module, "hub_is_reachable", lambda: False)
    with pytest.raises(NoNetwork, match="data=no-such/set could not be fetched"):
        next(documents(DataConfig(kind="hub", path="no-such/set"), "train"))


@pytest.mark.parametrize(
    ("rows", "change", "words"),
    [
        (
            [{"text": "a"}, {"text": None}, {"other": "b"}, {"text": ""}],
            {},
            ["3 of 4 rows have no text in data.text_field"],
        ),
        ([{"text": "a"}], {}, []),
        ([{"text": 3}], {}, "holds int, not text, .*; name a column of text, as data.text_field=COLUMN"),
        ([{"words": "a"}], {}, "data.text_field=text is not in .*; its fields are words"),
        (
            [{"text": "a", "label": "x"}, {"text": "b", "label": None}],
            {"label_field": "label"},
            "row 2 of .* has no label",
        ),
        ([{"text": "a", "label": float("nan")}], {"label_field": "label"}, "row 1 of .* has no label"),
        ([{"text": "a", "label": " "}], {"label_field": "label"}, "row 1 of .* has no label"),
        (
            [{"text": "a", "label": ["x"]}],
            {"label_field": "label"},
            "the label of row 1 of .* is of type list, not one",
        ),
        (["cut"], {}, "line 1 holds str"),
    ],
)
def test_the_first_rows_are_looked_at_before_a_run(rows, change, words, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = DataConfig(kind="jsonl", path=str(path), **change)
    if isinstance(words, str):
        with pytest.raises(DataError, match=words):
            look(cfg)
        return
    assert [word in found for word, found in zip(words, look(cfg), strict=True)] == [True] * len(words)


def test_a_json_array_is_bounded_however_small_its_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b'[\n{"text": "' + b"a" * 4000 + b'"}]'))
    cfg = DataConfig(kind="jsonl", path=str(path))
    assert look(cfg) == []
    monkeypatch.setattr(text_files, "LONGEST_ARRAY", 1000)
    with pytest.raises(DataError, match="one JSON array of more than 1,000 characters.*JSON lines"):
        look(cfg)
