"""Text as people have it: unused columns, compressed files, folders, encodings."""

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sae_sweeps.activations.text import documents
from sae_sweeps.config.data import data_digest, files_of
from sae_sweeps.config.schema import DataConfig
from sae_sweeps.config.words import rewrite
from sae_sweeps.errors import DataError

TEXTS = [f"Text number {i}." for i in range(20)]


def read(kind, path, **keys):
    cfg = DataConfig(kind=kind, path=str(path), held_out=1e-9, **keys)
    return [document.text for document in documents(cfg, "train")]


def lines(path, rows, opened=open):
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def kind_at(path):
    (word,) = rewrite([f"data={path}"])
    from hydra.core.config_store import ConfigStore

    name = word.removeprefix("data=")
    return ConfigStore.instance().repo["data"][f"{name}.yaml"].node["defaults"][0]


@pytest.mark.parametrize(
    "others",
    [
        lambda i: {"url": None if i < 10 else "a"},
        lambda i: {} if i < 10 else {"n": i},
        lambda i: {"n": i if i < 19 else "none"},
        lambda i: {"n": {"a": i} if i % 2 else [i]},
    ],
    ids=["null then words", "in one file only", "another type late", "nested"],
)
def test_what_unused_columns_hold_does_not_matter(tmp_path, others):
    rows = [{"text": text} | others(i) for i, text in enumerate(TEXTS)]
    lines(tmp_path / "a.jsonl", rows[:10])
    lines(tmp_path / "b.jsonl", rows[10:])
    assert read("jsonl", tmp_path) == TEXTS


def test_parquet_files_of_different_unused_columns(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS[:10], "n": range(10)}), tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS[10:], "n": ["x"] * 10}), tmp_path / "b.parquet")
    assert read("parquet", tmp_path) == TEXTS
    with pytest.raises(DataError, match="data.text_field=body is not in .*; its fields are text, n"):
        read("parquet", tmp_path, text_field="body")


def test_a_used_column_that_only_some_rows_have(tmp_path):
    lines(tmp_path / "a.jsonl", [{"other": 1}, *({"text": text} for text in TEXTS), {"other": 2}])
    assert read("jsonl", tmp_path / "a.jsonl") == TEXTS


def compressed(path):
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode())


WRITTEN = {
    "a.jsonl": lambda path: lines(path, [{"text": text} for text in TEXTS]),
    "a.jsonl.gz": lambda path: lines(path, [{"text": text} for text in TEXTS], gzip.open),
    "a.JSONL": lambda path: lines(path, [{"text": text} for text in TEXTS]),
    "a.json": lambda path: path.write_text(json.dumps([{"text": text} for text in TEXTS], indent=1)),
    "a.json.gz": lambda path: lines(path, [{"text": text} for text in TEXTS], gzip.open),
    "a.jsonl.zst": compressed,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_and_its_folder_are_read_alike(tmp_path, name):
    folder = tmp_path / "some folder"
    folder.mkdir()
    WRITTEN[name](folder / name)
    for path in (folder, folder / name):
        kind = kind_at(path)
        assert kind == "jsonl"
        assert read(kind, path) == TEXTS


@pytest.mark.parametrize("split", [None, "train", "validation"])
def test_what_save_to_disk_wrote(tmp_path, split):
    saved = datasets.Dataset.from_dict({"text": TEXTS, "n": range(20)})
    (saved if split is None else datasets.DatasetDict({split: saved})).save_to_disk(str(tmp_path / "saved"))
    assert kind_at(tmp_path / "saved") == "arrow"
    if split == "validation":
        with pytest.raises(DataError, match="data.split=train is not in .*; it holds validation"):
            read("arrow", tmp_path / "saved")
        assert read("arrow", tmp_path / "saved", split="validation") == TEXTS
    else:
        assert read("arrow", tmp_path / "saved") == TEXTS


def test_a_link_to_what_is_gone_is_named(tmp_path):
    lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    (tmp_path / "b.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match="b.jsonl is a link to what does not exist; mend the link, or remove it"):
        files_of(DataConfig(kind="jsonl", path=str(tmp_path)))


def test_hidden_files_are_left_out_and_linked_folders_read_once(tmp_path):
    real, notes = tmp_path / "real", tmp_path / "notes"
    (notes / ".ipynb_checkpoints").mkdir(parents=True)
    real.mkdir()
    (real / "x.txt").write_text("x")
    (notes / "linked").symlink_to(real)
    (real / "round").symlink_to(notes)
    for name in ("n.txt", "._n.txt", ".ipynb_checkpoints/n-checkpoint.txt"):
        (notes / name).write_text(name)
    cfg = DataConfig(kind="text", path=str(notes))
    assert files_of(cfg) == [notes / "linked" / "x.txt", notes / "n.txt"]
    before = data_digest(cfg)
    (notes / "._n.txt").write_text("changed")
    assert data_digest(cfg) == before


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_with_a_mark(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("naïve 日本", encoding=encoding)
    lines(tmp_path / "a.jsonl", [{"text": "naïve 日本"}], lambda path, mode, **_: open(path, mode, encoding=encoding))
    assert read("text", tmp_path / "a.txt") == read("jsonl", tmp_path / "a.jsonl") == ["naïve 日本"]


def test_lone_surrogates_are_replaced_and_pairs_joined(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}')
    assert read("jsonl", tmp_path / "a.jsonl") == ["a�b 😀"]


@pytest.mark.parametrize(
    "kind, name, content, words",
    [
        ("text", "a.txt", "naïve".encode("latin-1"), "not in UTF-8 .*0xef.*iconv"),
        ("text", "a.txt", "naive".encode("utf-16-le"), "no text, it holds zero bytes"),
        ("text", "a.txt", gzip.compress(b"some words", mtime=0), "compressed by gzip; rename it to a.txt.gz"),
        ("text", "a.txt", b"PK\x03\x04 and so on", "is a zip archive"),
        ("jsonl", "a.jsonl", gzip.compress(b"{}", mtime=0), "compressed by gzip; rename it to a.jsonl.gz"),
        ("jsonl", "a.jsonl.gz", b'{"text": "x"}', "cannot be read"),
        ("jsonl", "a.jsonl.gz", gzip.compress(b'{"text": "x"}' * 99, mtime=0)[:-12], "cannot be read"),
        ("jsonl", "a.jsonl.zst", b'{"text": "x"}', "cannot be read"),
        ("jsonl", "a.jsonl", b'{"text": "x"}\n{"text"', "line 2 is no JSON"),
        ("jsonl", "a.jsonl", b'{"text": "x"}\n[1]', "line 2 holds list; each row must be"),
        ("jsonl", "a.json", b'[{"text": "x"}, 3]', "row 2 holds int"),
        ("jsonl", "a.jsonl", b'{"input_ids": [1, 2]}', "token ids, which are not read"),
        ("parquet", "a.parquet", b"PAR1 and no more", "cannot be read as parquet"),
        ("arrow", "a.arrow", b"ARROW1", "cannot be read as arrow"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, kind, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read(kind, tmp_path / name)
