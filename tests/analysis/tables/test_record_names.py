"""Columns under the names that the studies' records and other libraries give them, of run folders and of imports."""

import csv
import io
import json

import pytest

from analysis.__main__ import main
from analysis.output.formats import FORMATS, render
from analysis.reading.import_files import write_import
from analysis.reading.sources import read_sources
from analysis.tables.compare import compared, load, table
from sae_sweeps.errors import ConfigError
from tests.analysis.outputs import add_run

RECORD = {
    "training_steps": 100, "final_loss": 30.5, "learning_rate": 3e-4, "lr": 3e-4, "sparsity_penalty": 0.04,
    "l1_penalty": 0.04, "dict_size": 1024, "activation_dim": 128, "warmup_steps": 1000, "lm_name": "builtin",
    "layer": 2, "k": 32, "steps": 100, "submodule_name": "resid_post_layer_2", "training_tokens": 100_000,
    "trainer_class": "topk", "seed": 0, "wandb_name": "a title", "max_grad_norm": 1.0, "description": "why",
}  # fmt: skip
"""Fields of the records, with what they are of the run below."""

NOTES = """# Title: earlier
## Run 0: Baseline
Results: {'training_steps': 0, 'final_loss': None, 'layer': 19, 'dict_size': 2304, 'learning_rate': 0.0003,
    'sparsity_penalty': 0.04, 'activation_dim': 2304, 'lm_name': 'google/gemma-2-2b', 'k': 320}
Description: not trained
## Run 1: trained
Results: {'training_steps': 195, 'final_loss': 12.5, 'layer': 19, 'dict_size': 2304, 'learning_rate': 0.0001,
    'sparsity_penalty': 0.04, 'activation_dim': 2304, 'lm_name': 'google/gemma-2-2b', 'k': 320}
"""


@pytest.fixture
def outputs(tmp_path):
    config = {
        "architecture": {"name": "topk", "d_sae": 1024, "k": 32, "l1_penalty": 0.04},
        "lr_schedule": {"name": "linear", "lr": 3e-4, "warmup": 1000},
        "train": {"clip": 1.0},
        "description": "why",
    }
    add_run(tmp_path / "outputs", "aaaa", config, title="a title")
    return tmp_path / "outputs"


@pytest.fixture
def earlier(tmp_path):
    (tmp_path / "earlier.txt").write_text(NOTES)
    return write_import(read_sources([tmp_path / "earlier.txt"])[0], tmp_path / "earlier.json")[0]


def test_every_field_of_the_records_in_csv_and_json(outputs):
    result = table([outputs], columns=list(RECORD))
    header, row = csv.reader(io.StringIO(render(result, "csv")))
    assert header[0] == "run_id" and dict(zip(header, row, strict=True)).keys() == {"run_id", *RECORD}
    assert {name: row[header.index(name)] for name in RECORD} == {
        name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in RECORD.items()
    } | {"final_loss": "30.5", "learning_rate": "0.0003", "lr": "0.0003", "max_grad_norm": "1"}
    (run,) = json.loads(render(result, "json"))["runs"]
    values = {**run, **run["config"], **run["metrics"]}
    for name, value in RECORD.items():
        assert values.get(name, values.get({"k": "architecture.k", "layer": "layer.index"}.get(name))) in (value, None)
    assert values["training_steps"] == 100 and values["dict_size"] == 1024 and values["lm_name"] == "builtin"
    for format in FORMATS:
        shown = render(result, format)
        assert "resid" in shown and "why" in shown and "builtin" in shown


@pytest.mark.parametrize("name", ["training_steps", "learning_rate", "dict_size", "activation_dim", "lm_name", "layer"])
def test_a_field_of_run_folders_and_of_imports_alike(outputs, earlier, name):
    result = table([outputs, earlier], columns=[name])
    own, *reported = (value for column in result.frame.columns[1:] for value in result.frame[column])
    assert own == RECORD[name]
    wanted = {"training_steps": [0, 195], "learning_rate": [3e-4, 1e-4], "dict_size": [2304] * 2, "layer": [19] * 2,
              "activation_dim": [2304] * 2, "lm_name": ["google/gemma-2-2b"] * 2}  # fmt: skip
    assert reported == wanted[name]


def test_filters_and_order_take_them_and_change_no_default_table(outputs, earlier):
    paths = [outputs, earlier]
    found = table(paths, where="training_steps > 50 and dict_size = 1024 and submodule_name ~ layer_2")
    assert list(found.frame["run", "run_id"]) == ["aaaa"]
    assert list(table(paths, where="sparsity_penalty = 0.04 and lm_name ~ gemma").frame["run", "run_id"]) == [
        "earlier/0", "earlier/1",
    ]  # fmt: skip
    ordered = table(paths, sort="-learning_rate")
    assert list(ordered.frame["run", "run_id"]) == ["earlier/0", "aaaa", "earlier/1"]
    assert list(ordered.frame.columns) == list(table(paths).frame.columns)
    runs = load(paths)
    compared(runs, columns=["dict_size", "training_steps"])
    assert not {"dict_size", "training_steps"} & {name for _, name in runs.frame.columns}


def test_aggregates_and_differences_have_them_too(tmp_path):
    for seed in range(3):
        add_run(tmp_path, f"r{seed}", {"seed": seed}, {"steps": 100})
    result = table([tmp_path], columns=["training_steps", "fvu"], aggregate=["seed"])
    assert result.frame["metrics", "training_steps"].tolist() == [100.0]
    assert result.frame["n", "training_steps"].tolist() == [3]
    assert "training_steps_mean" in render(result, "csv").splitlines()[0]


def test_a_name_that_no_run_has_is_explained_and_a_mistaken_one_mended(outputs):
    with pytest.raises(ConfigError, match="no run has a column 'group_size': it is group_layer.group_size, which none"):
        table([outputs], columns=["group_size"])
    with pytest.raises(ConfigError, match="'traning_steps'; did you mean training_steps?"):
        table([outputs], columns=["traning_steps"])


def test_a_default_table_of_imports_shows_steps_and_final_loss_and_marks_the_untrained(earlier, capsys):
    assert main(["table", str(earlier)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"steps", "loss"} <= set(lines[2].split()) and "195" in lines[5] and "12.50" in lines[5]
    assert lines[4].startswith("! earlier/0") and lines[4].endswith(" 0")
    assert "never marked best: earlier/0 (never trained: 0 steps)" in lines


def test_a_description_stays_on_one_line_of_every_format(outputs):
    add_run(outputs, "bbbb", {"description": "one\n\n| two | \x1b[31m<b>\n3. {three} & so on " + "x" * 99, "seed": 1})
    result = table([outputs], columns=["description", "fvu"])
    assert len(render(result).splitlines()) == 3 + 2 + len([*result.warnings])
    rows = [line for line in render(result, "markdown").splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {4}
    assert len(list(csv.reader(io.StringIO(render(result, "csv"))))) == 3
    assert list(table([outputs], where="description ~ 'two'").frame["run", "run_id"]) == ["bbbb"]
    assert "description" not in render(table([outputs]), "csv").splitlines()[0]


def test_what_a_run_does_not_have_is_an_empty_cell(earlier):
    lines = render(table([earlier], columns=["submodule_name", "wandb_name", "description"])).splitlines()
    assert lines[3].split() == ["!", "earlier/0", "Baseline", "not", "trained"]
    assert lines[4].split() == ["earlier/1", "trained"]
