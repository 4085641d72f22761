"""The built-in text: a fixed split by module, in a mixed order, of what every Python carries."""

import pytest

from sae_sweeps.builtin.text import corpus
from sae_sweeps.errors import DataError


@pytest.fixture(scope="module")
def splits() -> dict[str, dict[str, str]]:
    return {split: dict(corpus.documents(split)) for split in corpus.SPLITS}


def test_splits_share_no_document_and_about_a_tenth_is_held_out(splits):
    train, held_out = splits["train"], splits["held_out"]
    assert not train.keys() & held_out.keys()
    assert 0.05 < len(held_out) / (len(train) + len(held_out)) < 0.15
    assert len(train) > 200


def test_split_is_by_name_alone(splits, monkeypatch):
    """A module keeps its split whatever else the library holds and whatever the module says."""
    for split, texts in splits.items():
        assert all(corpus.split_of(name) == split for name in texts)
    names = [*list(splits["train"])[:20], *list(splits["held_out"])[:5]]
    monkeypatch.setattr(corpus, "_documents", lambda: [(name, "another text") for name in names])
    assert [name for name, _ in corpus.documents("held_out")] == names[20:]


def test_two_readings_agree(splits):
    assert list(corpus.documents("held_out")) == list(splits["held_out"].items())


def test_modules_are_named_as_they_are_imported(splits):
    names = splits["train"].keys() | splits["held_out"].keys()
    assert {"json", "json.decoder", "argparse", "importlib.resources._common", "math", "builtins"} <= names
    assert not any(name.endswith("__init__") or "/" in name for name in names)
    assert any(name.startswith("pydoc_data.topics:") for name in names)


def test_tests_tables_and_other_peoples_packages_are_left_out(splits):
    for name in splits["train"].keys() | splits["held_out"].keys():
        parts = set(name.partition(":")[0].split("."))
        assert not parts & {"test", "tests", "idle_test", "site-packages", "idlelib", "tkinter", "encodings"}
        assert not name.startswith("_sysconfigdata")


def test_order_is_mixed(splits):
    """Neither alphabetical nor by kind: any stretch holds modules from all over the library, and topics."""
    names = list(splits["train"])
    assert names != sorted(names)
    for start in range(0, 200, 50):
        stretch = names[start : start + 50]
        assert len({name[0].lower() for name in stretch}) > 8
        assert 0 < sum(":" in name for name in stretch) < 25


def test_files_that_are_no_text_are_left_out(tmp_path):
    good = "word " * 100
    files = "good.py", "package/__init__.py", "package/tests/test_it.py", "config-3.11/python-config.py", "note.txt"
    for path in files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(good)
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "latin.py").write_bytes(good.encode() + b"\xe9")
    assert corpus._modules(tmp_path) == {"good": good, "package": good}


def test_python_without_sources_is_refused(tmp_path):
    with pytest.raises(DataError, match="no Python sources"):
        corpus._modules(tmp_path)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="test"):
        next(corpus.documents("test"))


def test_c_docstrings_name_what_they_document(splits):
    text = (splits["train"] | splits["held_out"])["math"]
    assert "\nsqrt\n\n" in text and "Return the square root of x." in text
    assert " at 0x" not in text


class TestDigest:
    @pytest.fixture(autouse=True)
    def fresh(self):
        corpus.digest.cache_clear()
        yield
        corpus.digest.cache_clear()

    def digest_of(self, monkeypatch, *documents: tuple[str, str]) -> str:
        corpus.digest.cache_clear()
        monkeypatch.setattr(corpus, "_documents", lambda: list(documents))
        return corpus.digest()

    def test_repeats(self):
        first = corpus.digest()
        corpus.digest.cache_clear()
        assert corpus.digest() == first

    def test_is_kept_for_the_process(self, monkeypatch):
        first = corpus.digest()
        monkeypatch.setattr(corpus, "_documents", lambda: pytest.fail("read again"))
        assert corpus.digest() == first

    def test_changes_with_a_text_a_name_or_the_order(self, monkeypatch):
        digests = [
            self.digest_of(monkeypatch, ("a", "one"), ("b", "two")),
            self.digest_of(monkeypatch, ("a", "one"), ("b", "tow")),
            self.digest_of(monkeypatch, ("a", "one"), ("c", "two")),
            self.digest_of(monkeypatch, ("b", "two"), ("a", "one")),
            self.digest_of(monkeypatch, ("ao", "ne"), ("b", "two")),
        ]
        assert len(set(digests)) == len(digests)
