"""Notes by any hand, as they are read."""

from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.metrics import metric_named, short_name
from analysis.reading.import_files import imported_records, write_import
from analysis.reading.imports import Import
from analysis.reading.literals import leaves, read_dict
from analysis.reading.notes import parse_notes
from analysis.reading.records import records
from sae_sweeps.errors import DamagedFile, DataError


def read(text):
    return parse_notes(text, "n", Path("n.txt")).runs


# Reading


def test_dicts_in_every_form():
    text = """
## Run 1: one line
Results: {'a': 1, "b": [1, 2], 'c': {'d': -2.5e-3, 'text': "it's {fine}"}, 'e': nan, 'f': -inf, 'g': True}
## Run 2: many lines, in a fence
**Results**:
```python
{
    'a': np.float64(0.25),   # a comment
    'b': tensor(3.0, ),
    'c': None,
}
```
# Run 3
{"a": 1.5, "b": NaN, "c": Infinity, "d": null, "k": 40}
"""
    one, two, three = read(text)
    assert one["metrics"] == {"a": 1, "d": -0.0025, "e": None, "f": None}
    assert one["config"] == {"b": "[1, 2]", "text": "it's {fine}", "g": True}
    assert two["metrics"] == {"a": 0.25, "b": 3.0, "c": None} and two["title"] == "many lines, in a fence"
    assert three["metrics"] == {"a": 1.5, "b": None, "c": None, "d": None} and three["config"] == {"architecture.k": 40}
    assert [run["run_id"] for run in (one, two, three)] == ["n/1", "n/2", "n/3"]


def test_headings_in_every_form_and_none_in_prose():
    text = """intro: Run 7 went well
Run 4: plain
Run 4 was better than others, Running: no
  **Run 5** - bold
#### Run #6
# Run 7 (no colon)
## Results
Results: {'y': 2}
# Run the next one
## Run: no number
## Running costs
Results: {'x': 1}
"""
    runs = read(text)
    assert [(run["run_id"], run["title"]) for run in runs] == [
        ("n/4", "plain"), ("n/5", "bold"), ("n/6", ""), ("n/7", "(no colon)"), ("n/0", "no number"),
    ]  # fmt: skip
    assert [run["metrics"] for run in runs] == [{}, {}, {}, {"y": 2}, {}]


def test_what_contradicts_itself_keeps_both_words():
    (run,) = read(
        "## Run 1: x\nResults: {'fvu': 0.1, 'lr': 3e-4, 'test': {'fvu': 0.2}}\nConfig: {'learning_rate': 2e-4}\n"
    )
    assert run["metrics"] == {"fvu": 0.1, "test.fvu": 0.2}
    assert run["config"] == {"lr_schedule.lr": 2e-4, "lr_schedule.lr_logged": 3e-4}
    assert run["warnings"] == ["fvu is 0.1 in one place and 0.2 in another"]


@pytest.mark.parametrize("results", ["{'a': 1", "{**a}", "{'a', 'b'}", "{'a': x}"])
def test_what_is_no_dict_is_listed_with_its_line(results):
    (run,) = read(f"## Run 1: x\n\nResults: {results}\nConfig: {{'k': 40}}\n")
    assert run["metrics"] == {} and run["config"] == {"architecture.k": 40}
    assert [(unread["line"], results[:2] in unread["text"]) for unread in run["recorded"]["unread"]] == [(3, True)]


def test_notes_without_runs_are_refused():
    with pytest.raises(DataError, match="holds no run notes"):
        read("# Title\nResults: {'a': 1}\n")


def dict_in(text):
    return read_dict(text, text.index("{"))


@pytest.mark.parametrize("text", ["{see the table}", "{this and", "{**a}", "{", "{x: 1}", "{-x}"])
def test_braces_of_prose_are_no_dict(text):
    assert dict_in(text) is None


def test_a_dict():
    text = "x {'a': 1, 'a': 2, 'b': {'c': (1, -2)}, 3: float('nan'), '}': '\\'}', \"q\": \"\"\"b}\"\"\"} y"
    found = dict_in(text)
    assert found.value["a"] == 1 and found.value.doubled == ("a",) and found.value["b"]["c"] == [1, -2]
    assert [path for path, _ in leaves(found.value)] == [("a",), ("b", "c"), ("3",), ("}",), ("q",)]
    assert text[found.end :] == " y" and found.cut is None and not found.unread


@pytest.mark.parametrize(
    "text",
    ["__import__('os').getcwd()", "1 + 1", "x", "f'{b}'", "device(type='cuda')", "9" * 1_500, "[" * 60 + "]" * 60],
)
def test_a_value_that_is_no_literal_is_passed_over_and_listed(text):
    found = dict_in(f"{{'a': 1.5, 'b': {text}, 'c': 2}}")
    assert {key: value for key, value in found.value.items() if key != "b"} == {"a": 1.5, "c": 2}
    assert len(found.unread) == 1 and found.cut is None


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("{'a': 1", {}),  # 1 may be the beginning of 12
        ("{'a': 1, 'b': 20", {"a": 1}),
        ("{'a': 1, 'b': 2, ... [33 characters]", {"a": 1, "b": 2}),
        ("{'a': 1, 'b': 2\nDescription: of x, y", {"a": 1}),
        ("{'a': 1, 'b': 'open\nDescription: it', 'q': 3}", {"a": 1}),
        ("{'a': {'b': {'c': 1.25, 'd': 0.3", {"a": {"b": {"c": 1.25}}}),
        ("{'a': 1, 'b': [{'c': 2}, {'c': 3, 'd': [4, 5", {"a": 1, "b": [{"c": 2}, {"c": 3, "d": [4]}]}),
        ("{'a': 1, 'b': [1}", {"a": 1, "b": []}),
        ("{'a': x[" + "[" * 20_000, {}),
    ],
)
def test_of_a_dict_that_was_cut_short_what_is_whole_is_read(text, whole):
    found = dict_in(text)
    assert found.value == whole and found.cut


# Imports


def test_imports_stand_beside_runs(sweep, outputs, tmp_path, capsys):
    source = tmp_path / "old notes.txt"
    source.write_text("## Run 1: earlier\nResults: {'fvu': 0.02, 'k': 16}\nDescription: as it was\n")
    target = outputs / "imported"
    assert main(["import", str(source), "-o", str(target)]) == 0
    said = capsys.readouterr().out
    assert said == f"old notes.txt: 1 run, 1 number -> {target / 'old_notes.json'} (new)\n"
    frame = records([outputs])
    assert list(frame["run", "run_id"]) == ["aaaa", "bbbb", "cccc", "old_notes/1"]
    assert list(frame["run", "source"])[2:] == ["run", "as reported in old notes.txt"]
    assert frame["metrics", "fvu"].tolist()[3] == 0.02 and frame["run", "description"][3] == "as it was"
    for path in (target, target / "old_notes.json"):
        assert list(records([path])["run", "run_id"]) == ["old_notes/1"]
    assert len(records([target, outputs, target / "old_notes.json"])) == 4  # each once
    assert main(["table", str(outputs)]) == 0
    assert "as reported in old notes.txt" in capsys.readouterr().out


def test_importing_again_changes_nothing_and_other_content_is_in_the_way(tmp_path, capsys):
    source, target = tmp_path / "a.txt", str(tmp_path / "to.json")
    source.write_text("## Run 1: x\nResults: {'fvu': 0.02}\n")
    assert main(["import", str(source), "-o", target]) == 0
    before = Path(target).read_bytes()
    assert main(["import", str(source), "-o", target]) == 0 and Path(target).read_bytes() == before
    assert "(as before)" in capsys.readouterr().out
    source.write_text("## Run 1: x\nResults: {'fvu': 0.03}\n")
    assert main(["import", str(source), "-o", target]) == 2 and Path(target).read_bytes() == before
    assert "is there with other content; give --replace" in capsys.readouterr().err
    assert main(["import", str(source), "-o", target, "--replace"]) == 0 and Path(target).read_bytes() != before
    assert "(replaced)" in capsys.readouterr().out


def test_mistaken_sources_are_named(tmp_path, capsys):
    (tmp_path / "x.json").write_text("{")
    (tmp_path / "y.json").write_text('{"runs": []}')
    (tmp_path / "own.json").write_text('{"runs": [{"run_id": "a"}]}')
    (tmp_path / "z.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "none").mkdir()
    for name, sentence in (
        ("nowhere", "does not exist"),
        ("x.json", "does not read as JSON"),
        ("y.json", "its `runs` are an empty list"),
        ("own.json", "belongs to this project's runs"),
        ("z.txt", "not text in UTF-8; save it as UTF-8"),
        ("none", "holds no JSON file"),
    ):
        assert main(["import", str(tmp_path / name)]) == 2
        assert sentence in capsys.readouterr().err
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("## Run 1: x\n")
    words = ["import", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "-o", str(tmp_path / "one.json")]
    assert main(words) == 2 and "2 imports and one file" in capsys.readouterr().err


def test_a_damaged_import_is_named(tmp_path):
    path, _ = write_import(Import("x", "x.txt", "notes", []), tmp_path)
    assert imported_records(path) == []
    path.write_text(path.read_text().replace("[]", "[{}]"))
    with pytest.raises(DamagedFile, match="does not list imported runs"):
        records([path])
    path.write_text(path.read_text()[:-5])
    with pytest.raises(DamagedFile, match="x.json"):
        records([path])


def test_braces_that_open_nothing_hide_nothing():
    (run,) = read("## Run 1: x\nsee {this and\n{that\n" + "{\n" * 200 + "Results: {'a': 1}\n")
    assert run["metrics"] == {"a": 1}


# Metrics that text gives


@pytest.mark.parametrize(
    ("text", "metrics"),
    [
        ("- fvu: 0.3\n- l0: 32", {"fvu": 0.3, "l0": 32}),
        ("- MSE: 2\n* dead: 3\n- Top5: 0.7", {"mse": 2, "dead_features": 3, "sae_top_5_test_accuracy": 0.7}),
        ("L0 = 32\nFVU: 0.3\nexplained_variance: 0.7", {"l0": 32, "fvu": 0.3, "explained_variance": 0.7}),
        ("Results: FVU 0.3, L0 32, training loss 2", {"fvu": 0.3, "l0": 32, "final_loss": 2}),
    ],
)
def test_metrics_of_this_project_are_never_settings(text, metrics):
    (run,) = read(f"## Run 1: a\n{text}\n")
    assert run["metrics"].items() >= metrics.items() and run["config"] == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("- explained variance: 93%", "a percentage; write it as 0.93"),
        ("- gizmo: 12x", "12x is no whole number"),
        ("Results: L0 32 and explained variance 93%", "a percentage; write it as 0.93"),
        ("Results: L0 32, gizmo 3", "gizmo is the name of no figure"),
    ],
)
def test_what_is_no_figure_is_listed_with_its_reason(text, why):
    (run,) = read(f"## Run 1: a\n{text}\n")
    assert [(one["line"], one["why"]) for one in run["recorded"]["unread"]] == [(2, why)]


def test_every_short_name_leads_to_its_metric():
    for metric in ("sae_top_5_test_accuracy", "scr_dir1_threshold_10", "explained_variance", "builtin_sae_all"):
        assert short_name(metric_named(short_name(metric))) == short_name(metric_named(metric))
    assert metric_named("penalty_weight") is None and metric_named("scr10_dir1") == "scr_dir1_threshold_10"


def test_tables_of_two_columns_are_read_and_other_rows_listed():
    (run,) = read(
        "## Run 1: a\n| metric | value |\n|---|---:|\n| **FVU** | **0.3** |\n| gizmo | 4 |\n| k | 40 |\n"
        "| penalty | ortho |\n\n| a | b | c |\n|---|---|---|\n| x | 2 | 3 |\n"
    )
    assert run["metrics"] == {"fvu": 0.3, "gizmo": 4} and run["config"] == {"architecture.k": 40}
    assert [one["line"] for one in run["recorded"]["unread"]] == [7, 11]
    assert read("## Run 1\n| final_loss | 3.5 |")[0]["metrics"] == {"final_loss": 3.5}


@pytest.mark.parametrize("tail", ["'training_st", "'training_steps'", "'training_steps':", "'training_steps': 12", ""])
@pytest.mark.parametrize("blank", ["\n", "\n\n"])
def test_a_dict_cut_short_keeps_its_whole_figures(tail, blank):
    cut = f"Results: {{'final_info': {{'final_loss': 3.5, {tail}"
    one, two = read(f"## Run 1: a\n{cut}{blank}## Run 2: b\nResults: {{'final_loss': 2}}\n")
    assert one["metrics"] == {"final_loss": 3.5} and two["metrics"] == {"final_loss": 2}
    assert one["recorded"]["unread"][0]["why"].startswith("cut short")


@pytest.mark.parametrize("value", ["9" * 6000, "{'a': " * 5000 + "1" + "}" * 5000])
def test_a_value_too_long_to_read_is_not_called_cut_short(value):
    (run,) = read(f"## Run 1: a\nResults: {{'final_loss': 3.5, 'x': {value}}}\n")
    assert run["metrics"] == {"final_loss": 3.5}
    assert "no end within 2,000 characters" in run["recorded"]["unread"][0]["why"]
    assert "cut short" not in run["recorded"]["unread"][0]["why"]
