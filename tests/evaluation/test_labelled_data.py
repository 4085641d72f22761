"""Labelled text from a file of one's own, in the place of SAEBench's data sets."""

import json
import re

import pytest

from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config.evaluations import EvalConfig, settings_of
from sae_sweeps.config.run import run_config
from sae_sweeps.errors import DataError, UserError
from sae_sweeps.evaluation.labelled_data import LabelledSource
from sae_sweeps.evaluation.tasks import BIASED, Pair
from sae_sweeps.runs.evaluate import check_sources


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def topics():
    """A hundred rows of three topics, half of each nouns, in two fine classes; and a rare fourth topic."""
    rows = [
        {"text": f"{split} {label} {n}", "label": label, "split": split, "dataset": "topics",
         "attribute": ("noun", "verb")[n % 2], "fine": f"{label}{n % 4 // 2}", "unused": [n]}
        for label in ("animal", "food", "plant") for split in ("train", "test") for n in range(100)
    ]  # fmt: skip
    return [*rows, *({**rows[0], "text": f"rare {n}", "label": "rare"} for n in range(5))]


def test_rows_serve_probing_pairs_and_hierarchies(tmp_path):
    source = LabelledSource(write(tmp_path / "own.jsonl", topics()))
    assert source.probing == source.tpp == source.hierarchies == ("topics",)
    assert source.pairs == tuple(
        Pair("topics", pair) for pair in (("animal", "food"), ("animal", "plant"), ("food", "plant"))
    )
    task = source.task("topics", 4000, 60, seed=0)
    assert {label: len(texts) for label, texts in task.train.items()} == dict.fromkeys(("animal", "food", "plant"), 100)
    assert {label: len(texts) for label, texts in task.test.items()} == dict.fromkeys(("animal", "food", "plant"), 30)
    assert all(text.startswith(f"test {label}") for label, texts in task.test.items() for text in texts)
    assert task == source.task("topics", 4000, 60, seed=0) != source.task("topics", 4000, 60, seed=1)
    pair = source.pair_task(source.pairs[0], 4000, 4000, seed=0)
    assert {len(texts) for texts in pair.train.values()} == {48}  # 2m + 1 rows where class and attribute go together
    assert all(text.startswith("train animal") and int(text.split()[-1]) % 2 == 0 for text in pair.train[BIASED])
    fine = source.hierarchy("topics", 1000, seed=0)
    assert {len(texts) for of in fine.texts.values() for texts in of.values()} == {100}


def test_what_is_written_twice_is_in_one_split(tmp_path):
    rows = topics()
    source = LabelledSource(write(tmp_path / "own.jsonl", [*rows, *({**row, "split": "test"} for row in rows)]))
    task = source.task("topics", 4000, 4000, seed=0)
    assert not {text for texts in task.train.values() for text in texts} & {t for ts in task.test.values() for t in ts}


def test_the_content_of_the_file_decides_what_is_done_again(tmp_path):
    one, other = write(tmp_path / "a.jsonl", topics()), write(tmp_path / "b.jsonl", topics())
    changed = write(tmp_path / "c.jsonl", topics()[1:])
    first, second, third = (settings_of(EvalConfig(data=str(f)), "sparse_probing") for f in (one, other, changed))
    assert first == second != third


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"text": "a", "label": "b"},
            "row 1 has no split; each row needs text, label, split; its columns are text, label.",
        ),
        ({"text": "a", "label": "b", "split": "dev"}, "row 1: split is 'dev'; give train or test."),
        (
            {"text": "a", "label": "b", "split": "test"},
            "no two classes of a data set have 20 rows in train and in test.",
        ),
        (
            {"content": "a", "label": "b"},
            "row 1 has no text and no split; each row needs text, label, split; its columns are content, label.",
        ),
        ({"text": "a", "label": None, "split": "test"}, "row 1 has no label; each row needs text, label, split."),
        (
            {"text": "a", "label": float("nan"), "split": "test"},
            "row 1 has no label; each row needs text, label, split.",
        ),
        (
            {"text": " \n", "label": " ", "split": "test"},
            "row 1 has no text and no label; each row needs text, label, split.",
        ),
        ({"text": "a", "label": ["b"], "split": "test"}, "row 1: label is of type list, not one word or number."),
        (
            {"text": "a", "label": "b\nc", "split": "test"},
            r"row 1: label is 'b\nc'; write it without tabs and line breaks.",
        ),
        ({"text": 5, "label": "b", "split": "test"}, "row 1: text is of type int, not text."),
    ],
)
def test_a_file_that_does_not_serve_is_refused(tmp_path, row, said):
    with pytest.raises(DataError) as error:
        LabelledSource(write(tmp_path / "own.jsonl", [row]))
    assert str(error.value) == f"eval.data={tmp_path / 'own.jsonl'}: {said}"


@pytest.mark.parametrize("nothing", [None, float("nan"), " "])
def test_a_row_without_an_optional_value_has_none(tmp_path, nothing):
    rows = [row | {"fine": nothing, "attribute": nothing, "dataset": nothing} for row in topics()]
    source = LabelledSource(write(tmp_path / "own.jsonl", rows))
    assert source.probing == ("own",) and not source.pairs and not source.hierarchies


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval.evaluations=[tpp]"], "has no data set of three classes with enough rows, which tpp needs"),
        (["eval.evaluations=[scr]"], "has no two classes with enough rows of both values of an `attribute`, which scr"),
        (["eval.evaluations=[hierarchy]"], "has no two classes with two `fine` classes of enough rows each"),
        (["eval.evaluations=[unlearning]"], "has no questions, which unlearning needs"),
        (["eval.evaluations=[sparse_probing]", "eval.probing.datasets=[nonsense]"],
         "eval.probing.datasets: nonsense is not known; choose from own."),
        (["eval.evaluations=[sparse_probing]", "eval.probing.datasets=[]"], "eval.probing.datasets: names none; give"),
    ],
)  # fmt: skip
def test_what_a_file_lacks_for_an_evaluation_is_found_before_anything_is_trained(tmp_path, words, said):
    rows = [{"text": row["text"], "label": row["label"], "split": row["split"]} for row in topics()]
    file = write(tmp_path / "own.jsonl", [row for row in rows if row["label"] in ("animal", "food")])
    (point,) = compose_points([f"eval.data={file}", *words])
    with pytest.raises(UserError, match=re.escape(said)):
        check_sources([run_config(point.cfg)])
